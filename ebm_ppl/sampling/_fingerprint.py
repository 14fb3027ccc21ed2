"""What a run is, as JSON: so that a checkpoint is never continued with another energy, key or setting."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ebm_ppl._files import sha256
from ebm_ppl.energies import Target
from ebm_ppl.kernels import AbstractKernel


def target_fingerprint(target: Target) -> dict[str, str]:
    """The traced program of an energy, the values of all arrays it uses, and its support, each as a hash or text."""
    coordinates = target.coordinates
    leaves = [leaf for leaf in jax.tree.leaves((target.energy, coordinates.support)) if eqx.is_array_like(leaf)]
    return {
        "program": target.program_fingerprint,
        "arrays": array_fingerprint(*leaves),
        "event_shape": repr(coordinates.event_shape),
        "support": str(jax.tree.structure(coordinates.support)),
    }


def kernel_fingerprint(kernel: AbstractKernel) -> dict[str, Any]:
    """Class and hyperparameters of a kernel."""
    fields = {field.name: getattr(kernel, field.name) for field in dataclasses.fields(kernel)}
    return {"class": type(kernel).__name__} | {name: _as_json(value) for name, value in fields.items()}


def _as_json(value: Any) -> Any:
    """Numbers, arrays and names as themselves, anything else as a text."""
    if isinstance(value, str):
        return value
    return np.asarray(value).tolist() if eqx.is_array_like(value) else describe(value)


def array_fingerprint(*arrays: Any) -> str:
    """SHA-256 of dtypes, shapes and bytes."""
    parts = []
    for array in arrays:
        is_key = isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        host = np.asarray(jax.random.key_data(array) if is_key else array)
        parts.append(f"{host.dtype.str}{host.shape}".encode() + np.ascontiguousarray(host).tobytes())
    return sha256(b"|".join(parts))


def describe(value: Any, active: tuple[int, ...] = ()) -> str:
    """A text that is the same in another process for the same value, and another one for another value.

    Functions are described by name, bytecode, constants and what they close over: a different lambda of the same
    name is a different energy.

    Args:
        value: anything.
        active: ids of what is being described already: a recursive function closes over itself.
    """
    if id(value) in active:
        return "itself"
    inner = functools.partial(describe, active=(*active, id(value)))
    return _describe_plain(value) or _describe_container(value, inner) or _describe_callable(value, inner)


def _describe_plain(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray):
        return array_fingerprint(value)
    return repr(value) if isinstance(value, str | bytes | int | float | complex | np.generic | None) else ""


def _describe_container(value: Any, inner: Callable[[Any], str]) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{inner(key)}:{inner(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"{_name(type(value))}(" + ",".join(map(inner, value)) + ")"
    if isinstance(value, frozenset):
        return "frozenset(" + ",".join(sorted(map(inner, value))) + ")"  # sets have no order
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
        return f"{_name(type(value))}(" + ",".join(map(inner, fields)) + ")"
    return ""


def _describe_callable(value: Any, inner: Callable[[Any], str]) -> str:
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inside = ",".join(map(inner, (*cells, *(value.__defaults__ or ()))))
        return f"{value.__module__}.{value.__qualname__}({_describe_code(value.__code__)};{inside})"
    if isinstance(value, types.CodeType):
        return _describe_code(value)
    if hasattr(value, "__wrapped__"):
        return inner(value.__wrapped__)
    return _name(value) if callable(value) else str(type(value))


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"


def _describe_code(code: types.CodeType) -> str:
    # The first constant is the docstring, or None.
    named = enumerate(code.co_consts)
    constants = ",".join(describe(constant) for index, constant in named if index or not isinstance(constant, str))
    return sha256(code.co_code + repr(code.co_names).encode() + constants.encode())
