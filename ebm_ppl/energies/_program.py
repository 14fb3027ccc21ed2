"""A traced function, identified by what it computes: its program and the shapes of its arrays, not a Python object."""

import hashlib
import itertools
import pathlib
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_jaxpr
from jax.extend.core import Jaxpr, Literal, Var
from jaxtyping import Array

CALLBACKS = frozenset({"pure_callback", "io_callback", "debug_callback", "python_callback", "xla_ffi_call", "ffi_call"})
CUSTOM_RULES = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"})
NAMES_ONLY = frozenset({"name", "debug_info", "debug"})
_SERIAL = itertools.count()
MAX_ORDER = 2  # of derivatives by which custom rules are told apart: samplers take first ones, curvatures second
# A value of it is part of the key of JAX's own caches of traces: under a fresh one functions that JAX has traced before
# (bodies of loops, compiled helpers) are traced again, and read their globals and closures as they are now.
_JAX = str(pathlib.Path(str(jax.__file__)).parent)
_FRESH = jax.make_user_context(None) if hasattr(jax, "make_user_context") else None


class Program:
    """A function of arrays as JAX traced it. Two programs are equal where they compute the same from their arguments.

    Arrays that the function closed over, or found in globals, are arguments too: the first ones. Equality and hash
    read the canonical text of the jaxpr, so a program may be a static field of a module and the key of a cache of
    compiled code: an equal function that was defined afresh compiles nothing, and a changed one is another program.

    A function that calls back into Python computes what the program does not show: such a program equals itself only.

    Attributes:
        fingerprint: SHA-256 of the canonical text, hexadecimal; the same in every process. It names the computation
            and the shapes and dtypes of all arguments, and none of their values.
        has_callback: whether the program calls back into Python.
        is_opaque: whether the text does not tell what the program computes; then it equals itself only.
        num_constants: how many leading arguments are arrays that the function closed over.
    """

    __slots__ = ("_jaxpr", "fingerprint", "has_callback", "is_opaque", "num_constants")

    def __init__(self, jaxpr: Jaxpr, num_constants: int, derivatives: "_Text | None" = None) -> None:
        self._jaxpr = jaxpr
        self.num_constants = num_constants
        self.has_callback = any(eqn.primitive.name in CALLBACKS for eqn in _equations(jaxpr))
        text = _Text()
        text.jaxpr(jaxpr)
        lines = text.lines + ([] if derivatives is None else derivatives.lines)
        self.is_opaque = self.has_callback or text.opaque or (derivatives is not None and derivatives.opaque)
        if self.is_opaque:
            lines = [*lines, str(next(_SERIAL)), str(time.time_ns())]
        self.fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def __call__(self, *arguments: Array) -> tuple[Array, ...]:
        """The outputs, from the flat arguments: the constants first."""
        constants, rest = arguments[: self.num_constants], arguments[self.num_constants :]
        return tuple(map(jnp.asarray, eval_jaxpr(self._jaxpr, constants, *rest)))  # a literal is no array yet

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Program({self.fingerprint[:12]})"


def trace_program(
    function: Callable[..., Any], *arguments: Any, differentiate: Sequence[int] = ()
) -> tuple[Program, tuple[Array, ...]]:
    """`function(*arguments)` as a program, and the arrays it closed over.

    Nothing is computed. Constants of nested compiled functions (`jax.jit` inside the function) count as closed over
    too. `function` must return one array or a flat tuple of arrays.

    Args:
        function: what to trace.
        arguments: arrays, or `jax.ShapeDtypeStruct` in their place.
        differentiate: the arguments that the program will be differentiated in; then custom derivative rules are part
            of its identity.

    Returns:
        The program, whose first `num_constants` arguments are the constants, and the constants.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> offset = jnp.arange(3.0)
        >>> x = jax.ShapeDtypeStruct((3,), jnp.float32)
        >>> first, constants = trace_program(lambda x: jnp.sum(x * offset), x)
        >>> second, _ = trace_program(lambda y: jnp.sum(y * offset), x)
        >>> first == second, first == trace_program(lambda x: jnp.sum(x + offset), x)[0]
        (True, False)
        >>> float(first(*constants, jnp.ones(3))[0])
        3.0
    """
    closed = _traced_afresh(function, arguments)
    nested = _nested_constants(closed.jaxpr)
    if nested:
        closed = _inlined(closed, arguments)
    constants = tuple(closed.consts)
    jaxpr = _without_constants(closed)
    derivatives = None
    if differentiate and _has_custom_rules(jaxpr):
        derivatives = _derivative_text(function, arguments, constants, tuple(differentiate))
    return Program(jaxpr, len(constants), derivatives), tuple(_as_array(constant) for constant in constants)


def _as_array(constant: Any) -> Array:
    return constant if isinstance(constant, Tracer | jax.Array) else jnp.asarray(np.asarray(constant))


def _without_constants(closed: Any) -> Jaxpr:
    """The program alone: kept for as long as compiled code is, it must not keep the arrays of its first use."""
    jaxpr = closed.jaxpr
    return Jaxpr(jaxpr, []) if hasattr(jaxpr, "consts") else jaxpr  # from JAX 0.12 on a jaxpr holds its constants


def _traced_afresh(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """The jaxpr of a function, without what JAX remembers of earlier traces of the user's functions in it.

    JAX keeps the traces of bodies of loops and of compiled helpers by the identity of their functions; where there are
    such, the function is traced again under a context that JAX has not seen.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    nested = (inner for eqn in _equations(closed.jaxpr) for _, inner in _inner_programs(eqn))
    if _FRESH is None or not any(map(_is_users, nested)):
        return closed
    with _FRESH(next(_SERIAL)):
        return jax.make_jaxpr(function)(*arguments)


def _is_users(jaxpr: Any) -> bool:
    """Whether a nested program was traced from a function outside JAX, whose own code reads no user's globals."""
    source = str(getattr(getattr(jaxpr, "jaxpr", jaxpr).debug_info, "func_src_info", ""))
    return _JAX not in source


def _has_custom_rules(jaxpr: Jaxpr) -> bool:
    return any(eqn.primitive.name in CUSTOM_RULES for eqn in _equations(jaxpr))


def _derivative_text(
    function: Callable[..., Any], arguments: Sequence[Any], constants: Sequence[Any], differentiate: tuple[int, ...]
) -> "_Text":
    """What tells custom derivative rules apart: the programs of the derivatives, and the arrays that only they hold.

    First and second derivatives are looked at; rules that differ in third ones only are not told apart.
    """
    text, known = _Text(), {_bytes_of(constant) for constant in constants}

    def summed(function: Callable[..., Any]) -> Callable[..., Array]:
        def total(*arguments: Any) -> Array:
            outputs = jax.tree.leaves(function(*arguments))
            return sum((jnp.sum(output) for output in outputs[1:]), start=jnp.sum(outputs[0]))

        return total

    for order in range(MAX_ORDER):
        function = jax.grad(summed(function), argnums=differentiate)
        try:
            closed = _traced_afresh(function, arguments)
        except (TypeError, ValueError, NotImplementedError):  # no reverse-mode derivative
            text.opaque = text.opaque or order == 0
            return text
        text.closed(closed)
        text.lines.extend(content for content in map(_bytes_of, closed.consts) if content not in known)
        if not _has_custom_rules(closed.jaxpr):
            return text
    return text


def _equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """All equations, those of nested programs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for _, inner in _inner_programs(eqn):
            yield from _equations(getattr(inner, "jaxpr", inner))


def _inner_programs(eqn: Any) -> Iterator[tuple[str, Any]]:
    for name, value in eqn.params.items():
        for part in jax.tree.leaves(value, is_leaf=_is_program):
            if _is_program(part):
                yield name, part


def _is_program(value: Any) -> bool:
    """Whether it is a jaxpr; before JAX 0.12 those with constants were of a class of their own."""
    return isinstance(getattr(value, "jaxpr", value), Jaxpr)


def _nested_constants(jaxpr: Jaxpr) -> bool:
    """Whether a compiled function inside holds arrays of its own."""
    nested = [eqn.params["jaxpr"] for eqn in jaxpr.eqns if eqn.primitive.name in ("jit", "pjit")]
    return any(inner.consts or _nested_constants(inner.jaxpr) for inner in nested)


def _inlined(closed: Any, arguments: Sequence[Any]) -> Any:
    """The same program with nested compiled functions spelt out, so that their constants are its own."""

    def run(jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        environment: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        environment |= dict(zip(jaxpr.invars, values, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else environment[atom]

        unnamed = jaxpr.debug_info.with_unknown_names()
        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            if eqn.primitive.name in ("jit", "pjit"):
                inner = eqn.params["jaxpr"]
                outputs = run(inner.jaxpr, inner.consts, inputs)
            else:
                variables = {
                    atom: value for atom, value in zip(eqn.invars, inputs, strict=True) if isinstance(atom, Var)
                }
                one = Jaxpr((), list(variables), eqn.outvars, [eqn], eqn.effects, unnamed)
                outputs = eval_jaxpr(one, (), *variables.values())
            environment |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    return jax.make_jaxpr(lambda *values: tuple(run(closed.jaxpr, closed.consts, values)))(*arguments)


class _Text:
    """The canonical text of a program: variables are numbered as they appear, literals are written as bytes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.opaque = False  # something was met whose text does not tell what it is

    def closed(self, closed: Any) -> None:
        """A program and the values of the constants that it still holds."""
        self.jaxpr(getattr(closed, "jaxpr", closed))
        self.lines.extend(_bytes_of(constant) for constant in getattr(closed, "consts", ()))

    def jaxpr(self, jaxpr: Jaxpr) -> None:
        """One line per equation."""
        numbers: dict[Var, int] = {}

        def name(atom: Any) -> str:
            if isinstance(atom, Literal):
                return f"{_bytes_of(atom.val)}:{atom.aval.str_short()}"
            return str(numbers.setdefault(atom, len(numbers)))

        inputs = [*jaxpr.constvars, *jaxpr.invars]
        self.lines.append("{" + ",".join(f"{name(var)}:{_type(var.aval)}" for var in inputs))
        for eqn in jaxpr.eqns:
            self.lines.append(eqn.primitive.name + "(" + ",".join(name(atom) for atom in eqn.invars) + ")")
            has_program = any(True for _ in _inner_programs(eqn))
            for key in sorted(eqn.params):
                value = eqn.params[key]
                if has_program and callable(value) and not isinstance(value, type):
                    continue  # a rule, or the source, of the program that is written down here
                self.lines.append(key)
                self.value(key, value)
            self.lines.append("=" + ",".join(f"{name(var)}:{_type(var.aval)}" for var in eqn.outvars))
        self.lines.append("}" + ",".join(name(atom) for atom in jaxpr.outvars))

    def value(self, key: str, value: Any) -> None:
        """A parameter of an equation."""
        if _is_program(value):
            self.closed(value)
        elif isinstance(value, tuple | list):
            self.lines.append(f"{type(value).__name__}[{len(value)}")
            for part in value:
                self.value(key, part)
        elif isinstance(value, Mapping):
            self.lines.append(f"mapping[{len(value)}")
            for name in sorted(value, key=str):
                self.lines.append(str(name))
                self.value(key, value[name])
        elif isinstance(value, np.ndarray | jax.Array):
            self.lines.append(_bytes_of(value))
        elif key not in NAMES_ONLY:
            self._plain(value)

    def _plain(self, value: Any) -> None:
        text = repr(value)
        if callable(value) and not isinstance(value, type | np.dtype):
            text = _function_text(value)
        if " at 0x" in text or "{ lambda" in text or "Array(" in text:
            self.opaque = True
        self.lines.append(text)


def _function_text(value: Any) -> str:
    plain = isinstance(value, types.FunctionType) and value.__closure__ is None and "<" not in value.__qualname__
    plain = plain and value.__module__.partition(".")[0] in (
        "jax",
        "jaxlib",
    )  # a user's may be defined anew by its name
    builtin = isinstance(value, types.BuiltinFunctionType | np.ufunc)
    return f"{value.__module__}.{value.__qualname__}" if plain or builtin else repr(value)


def _type(aval: Any) -> str:
    weak = "*" if getattr(aval, "weak_type", False) else ""
    return aval.str_short() + weak


def _bytes_of(value: Any) -> str:
    if isinstance(value, Tracer):
        return f"tracer {value.aval} {id(value):x}"
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key {jax.random.key_impl(value)} {_bytes_of(jax.random.key_data(value))}"
    host = np.asarray(value)
    content = host.tobytes() if host.dtype != object else repr(value).encode()
    digest = content.hex() if len(content) <= 64 else hashlib.sha256(content).hexdigest()
    return f"{host.dtype}{host.shape}{digest}"
