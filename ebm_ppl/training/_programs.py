"""Compiled programs of a training run, looked up by what they compute."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from ebm_ppl.energies._program import Program, trace_program


@functools.partial(jax.jit, static_argnums=0)
def _run(program: Program, *arguments: Array) -> tuple[Array, ...]:
    return program(*arguments)


class Programs:
    """Calls functions of pytrees as compiled programs that equal functions share.

    A function is traced once for the shapes of its arguments; arrays that it closes over become arguments, and the
    compiled code is looked up by the traced program. So a model, an objective or an optimiser that is defined afresh
    compiles nothing where it computes the same, and is seen where it computes something else. One object serves one
    run, in which everything that is no array stays the same.
    """

    def __init__(self) -> None:
        self._prepared: dict[Any, tuple[Program, tuple[Array, ...], Any, Any]] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """`function(*arguments, **options)`; what is no array in its result is that of the first call."""
        arrays, static = eqx.partition(arguments, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)
        key = (function, structure, tuple(map(jax.typeof, leaves)), tuple(sorted(options.items())))
        if key not in self._prepared:
            self._prepared[key] = _prepare(function, leaves, structure, static, options)
        program, constants, out_structure, out_static = self._prepared[key]
        outputs = _run(program, *constants, *leaves)
        return eqx.combine(jax.tree.unflatten(out_structure, outputs), out_static)


def _prepare(
    function: Callable[..., Any], leaves: list[Array], structure: Any, static: Any, options: dict[str, Any]
) -> tuple[Program, tuple[Array, ...], Any, Any]:
    seen: list[Any] = []

    def flat(*leaves: Array) -> tuple[Array, ...]:
        result = function(*eqx.combine(jax.tree.unflatten(structure, leaves), static), **options)
        arrays, rest = eqx.partition(result, eqx.is_array)
        outputs, out_structure = jax.tree.flatten(arrays)
        seen[:] = [out_structure, rest]
        return tuple(outputs)

    program, constants = trace_program(flat, *leaves)
    return program, constants, *seen
