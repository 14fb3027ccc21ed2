"""Run in a process of its own, whose number of devices is set before JAX starts: saves draws of several runs."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC, NUTS

import ebm_ppl as ebm


def potential(x):
    return jnp.sum(jnp.cosh(x) - 0.3 * x)


def main(processes, process_id, port, out):
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process_id)
    mesh = jax.make_mesh((jax.device_count(),), ("chains",)) if jax.device_count() > 1 else None
    elementwise = ebm.FunctionEnergy(potential, (3,))
    network = ebm.MLPEnergy((3,), width=16, depth=1, key=jax.random.key(1))
    network = ebm.SumEnergy(network, ebm.energies.Gaussian(jnp.zeros(3), jnp.eye(3)))
    runs = {
        "mala": (elementwise, ebm.MALA(0.1), 0),
        "nuts": (elementwise, ebm.NUTS(0.3), 0),
        "warmed": (elementwise, ebm.HMC(0.3), 100),
        "mlp": (network, ebm.MALA(0.1), 0),
    }
    settings = {"num_chains": 8, "num_samples": 40, "progress_bar": False, "mesh": mesh, "key": jax.random.key(0)}
    draws = {
        name: ebm.sample(energy, kernel, num_warmup=num_warmup, **settings).positions
        for name, (energy, kernel, num_warmup) in runs.items()
    }
    settings |= {"num_samples": 4000, "num_warmup": 0}  # of many chunks, on whose lengths all processes must agree
    draws["long"] = ebm.sample(elementwise, ebm.MALA(0.1), **settings).positions
    for name, kernel in (
        ("blackjax", ebm.BlackJAXKernel(potential_fn=potential)),
        ("numpyro", NUTS(potential_fn=potential)),
    ):
        method = ebm.infer.shard_chains(mesh)
        mcmc = MCMC(kernel, num_warmup=40, num_samples=20, num_chains=8, chain_method=method, progress_bar=False)
        mcmc.run(jax.random.key(0), init_params=jnp.zeros((8, 3)))
        half = mcmc.get_samples(group_by_chain=True)
        mcmc.post_warmup_state = mcmc.last_state
        mcmc.run(mcmc.post_warmup_state.rng_key)
        draws[name] = np.concatenate([half, mcmc.get_samples(group_by_chain=True)], axis=1)
    if process_id == 0:
        np.savez(out, **draws)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
