"""Energies and scores at stored draws."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from ebm_ppl._checks import check_condition, check_floating
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import EnergyShapeError

BATCH = 1024  # draws evaluated at a time, over all chains


def positions_of(dataset: xr.Dataset, event_shape: tuple[int, ...]) -> np.ndarray:
    """The one variable whose events have this shape, as `(chain, draw, *event)`.

    Raises:
        EnergyShapeError: no variable has it, or more than one.
    """
    arrays = {
        str(name): variable.transpose("chain", "draw", ...).values for name, variable in dataset.data_vars.items()
    }
    matching = [name for name, array in arrays.items() if array.shape[2:] == tuple(event_shape)]
    if len(matching) != 1:
        shapes = {name: array.shape[2:] for name, array in arrays.items()}
        raise EnergyShapeError(
            f"exactly one variable must have the energy's `event_shape` {tuple(event_shape)}; got {shapes}: "
            "pass a tree with that variable only, e.g. tree['posterior'].to_dataset()[['x']]."
        )
    return arrays[matching[0]]


def energies_at(energy: AbstractEnergy, positions: np.ndarray, condition: Any) -> tuple[np.ndarray, float]:
    """E at `(chain, draw, *event)` as float64 `(chain, draw)`, and the rounding unit it was computed with."""
    on_device = check_floating("draws", positions)
    checked = check_condition(condition, energy.condition_shape, len(positions))
    return np.asarray(_energies(energy, on_device, checked), np.float64), float(np.finfo(on_device.dtype).eps)


def scores_at(energy: AbstractEnergy, positions: np.ndarray, condition: Any) -> Float[np.ndarray, "chain draw dim"]:
    """-grad E at `(chain, draw, *event)`, events flattened, in float64."""
    checked = check_condition(condition, energy.condition_shape, len(positions))
    scores = np.asarray(_scores(energy, check_floating("draws", positions), checked), np.float64)
    return scores.reshape(*scores.shape[:2], -1)


@eqx.filter_jit
def _energies(
    energy: AbstractEnergy, positions: Float[Array, "chain draw ..."], condition: Float[Array, "..."] | None
) -> Float[Array, "chain draw"]:
    return _over_draws(energy, energy, positions, condition)


@eqx.filter_jit
def _scores(
    energy: AbstractEnergy, positions: Float[Array, "chain draw ..."], condition: Float[Array, "..."] | None
) -> Float[Array, "chain draw ..."]:
    return -_over_draws(jax.grad(energy), energy, positions, condition)


def _over_draws(
    function: Any,
    energy: AbstractEnergy,
    positions: Float[Array, "chain draw ..."],
    condition: Float[Array, "..."] | None,
) -> Float[Array, "chain draw ..."]:
    """`function(x, condition)` at every draw, in batches; `condition` may bring one entry per chain."""

    def one_chain(draws: Float[Array, "draw ..."], given: Float[Array, "..."] | None) -> Float[Array, "draw ..."]:
        return jax.lax.map(lambda x: function(x, given), draws, batch_size=max(1, BATCH // len(positions)))

    per_chain = condition is not None and condition.shape != energy.condition_shape
    return jax.vmap(one_chain, in_axes=(0, 0 if per_chain else None))(positions, condition)
