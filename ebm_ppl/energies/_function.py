"""Any callable as an energy."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._checks import check_event_shape
from ebm_ppl._types import Params, Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import as_scalar, check_event


class FunctionEnergy(AbstractEnergy):
    r"""Any callable as an energy: \(E(x) =\) `fn(x)`, or `fn(params, x)` where parameters are given.

    With a `condition_shape` the condition is the last argument: `fn(x, condition)`, `fn(params, x, condition)`.
    So the apply functions of Flax Linen and Haiku fit as they are, and Flax NNX through `nnx.split`:
    `FunctionEnergy(lambda state, x: nnx.merge(graphdef, state)(x), (d,), state)`.

    Define `fn` once, at module level or in one place: JAX recognises a function by identity, so a fresh lambda is a
    fresh compilation.

    Args:
        fn: the function of **one** event; returns a floating scalar in nats. An `equinox.Module` contributes its
            arrays as parameters; a plain function is a leaf that is not an array (`eqx.filter_jit`, `eqx.partition`).
        event_shape: shape of one event; `()` for a scalar.
        params: pytree of parameters, learnable wherever its leaves are floating arrays; None: `fn` takes none.
            NumPy arrays and Python floats become JAX arrays, so that changing them compiles nothing.
        condition_shape: shape of one condition, or None.

    Raises:
        ValueError: if `event_shape` is not a tuple of positive integers.
        TypeError: if `fn` is not callable.
        EnergyShapeError: when called, if `fn` does not return a scalar.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> def quadratic(params, x):
        ...     return params["precision"] * jnp.sum(x**2) / 2
        >>> energy = ebm.FunctionEnergy(quadratic, (2,), {"precision": 3.0})
        >>> float(energy(jnp.ones(2)))
        3.0

    References:
        LeCun, Chopra, Hadsell, Ranzato, Huang (2006). A tutorial on energy-based learning.
        In: Predicting Structured Data, MIT Press. doi:10.7551/mitpress/7443.003.0014
    """

    fn: Callable[..., Any]
    params: Params
    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __init__(
        self,
        fn: Callable[..., Any],
        event_shape: tuple[int, ...],
        params: Params = None,
        *,
        condition_shape: tuple[int, ...] | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"`fn` must be callable; got {type(fn).__name__}.")
        self.fn = fn
        self.params = jax.tree.map(_as_traced, params)
        self.event_shape = check_event_shape(event_shape)
        if condition_shape is not None:
            condition_shape = check_event_shape(condition_shape, "condition_shape")
        self.condition_shape = condition_shape

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x; condition) of one event, in nats."""
        dtype = check_event(self, x, condition)
        arguments = () if self.params is None else (self.params,)
        arguments += (x,) if self.condition_shape is None else (x, condition)
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        return as_scalar(name, self.fn(*arguments), dtype)


def _as_traced(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, (float, np.ndarray, np.floating)) else leaf
