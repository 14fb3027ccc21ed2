"""One energy, sampled by chains on all devices of all hosts; the same script on a laptop and on a cluster.

    python examples/02_many_devices.py                    # this machine, all its devices
    python examples/02_many_devices.py --launch 2         # two processes on this machine, as if they were two hosts
    srun python examples/02_many_devices.py --cluster     # SLURM: one process per task, see docs/scaling.md

Every process runs the same program, whatever its devices are (CPUs talk through gloo, GPUs through NCCL).
`jax.distributed.initialize` lets them find each other; from then on `jax.devices()` are the devices of all of them, a
mesh spans them, and `mesh=` spreads the chains. Chains never talk to each other while they run: what crosses the
network is the draws, once per chunk.
"""

import argparse
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import ebm_ppl as ebm


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launch", type=int, metavar="N", help="start N processes on this machine and wait for them")
    parser.add_argument(
        "--cluster", action="store_true", help="find the other processes through SLURM, MPI or Kubernetes"
    )
    parser.add_argument("--processes", type=int, default=1, help="how many there are, where nothing else says it")
    parser.add_argument("--process-id", type=int, default=0, help="which of them this is")
    parser.add_argument("--coordinator", default="127.0.0.1:12355", help="host:port of process 0")
    parser.add_argument("--chains-per-device", type=int, default=4)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--output", type=pathlib.Path, help="where process 0 writes the draws (NetCDF)")
    return parser.parse_args()


def launch(count: int) -> int:
    """`count` copies of this script that find each other on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    position = sys.argv.index("--launch")
    rest = sys.argv[1:position] + sys.argv[position + 2 :]
    command = [sys.executable, *[f"-W{option}" for option in sys.warnoptions], __file__, *rest]
    command += ["--processes", str(count), "--coordinator", coordinator]
    running = [subprocess.Popen([*command, "--process-id", str(i)]) for i in range(count)]
    codes = [process.wait() for process in running]
    return max(map(abs, codes))


def connect(options: argparse.Namespace) -> None:
    """Before any other use of JAX."""
    if options.cluster:
        jax.distributed.initialize()
    elif options.processes > 1:
        jax.distributed.initialize(options.coordinator, options.processes, options.process_id)


def model(y: jax.Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    numpyro.sample("y", dist.Normal(mu, sigma).expand(y.shape).to_event(1), obs=y)


def sample_a_model(num_chains: int, num_samples: int, mesh: jax.sharding.Mesh) -> numpyro.infer.MCMC:
    """The same for NumPyro: one argument, for any kernel."""
    mcmc = numpyro.infer.MCMC(
        ebm.BlackJAXKernel(model),
        num_warmup=300,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=ebm.infer.shard_chains(mesh),
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), jnp.array([1.0, 2.0, 3.0, 2.5, 0.5]))
    return mcmc


def main() -> None:
    options = arguments()
    if options.launch:
        sys.exit(launch(options.launch))
    connect(options)
    mesh = jax.make_mesh((jax.device_count(),), ("chains",))
    num_chains = options.chains_per_device * jax.device_count()

    energy = ebm.energies.Banana(curvature=0.1, scale=2.0)
    draws = ebm.sample(
        energy,
        ebm.MALA(),
        key=jax.random.key(0),  # the same key everywhere: chain c uses fold_in(key, c), wherever it runs
        num_chains=num_chains,
        num_warmup=500,
        num_samples=options.num_samples,
        thinning=10,
        mesh=mesh,
    )
    mcmc = sample_a_model(num_chains, options.num_samples, mesh)

    if jax.process_index() == 0:  # every process has all draws; one is enough to report them
        print(f"{jax.process_count()} process(es), {jax.device_count()} {jax.devices()[0].platform} device(s)")
        print(draws)
        x = draws.positions
        print(
            f"E x1^2 = {float((x[..., 0] ** 2).mean()):.2f} (exact 4)   E x2 = {float(x[..., 1].mean()):.3f} (exact 0)"
        )
        print(ebm.diagnose(draws, energy))
        mcmc.print_summary()
        if options.output is not None:
            ebm.diagnostics.save_datatree(ebm.to_datatree(draws), options.output, overwrite=True)
            print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
