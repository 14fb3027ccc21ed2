"""Run in a process of its own, whose number of devices is set before JAX starts: saves draws of three runs."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import ebm_ppl as ebm


def main(processes, process_id, port, out):
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process_id)
    mesh = jax.make_mesh((jax.device_count(),), ("chains",)) if jax.device_count() > 1 else None
    settings = {"num_chains": 8, "num_warmup": 0, "num_samples": 40, "progress_bar": False, "mesh": mesh}
    elementwise = ebm.FunctionEnergy(lambda x: jnp.sum(jnp.cosh(x) - 0.3 * x), (3,))
    network = ebm.MLPEnergy((3,), width=16, depth=1, key=jax.random.key(1))
    network = ebm.SumEnergy(network, ebm.energies.Gaussian(jnp.zeros(3), jnp.eye(3)))
    runs = {"mala": (elementwise, ebm.MALA(0.1)), "nuts": (elementwise, ebm.NUTS(0.3)), "mlp": (network, ebm.MALA(0.1))}
    key = jax.random.key(0)
    draws = {name: ebm.sample(energy, kernel, key=key, **settings).positions for name, (energy, kernel) in runs.items()}
    if process_id == 0:
        np.savez(out, **draws)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
