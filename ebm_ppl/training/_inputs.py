"""What comes into training: the data as one batch, the model as what is trained and the rest."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ebm_ppl._checks import check_data
from ebm_ppl.energies import AbstractEnergy, ClampedEnergy
from ebm_ppl.energies._check_start import check_events
from ebm_ppl.energies._trace import check_value
from ebm_ppl.errors import EnergyShapeError
from ebm_ppl.objectives import AbstractObjective, Batch, energy_of


def check_batch(model: Any, objective: AbstractObjective, data: Any, condition: Any) -> Batch:
    """All data as one batch; what the user passed is checked before anything is compiled."""
    batch = check_rows(model, objective, data, condition)
    energy = energy_of(model)
    x = batch[0] if isinstance(batch, tuple) else batch
    told = None if energy.condition_shape is None else jax.ShapeDtypeStruct(energy.condition_shape, x.dtype)
    check_value(energy, jax.ShapeDtypeStruct(energy.event_shape, x.dtype), told)
    return batch


def check_rows(model: Any, objective: AbstractObjective, data: Any, condition: Any, prefix: str = "") -> Batch:
    """Data and condition, one row for each event, by shape, dtype and finiteness."""
    energy = energy_of(model)
    if isinstance(energy.event_shape, Mapping):
        raise NotImplementedError(
            f"objectives take energies of array events; this one has the parts {list(energy.event_shape)}."
        )
    x = check_data(f"{prefix}data", data, energy.event_shape)
    check_events(f"{prefix}data", x, energy)
    shape = objective.data_condition_shape(model)
    if shape is None and condition is None:
        return x
    if shape is None:
        raise ValueError(f"`{prefix}condition` was given, but the energy takes none from the data.")
    if condition is None:
        raise ValueError(
            f"the energy is conditional: `{prefix}condition` is needed, with a row of shape {shape} for each event."
        )
    condition = check_data(f"{prefix}condition", condition, shape)
    if condition.shape[0] != x.shape[0]:
        raise EnergyShapeError(
            f"`{prefix}condition` must have one row per event, {x.shape[0]} as `data`; got {condition.shape[0]}."
        )
    return x, condition


def without_nonfinite(data: Any, condition: Any) -> tuple[Any, Any, int]:
    """Data and condition without the rows in which either has a NaN or an infinity, and how many those are.

    What cannot be looked at row by row is left to the checks that follow.
    """
    rows = [None if part is None else np.asarray(part) for part in (data, condition)]
    given = [part for part in rows if part is not None]
    if any(part.ndim == 0 or part.dtype.kind != "f" or len(part) != len(given[0]) for part in given):
        return data, condition, 0
    good = np.all([np.isfinite(part.reshape(len(part), -1)).all(axis=1) for part in given], axis=0)
    if good.all():
        return data, condition, 0
    data, condition = (None if part is None else part[good] for part in rows)
    return data, condition, int(np.count_nonzero(~good))


def _is_bound(model: Any, path: Any) -> bool:
    """Whether the leaf at `path` belongs to the support of an energy, or to what is known of its events."""
    node = model
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            if isinstance(node, AbstractEnergy) and key.name == "support":
                return True
            if isinstance(node, ClampedEnergy) and key.name == "values":
                return True
            node = getattr(node, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey | jax.tree_util.DictKey):
            node = node[key.idx if isinstance(key, jax.tree_util.SequenceKey) else key.key]
        else:
            return False
    return False


def partition(model: Any, trainable: Any) -> tuple[Any, Any]:
    """The arrays to train, and the rest. Bounds of supports are never trained: they say where densities live."""
    chosen, frozen = eqx.partition(model, eqx.is_inexact_array if trainable is None else trainable)
    params, rest = eqx.partition(chosen, eqx.is_inexact_array)
    free = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf is not None and not _is_bound(model, path), params)
    params, bounds = eqx.partition(params, free)
    rest = eqx.combine(rest, bounds)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"nothing to train: {type(model).__name__} has no floating array"
            + (" that `trainable` selects." if trainable is not None else "; Python floats are constants.")
        )
    return params, eqx.combine(rest, frozen)
