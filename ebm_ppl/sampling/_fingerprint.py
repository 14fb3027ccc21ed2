"""What a run is, as JSON: so that a checkpoint is never continued with another energy, key or setting."""

import dataclasses
import types
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ebm_ppl._files import sha256
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.kernels import AbstractKernel


def energy_fingerprint(energy: AbstractEnergy) -> dict[str, str]:
    """Structure, parameter values and code of an energy, each as a hash (or as text where it is short)."""
    leaves = jax.tree_util.tree_leaves_with_path(energy)
    arrays = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves if eqx.is_array(leaf)]
    others = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves if not eqx.is_array(leaf)]
    shapes = ";".join(f"{path}:{leaf.dtype}{leaf.shape}" for path, leaf in arrays)
    code = ";".join(f"{path}:{describe(leaf)}" for path, leaf in others)
    return {
        "class": f"{type(energy).__module__}.{type(energy).__qualname__}",
        "structure": sha256(f"{shapes}|{energy.event_shape}|{energy.condition_shape}".encode()),
        "parameters": array_fingerprint(*[leaf for _, leaf in arrays]),
        "code": sha256((code + describe(type(energy).__call__)).encode()),
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
        host = np.asarray(array)
        parts.append(f"{host.dtype.str}{host.shape}".encode() + np.ascontiguousarray(host).tobytes())
    return sha256(b"|".join(parts))


def describe(value: Any) -> str:
    """A text that is the same in another process for the same value, and another one for another value.

    Functions are described by name, bytecode, constants and what they close over: a different lambda of the same
    name is a different energy.
    """
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inside = ",".join(describe(part) for part in (*cells, *(value.__defaults__ or ())))
        return f"{value.__module__}.{value.__qualname__}({_describe_code(value.__code__)};{inside})"
    if isinstance(value, types.CodeType):
        return _describe_code(value)
    if isinstance(value, jax.Array | np.ndarray):
        return array_fingerprint(value)
    if hasattr(value, "__wrapped__"):
        return describe(value.__wrapped__)
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
    return (
        repr(value)
        if isinstance(value, str | bytes | int | float | complex | bool | tuple | None)
        else str(type(value))
    )


def _describe_code(code: types.CodeType) -> str:
    constants = ",".join(describe(constant) for constant in code.co_consts if not isinstance(constant, str))
    return sha256(code.co_code + repr(code.co_names).encode() + constants.encode())
