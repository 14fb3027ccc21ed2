"""What a training run is, as hashes: so that a checkpoint is never continued with another model, data or setting."""

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


def tree_fingerprint(tree: Any) -> dict[str, str]:
    """Values of the arrays, and everything else: structure, settings and code."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]
    return {"values": arrays_fingerprint(arrays), "structure and code": sha256(describe(tree).encode())}


def arrays_fingerprint(arrays: Any) -> str:
    """SHA-256 of dtypes, shapes and bytes of all arrays of a tree."""
    parts = []
    for leaf in jax.tree.leaves(arrays):
        host = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        parts.append(f"{host.dtype.name}{host.shape}".encode() + np.ascontiguousarray(host).tobytes())
    return sha256(b"|".join(parts))


def describe(value: Any, active: tuple[int, ...] = (), *, with_values: bool = False) -> str:
    """A text that is the same in another process for the same value, and another one for another value.

    Arrays are described by shape and dtype, those that functions close over by their values too. Functions by name,
    bytecode, constants, defaults and what they close over, which for optax optimisers are their settings; objects of
    classes by class, code and fields.
    """
    if id(value) in active:
        return "itself"
    inner = functools.partial(describe, active=(*active, id(value)), with_values=with_values)
    if with_values and eqx.is_array(value):
        return arrays_fingerprint(value)
    return _describe_plain(value) or _describe_container(value, inner) or _describe_callable(value, inner)


def _describe_plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return repr(float(value))  # optax's schedules turn their own integers into floats when first called
    if value is None or isinstance(value, str | bytes | int | float | complex | np.generic):
        return repr(value)
    return f"{value.dtype}{value.shape}" if eqx.is_array(value) else ""


def _describe_container(value: Any, inner: Callable[[Any], str]) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{inner(key)}:{inner(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"{_name(type(value))}(" + ",".join(map(inner, value)) + ")"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        fields = ",".join(f"{name}={inner(getattr(value, name, None))}" for name in names)
        return f"{_name(type(value))}[{_describe_class(type(value))}]({fields})"
    return ""


def _describe_callable(value: Any, inner: Callable[..., str]) -> str:
    if isinstance(value, functools.partial):
        return f"partial({inner(value.func)},{inner(value.args)},{inner(value.keywords)})"
    if isinstance(value, types.MethodType):
        return f"{inner(value.__func__)}.of.{inner(value.__self__)}"
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = (*cells, *(value.__defaults__ or ()), value.__kwdefaults__)
        closed = ",".join(inner(part, with_values=True) for part in parts)
        return f"{value.__module__}.{value.__qualname__}({_describe_code(value.__code__)};{closed})"
    if hasattr(value, "__wrapped__") and not isinstance(value, type | types.ModuleType):
        return inner(value.__wrapped__)
    return _name(value) if hasattr(value, "__name__") else _name(type(value))


def _describe_class(cls: type) -> str:
    """The code of a class of the user's; ours and the libraries' are told by their versions."""
    if cls.__module__.partition(".")[0] in ("ebm_ppl", "equinox", "jax", "numpyro", "flowjax", "optax"):
        return ""
    methods = [getattr(part, "method", part) for _, part in sorted(vars(cls).items())]
    unwrapped = [getattr(part, "__wrapped__", part) for part in methods]
    return sha256("".join(_describe_code(part.__code__) for part in unwrapped if hasattr(part, "__code__")).encode())


def _describe_code(code: types.CodeType) -> str:
    constants = ",".join(
        _describe_constant(constant)
        for index, constant in enumerate(code.co_consts)
        if index or not isinstance(constant, str)  # the first one is the docstring, or None
    )
    return sha256(code.co_code + repr(code.co_names).encode() + constants.encode())


def _describe_constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _describe_code(value)
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)  # sets have no order


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
