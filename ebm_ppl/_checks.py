"""Checks of user input, in one place: each names the argument, what was expected and what came."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ebm_ppl.errors import EnergyDtypeError, EnergyShapeError, InvalidDataError, KeyArgumentError


def check_key(key: object, name: str = "key") -> Array:
    """`key` as one JAX key; legacy keys (`jax.random.PRNGKey`) are wrapped to typed ones with the same bits."""
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.shape == ():
                return key
            raise KeyArgumentError(f"`{name}` must be one key, got a batch of shape {key.shape}; pass {name}[0].")
        if key.dtype == jnp.uint32 and key.shape == (2,):
            return jax.random.wrap_key_data(key)
    got = f"{type(key).__name__} {key!r}" if not hasattr(key, "shape") else f"array {jax.typeof(key)}"
    raise KeyArgumentError(f"`{name}` must be a JAX key, got {got}; pass jax.random.key(0).")


def what_came(value: object) -> str:
    """`value` for a message that refuses its type: a class is called so, and how to make an instance is said."""
    if isinstance(value, type):
        return f"the class {value.__name__}: make an instance, {value.__name__}(...)"
    return type(value).__name__


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """`value` as an int >= `minimum`; bools and floats are refused."""
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, (bool, np.bool_)) or count < minimum:
        raise ValueError(f"`{name}` must be an integer >= {minimum}; got {value!r}.")
    return count


def check_positive(name: str, value: Any) -> None:
    """`value` must be a positive finite number (concrete values only: tracers pass)."""
    if isinstance(value, Tracer):
        return
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be positive; got {value!r}.") from None
    if not (np.all(np.isfinite(array)) and np.all(array > 0)):
        raise ValueError(f"`{name}` must be positive and finite; got {value!r}.")


def check_probability(name: str, value: Any) -> None:
    """`value` must be a number strictly between 0 and 1 (concrete values only: tracers pass)."""
    if isinstance(value, Tracer):
        return
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, (bool, np.bool_, str)) or not 0 < number < 1:
        raise ValueError(f"`{name}` must be between 0 and 1; got {value!r}.")


def check_event_shape(event_shape: Any, name: str = "event_shape") -> tuple[int, ...]:
    """`event_shape` as a tuple of positive ints; an int is refused with the cure."""
    if isinstance(event_shape, (int, np.integer)):
        raise TypeError(f"`{name}` must be a tuple of ints; got {event_shape!r}: write ({int(event_shape)},).")
    if not isinstance(event_shape, Sequence):
        raise TypeError(f"`{name}` must be a tuple of ints; got {event_shape!r}.")
    return tuple(check_count(name, size) for size in event_shape)


def check_floating(name: str, array: Any) -> Array:
    """`array` as a floating JAX array; integers, bools and complex numbers are refused; overflow on cast is too."""
    if not isinstance(array, jax.Array):
        try:
            host = np.asarray(array)
        except (TypeError, ValueError) as error:
            raise EnergyDtypeError(f"`{name}` must be a floating-point array; got {type(array).__name__}.") from error
        if host.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
            with np.errstate(over="ignore"):
                overflow = np.isfinite(host) & ~np.isfinite(host.astype(np.float32))
            if np.any(overflow):
                raise EnergyDtypeError(
                    f"`{name}` has float64 values beyond float32 (largest {np.max(np.abs(host[overflow])):.3g}); "
                    'enable jax.config.update("jax_enable_x64", True) or rescale.'
                )
            host = host.astype(np.float32)
        if host.dtype == object or host.dtype.kind not in "fiubc":
            raise EnergyDtypeError(f"`{name}` must be a floating-point array; got dtype {host.dtype}.")
        array = jnp.asarray(host)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise EnergyDtypeError(f"`{name}` must be floating-point; got dtype {array.dtype}: cast with .astype(float).")
    return array


def check_data(name: str, data: Any, event_shape: tuple[int, ...]) -> Array:
    """`data` as a finite floating array of shape `(n, *event_shape)` with n >= 1."""
    try:
        array = check_floating(name, data)
    except EnergyDtypeError as error:
        if np.asarray(data).dtype.kind == "O":
            raise InvalidDataError(f"`{name}` must be numeric; got an object array.") from error
        raise
    if array.ndim != len(event_shape) + 1 or array.shape[1:] != tuple(event_shape):
        expected = "(n, " + ", ".join(map(str, event_shape)) + ")" if event_shape else "(n,)"
        raise EnergyShapeError(f"`{name}` must have shape {expected}; got {array.shape}.")
    if array.shape[0] == 0:
        raise InvalidDataError(f"`{name}` is empty: shape {array.shape}; at least one event is needed.")
    check_finite(name, array)
    return array


def check_finite(name: str, array: Array) -> None:
    """Every entry of a concrete `array` must be finite; the count and the first bad index are named."""
    bad = ~np.isfinite(np.asarray(array, dtype=np.float64))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InvalidDataError(
            f"`{name}` has {int(bad.sum())} non-finite of {math.prod(bad.shape)} values, "
            f"the first at index {first}; remove or impute those rows."
        )


def check_condition(
    condition: Any, condition_shape: tuple[int, ...] | None, num_chains: int | None = None
) -> Array | None:
    """`condition` of shape `condition_shape`, or with one leading axis `num_chains`; None where none is due."""
    if condition_shape is None:
        if condition is not None:
            raise EnergyShapeError("`condition` was given, but the energy is unconditional (condition_shape is None).")
        return None
    if condition is None:
        raise EnergyShapeError(f"`condition` is missing: the energy is conditional, condition_shape {condition_shape}.")
    array = check_floating("condition", condition)
    allowed = [tuple(condition_shape)] + ([] if num_chains is None else [(num_chains, *condition_shape)])
    if array.shape not in allowed:
        raise EnergyShapeError(f"`condition` must have shape {' or '.join(map(str, allowed))}; got {array.shape}.")
    if not isinstance(array, Tracer):
        check_finite("condition", array)
    return array
