"""The score of an energy and its divergence in one forward sweep, without a backward pass in x."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float

from ebm_ppl._types import Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import evaluate
from ebm_ppl.energies._score import score

_NAMES = """
abs add add_any cbrt ceil clamp convert_element_type copy cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
integer_pow is_finite le log log1p logistic lt max min mul ne neg pow round rsqrt select_n sign sin sinh sqrt square
stop_gradient sub tan tanh
"""
ELEMENTWISE = frozenset(_NAMES.split())
CALLS = ("jit", "pjit", "closed_call", "core_call")  # whose body may take their place


class Taylor(NamedTuple):
    """A quantity as a function of x: its value, its derivatives along the directions, the sum of the second ones."""

    value: Array
    first: Float[Array, "direction ..."]
    second: Array


def score_and_divergence(
    energy: AbstractEnergy,
    x: Float[Array, "..."],
    condition: Float[Array, "..."] | None = None,
    *,
    chunk_size: int | None = None,
) -> tuple[Float[Array, "..."], Scalar]:
    """s(x) = -grad E and div s = -Laplacian E of one event.

    Value, gradient and Laplacian of every intermediate quantity travel through the energy together (Li et al. 2023):
    d directions through each layer once, where a gradient's derivative sends them forward and back again and then
    has d x d entries to contract. Energies with a `jax.custom_vjp` have no derivative in forward mode; theirs is the
    gradient's derivative.

    Args:
        energy: E, twice differentiable.
        x: one event.
        condition: its condition.
        chunk_size: coordinates at a time; all by default. Fewer need less memory, and as many more evaluations of E.

    References:
        Li, Li, Yu, Wang (2024). A computational framework for neural network-based variational Monte Carlo with
        forward Laplacian. Nature Machine Intelligence 6, 209-219. doi:10.1038/s42256-024-00794-x
        Dangel, Siebert, Zeinhofer, Walther (2025). Collapsing Taylor mode automatic differentiation.
        doi:10.48550/arXiv.2505.13644
    """
    jaxpr = jax.make_jaxpr(lambda x: evaluate(energy, x, condition))(x)
    forward = not _has_custom_vjp(jaxpr.jaxpr)

    def along(directions: Array) -> tuple[Array, Scalar]:
        if not forward:
            value, push = jax.linearize(lambda x: score(energy, x, condition), x)
            curvatures = jax.vmap(lambda direction: jnp.sum(direction * push(direction)))(directions)
            return jax.vmap(lambda direction: jnp.sum(direction * value))(directions), jnp.sum(curvatures)
        (out,) = _propagate(jaxpr.jaxpr, jaxpr.consts, [Taylor(x, directions, jnp.zeros_like(x))])
        if not isinstance(out, Taylor):  # E does not depend on x
            return jnp.zeros(directions.shape[0], x.dtype), jnp.zeros((), x.dtype)
        return -out.first, -out.second

    size = x.size
    count = size if chunk_size is None else min(chunk_size, size)
    num_chunks = math.ceil(size / count)
    basis = jnp.eye(num_chunks * count, size, dtype=x.dtype).reshape(num_chunks, count, *x.shape)  # padded with zeros
    if num_chunks == 1:
        gradient, divergence = along(basis[0])
        return gradient.reshape(x.shape), divergence
    gradients, divergences = jax.lax.map(jax.checkpoint(along), basis)
    return gradients.reshape(-1)[:size].reshape(x.shape), jnp.sum(divergences)


def _propagate(jaxpr: Any, consts: Any, inputs: Any) -> list[Any]:
    """The program with `Taylor` in place of what depends on x, plain arrays elsewhere."""
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        known.update(zip(equation.outvars, _apply(equation, operands), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, operands: list[Any]) -> list[Any]:
    """One operation, by the first rule that fits."""
    slots = [index for index, operand in enumerate(operands) if isinstance(operand, Taylor)]

    def run(*values: Array) -> list[Any]:
        """The operation as a function of what depends on x."""
        filled = list(operands)
        for slot, value in zip(slots, values, strict=True):
            filled[slot] = value
        params = equation.primitive.get_bind_params(equation.params)
        functions, params = ((), params) if isinstance(params, dict) else params  # a pair before JAX 0.12
        found = equation.primitive.bind(*functions, *filled, **params)
        return list(found) if equation.primitive.multiple_results else [found]

    if not slots:
        return run()
    if _acts_entrywise(equation, slots):
        return [_entrywise(lambda value: run(value)[0], operands[slots[0]])]
    if equation.primitive.name in CALLS:
        body = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
        return _propagate(getattr(body, "jaxpr", body), getattr(body, "consts", ()), operands)
    return _general(run, [operands[slot] for slot in slots])


def _entrywise(fn: Callable[[Array], Array], x: Taylor) -> Taylor:
    """f(u), entry by entry: f' and f'' are computed once, not once per direction."""

    def slope(value: Array) -> Array:
        return jax.jvp(fn, (value,), (jnp.ones_like(value),))[1]

    first, second = jax.jvp(slope, (x.value,), (jnp.ones_like(x.value),))
    laplacian = first * x.second + second * jnp.sum(x.first**2, axis=0)
    return Taylor(fn(x.value), jax.vmap(lambda direction: first * direction)(x.first), laplacian)


def _general(run: Callable[..., list[Any]], operands: list[Taylor]) -> list[Any]:
    """Any operation: derivatives of derivatives along each direction. XLA drops the zeros of linear ones."""
    values = tuple(operand.value for operand in operands)
    outputs = run(*values)
    smooth = [index for index, output in enumerate(outputs) if jnp.issubdtype(output.dtype, jnp.inexact)]
    if not smooth:
        return outputs

    def fn(*values: Array) -> list[Array]:
        found = run(*values)
        return [found[index] for index in smooth]

    def twice(*direction: Array) -> tuple[list[Array], list[Array]]:
        return jax.jvp(lambda *values: jax.jvp(fn, values, direction)[1], values, direction)

    first, curved = jax.vmap(twice)(*(operand.first for operand in operands))
    straight = jax.jvp(fn, values, tuple(operand.second for operand in operands))[1]
    for position, index in enumerate(smooth):
        laplacian = straight[position] + jnp.sum(curved[position], axis=0)
        outputs[index] = Taylor(outputs[index], first[position], laplacian)
    return outputs


def _acts_entrywise(equation: Any, slots: list[int]) -> bool:
    """One floating output, each entry of which depends on the same entry of the only input that depends on x."""
    if len(slots) != 1 or len(equation.outvars) != 1:
        return False
    source, out = equation.invars[slots[0]].aval, equation.outvars[0].aval
    if source.shape != out.shape or source.dtype != out.dtype:
        return False
    return equation.primitive.name != "convert_element_type" and _is_elementwise(equation)


def _is_elementwise(equation: Any) -> bool:
    name = equation.primitive.name
    if name in ELEMENTWISE:
        shapes = {atom.aval.shape for atom in (*equation.invars, *equation.outvars)}
        return len(shapes - {()}) <= 1
    if name in CALLS or name == "custom_jvp_call":  # an activation, as a rule
        return all(_is_elementwise(inner) for body in _bodies(equation) for inner in body.eqns)
    return name == "broadcast_in_dim" and equation.invars[0].aval.shape == ()


def _has_custom_vjp(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name.startswith("custom_vjp") or any(map(_has_custom_vjp, _bodies(equation)))
        for equation in jaxpr.eqns
    )


def _bodies(equation: Any) -> Iterator[Any]:
    """The programs inside an operation: bodies of loops, branches, calls."""
    for value in equation.params.values():
        for body in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(body, "jaxpr", body)
            if hasattr(inner, "eqns"):
                yield inner
