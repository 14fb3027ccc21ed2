"""Which inputs a value depends on, read off the traced program: nothing is computed."""

from collections.abc import Callable
from typing import Any

import jax
import numpyro  # noqa: F401  (before any of its submodules)
from jax.interpreters import partial_eval
from jaxtyping import PyTree
from numpyro.ops.provenance import track_deps_jaxpr


def dependencies(function: Callable[..., dict[str, Any]], inputs: dict[str, PyTree]) -> dict[str, frozenset[str]]:
    """For every output of `function(**inputs)` the names of the inputs it depends on.

    Two over-approximations are intersected. JAX's dead-code elimination follows loops and branches exactly, but keeps
    side effects (`jax.debug.print`) whatever they are good for; NumPyro's provenance ignores side effects, but mixes
    all variables of a loop.

    Args:
        function: called with keyword arguments `inputs`; returns a dict of pytrees of arrays.
        inputs: pytrees of arrays or of `jax.ShapeDtypeStruct`.
    """
    program, out_shape = jax.make_jaxpr(lambda values: function(**values), return_shape=True)(inputs)
    labels = [name for name in sorted(inputs) for _ in jax.tree.leaves(inputs[name])]
    coarse = track_deps_jaxpr(program.jaxpr, [frozenset({label}) for label in labels])
    found, first = {}, 0
    for name in sorted(out_shape):
        last = first + len(jax.tree.leaves(out_shape[name]))
        wanted = [first <= i < last for i in range(len(program.jaxpr.outvars))]
        _, used = partial_eval.dce_jaxpr(program.jaxpr, wanted)
        exact = {label for label, is_used in zip(labels, used, strict=True) if is_used}
        found[name] = frozenset(exact.intersection(*[frozenset().union(*coarse[first:last])]))
        first = last
    return found
