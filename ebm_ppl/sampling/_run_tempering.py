"""The pure, jit-able core of a tempered run on a ladder that stays as it is."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey
from ebm_ppl.energies import AbstractEnergy, AbstractReferenceEnergy
from ebm_ppl.energies._coordinate_energy import coordinate_energy
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.sampling._parallel_tempering import finish_ladders, run_iterations, start_ladders
from ebm_ppl.sampling._run_chains import chain_keys, tunes
from ebm_ppl.sampling._tempering_core import Path


def run_tempering(
    energy: AbstractEnergy,
    reference: AbstractReferenceEnergy,
    kernel: AbstractKernel,
    inverse_temperatures: Float[Array, " level"],
    *,
    key: PRNGKey,
    num_chains: int,
    num_warmup: int,
    num_samples: int,
    num_steps: int,
    condition: Any = None,
) -> tuple[dict[str, Array], Array]:
    """Tempering without host code: it may be jitted, vmapped and called inside other programs.

    As `parallel_tempering`, except that the ladder is not respaced: warm-up tunes the step size of every level only.

    Returns:
        What every iteration recorded, `(chain, iteration, ...)` by name: `position` (real coordinates), `potentials`,
        `swap_acceptance` and the statistics of the target level; and the round trips of each chain.
    """
    dtype = inverse_temperatures.dtype
    kernel = with_step_size(kernel, jnp.asarray(kernel.step_size, dtype))
    path = Path(coordinate_energy(energy, dtype), reference, condition, jnp.ones((), dtype))
    keys = chain_keys(key, num_chains)
    tune = tunes(kernel, num_warmup)
    ensembles = start_ladders(kernel, path, inverse_temperatures, keys, tune=tune)
    first = jnp.zeros((), jnp.int32)
    if num_warmup:
        count = jnp.asarray(num_warmup, jnp.int32)
        ensembles, _ = run_iterations(
            kernel, path, inverse_temperatures, ensembles, keys, first, count, capacity=num_warmup, num_steps=num_steps
        )
        first = count
    if tune:
        ensembles = finish_ladders(kernel, ensembles)
    before, count = ensembles.round_trips, jnp.asarray(num_samples, jnp.int32)
    ensembles, records = run_iterations(
        kernel, path, inverse_temperatures, ensembles, keys, first, count, capacity=num_samples, num_steps=num_steps
    )
    return jax.tree.map(lambda rows: jnp.swapaxes(rows, 0, 1), records), ensembles.round_trips - before
