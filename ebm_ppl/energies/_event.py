"""What every energy checks at trace time: the event and condition it is given, the scalar it returns."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ebm_ppl._types import Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.errors import EnergyDtypeError, EnergyShapeError


def compute_dtype(x: Any) -> np.dtype:
    """The dtype an energy of `x` is computed in: that of `x`, but float32 for half precision.

    Sums over an event lose all digits in bfloat16 or float16, hence the exception.
    """
    dtypes = {np.dtype(jnp.result_type(leaf)) for leaf in (x.values() if isinstance(x, Mapping) else (x,))}
    for dtype in dtypes:
        if not jnp.issubdtype(dtype, jnp.floating):
            raise EnergyDtypeError(f"an event must be floating-point; got dtype {dtype}: cast it with .astype(float).")
    return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


def event_structure(event_shape: Any, dtype: Any) -> Any:
    """One abstract event of this shape: a `jax.ShapeDtypeStruct`, or a dictionary of them."""
    if isinstance(event_shape, Mapping):
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in event_shape.items()}
    return jax.ShapeDtypeStruct(event_shape, dtype)


def check_event(energy: AbstractEnergy, x: Any, condition: Any = None) -> np.dtype:
    """Shapes and dtypes of one event and condition against what `energy` declares; returns `compute_dtype(x)`.

    Costs nothing at run time: it looks at static shapes only.
    """
    name = type(energy).__name__
    if isinstance(energy.event_shape, Mapping):
        _check_parts(name, energy.event_shape, x)
    elif isinstance(x, Mapping):
        raise EnergyShapeError(
            f"`{name}` is the energy of one event of shape {energy.event_shape}; got a dictionary of {sorted(x)}."
        )
    elif jnp.shape(x) != energy.event_shape:
        raise EnergyShapeError(
            f"`{name}` is the energy of one event of shape {energy.event_shape}; got {jnp.shape(x)}: "
            "use jax.vmap for a batch."
        )
    dtype = compute_dtype(x)
    check_condition(name, energy.condition_shape, condition)
    return dtype


def _check_parts(name: str, event_shape: Mapping[str, tuple[int, ...]], x: Any) -> None:
    parts = list(event_shape)
    if not isinstance(x, Mapping):
        raise EnergyShapeError(
            f"`{name}` is the energy of one event with the parts {parts}; got an array of shape {jnp.shape(x)}: pass a "
            "dictionary."
        )
    if set(x) != set(parts):
        raise EnergyShapeError(f"`{name}` is the energy of one event with the parts {parts}; got {sorted(x)}.")
    for part, shape in event_shape.items():
        if jnp.shape(x[part]) != shape:
            raise EnergyShapeError(
                f"`{name}` needs part {part!r} of an event in shape {shape}; got {jnp.shape(x[part])}: use jax.vmap "
                "for a batch."
            )


def check_condition(name: str, condition_shape: tuple[int, ...] | None, condition: Any) -> None:
    """One condition against the declared shape; None where the energy is unconditional."""
    if condition_shape is None:
        if condition is not None:
            raise EnergyShapeError(f"`{name}` takes no condition; got one of shape {jnp.shape(condition)}.")
    elif condition is None:
        raise EnergyShapeError(f"`{name}` needs a condition of shape {condition_shape}; got None.")
    elif jnp.shape(condition) != condition_shape:
        raise EnergyShapeError(
            f"`{name}` needs a condition of shape {condition_shape}; got {jnp.shape(condition)}: "
            "use jax.vmap for a batch."
        )


def as_scalar(name: str, value: Any, dtype: np.dtype) -> Scalar:
    """`value` as a floating scalar array, or the error that says what came instead and how to mend it."""
    if isinstance(value, (bool, int, float)):
        return jnp.asarray(value, dtype)
    if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
        raise EnergyShapeError(f"`{name}` must return one floating scalar, shape (); got {describe(value)}.")
    if value.shape != ():
        cure = "apply .squeeze()" if value.size == 1 else "sum over the event, and use jax.vmap for batches"
        raise EnergyShapeError(f"`{name}` must return one floating scalar, shape (); got shape {value.shape}: {cure}.")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise EnergyDtypeError(f"`{name}` must return a floating scalar; got dtype {value.dtype}.")
    return jnp.asarray(value)


def describe(value: Any) -> str:
    """A short name for something that is not an array."""
    if value is None:
        return "None: the function has no return statement"
    if isinstance(value, (tuple, list, dict)):
        return f"a {type(value).__name__} of {len(value)}: return the energy alone"
    return f"a {type(value).__name__}"


def evaluate(energy: AbstractEnergy, x: Any, condition: Array | None = None) -> Scalar:
    """E(x; condition), checked to be a floating scalar: for energies that users write themselves."""
    return as_scalar(type(energy).__name__, energy(x, condition), compute_dtype(x))
