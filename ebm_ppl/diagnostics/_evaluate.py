"""Energies and scores at stored draws."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from ebm_ppl._checks import check_condition, check_floating
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy, coordinate_energy
from ebm_ppl.energies._coordinates import Coordinates
from ebm_ppl.energies._traced import traced
from ebm_ppl.errors import EnergyShapeError

BATCH = 1024  # draws evaluated at a time, over all chains


def positions_of(dataset: xr.Dataset, event_shape: Any) -> Any:
    """The one variable whose events have this shape, as `(chain, draw, *event)`; named parts as a dictionary.

    Raises:
        EnergyShapeError: no variable has it, or more than one; a named part is missing or has another shape.
    """
    if isinstance(event_shape, Mapping):
        return {name: _part_of(dataset, name, shape) for name, shape in event_shape.items()}
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


def _part_of(dataset: xr.Dataset, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in dataset.data_vars:
        raise EnergyShapeError(f"the energy has a part {name!r}; the draws have {sorted(map(str, dataset.data_vars))}.")
    array = dataset[name].transpose("chain", "draw", ...).values
    if array.shape[2:] != shape:
        raise EnergyShapeError(f"part {name!r} must have shape {shape}; the draws have {array.shape[2:]}.")
    return array


def coordinates_of(energy: AbstractEnergy, positions: Any) -> tuple[CoordinateEnergy, np.ndarray]:
    """The energy in its real coordinates, and draws in them; infinite at an edge of the support."""
    parts = jax.tree.map(lambda part: check_floating("draws", part), positions)
    inner = coordinate_energy(energy, jax.tree.leaves(parts)[0].dtype)
    if inner.coordinates.is_identity:
        return inner, np.asarray(positions)
    return inner, np.asarray(_to_coordinates(inner.coordinates, parts))


@eqx.filter_jit
def _to_coordinates(coordinates: Coordinates, positions: Any) -> Array:
    keys = jax.random.split(jax.random.key(0), jax.tree.leaves(positions)[0].shape[:2])
    return jax.vmap(jax.vmap(coordinates.to_coordinates))(positions, keys)


def energies_at(energy: AbstractEnergy, positions: Any, condition: Any) -> tuple[np.ndarray, float]:
    """E at `(chain, draw, *event)` as float64 `(chain, draw)`, and the rounding unit it was computed with."""
    on_device = jax.tree.map(lambda part: check_floating("draws", part), positions)
    first = jax.tree.leaves(on_device)[0]
    checked = check_condition(condition, energy.condition_shape, len(first))
    values = _energies(_traced_for(energy, first.dtype), on_device, checked)
    return np.asarray(values, np.float64), float(np.finfo(first.dtype).eps)


def _traced_for(energy: AbstractEnergy, dtype: Any) -> AbstractEnergy:
    """The energy as it is now: compiled code is looked up by its traced program. Half precision is not traced."""
    return traced(energy, dtype) if dtype in (np.float32, np.float64) else energy


def scores_at(energy: AbstractEnergy, positions: np.ndarray, condition: Any) -> Float[np.ndarray, "chain draw dim"]:
    """-grad E at `(chain, draw, *event)`, events flattened, in float64."""
    checked = check_condition(condition, energy.condition_shape, len(positions))
    scores = np.asarray(_scores(energy, check_floating("draws", positions), checked), np.float64)
    return scores.reshape(*scores.shape[:2], -1)


@eqx.filter_jit
def _energies(
    energy: AbstractEnergy, positions: Any, condition: Float[Array, "..."] | None
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
    positions: Any,
    condition: Float[Array, "..."] | None,
) -> Float[Array, "chain draw ..."]:
    """`function(x, condition)` at every draw, in batches; `condition` may bring one entry per chain."""
    size = max(1, BATCH // len(jax.tree.leaves(positions)[0]))

    def one_chain(draws: Any, given: Float[Array, "..."] | None) -> Float[Array, "draw ..."]:
        return jax.lax.map(lambda x: function(x, given), draws, batch_size=size)

    per_chain = condition is not None and condition.shape != energy.condition_shape
    return jax.vmap(one_chain, in_axes=(0, 0 if per_chain else None))(positions, condition)
