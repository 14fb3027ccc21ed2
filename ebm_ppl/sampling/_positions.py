"""Starting positions: the user's, checked; or ours, redrawn where the energy is not finite."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ebm_ppl._types import PRNGKey
from ebm_ppl.energies._check_start import check_coordinates, event_rows, finite_coordinates
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy

RADIUS = 2.0  # NumPyro's and Stan's: uniform in [-2, 2] in every coordinate
MAX_REDRAWS = 10
POSITIONS, SEARCHES = 2**31 + 2, 2**31 + 3  # folded into the run's key, beyond every chain number


def starting_positions(
    energy: CoordinateEnergy,
    initial_positions: object,
    condition: Array | None,
    *,
    key: PRNGKey,
    num_chains: int,
    needs_gradient: bool = True,
) -> tuple[Array, int]:
    """Checked coordinates of `(chain, ...)` positions, and how often some of them had to be redrawn.

    Raises:
        EnergyShapeError: `initial_positions` is not `(num_chains, *event_shape)`.
        InvalidDataError: some of `initial_positions` lie outside the support.
        NonFiniteEnergyError: the energy, or a gradient that is needed, is not finite at a given position, or at ours
            after 10 redraws.
    """
    if initial_positions is not None:
        # BlackJAX draws its noise in JAX's default precision: with x64 enabled, float32 positions become float64.
        positions = event_rows(energy, "initial_positions", initial_positions, num_chains)
        if positions.dtype == jnp.float32:
            positions = positions.astype(jnp.result_type(float))
        check_coordinates(energy, positions, condition, needs_gradient=needs_gradient)
        return positions, 0
    positions = _draw(key, 0, num_chains, energy.event_shape)
    redraws = 0
    while redraws < MAX_REDRAWS:
        finite = np.asarray(finite_coordinates(energy, positions, condition, needs_gradient=needs_gradient))
        if finite.all():
            break
        redraws += 1
        fresh = _draw(key, redraws, num_chains, energy.event_shape)
        keep = jnp.asarray(finite).reshape(-1, *(1 for _ in energy.event_shape))
        positions = jnp.where(keep, positions, fresh)
    check_coordinates(energy, positions, condition, needs_gradient=needs_gradient)
    return positions, redraws


def _draw(key: PRNGKey, attempt: int, num_chains: int, event_shape: tuple[int, ...]) -> Array:
    """Chain c's position depends on the key, c and the attempt only: not on how many chains there are."""
    key = jax.random.fold_in(jax.random.fold_in(key, POSITIONS), attempt)
    keys = jax.vmap(lambda chain: jax.random.fold_in(key, chain))(jnp.arange(num_chains, dtype=jnp.uint32))
    size = math.prod(event_shape)
    flat = jax.vmap(lambda k: jax.random.uniform(k, (size,), minval=-RADIUS, maxval=RADIUS))(keys)
    return flat.reshape(num_chains, *event_shape)
