"""Any callable as an energy."""

from collections.abc import Callable, Mapping
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
from ebm_ppl.energies._named_shapes import NamedShapes, as_event_shape
from ebm_ppl.energies._support import check_support


class FunctionEnergy(AbstractEnergy):
    r"""Any callable as an energy: \(E(x) =\) `fn(x)`, or `fn(params, x)` where parameters are given.

    With a `condition_shape` the condition is the last argument: `fn(x, condition)`, `fn(params, x, condition)`.
    So the apply functions of Flax Linen and Haiku fit as they are, and Flax NNX through `nnx.split`:
    `FunctionEnergy(lambda state, x: nnx.merge(graphdef, state)(x), (d,), state)`.

    `ebm.sample` and everything else that runs compiled code traces the energy at every call: it sees what `fn` reads
    from globals and closures as it is at that moment, and an equal function that is defined afresh compiles nothing.
    A `jax.jit` around `fn` is taken off, since JAX would keep the values of globals of the first call.

    An event may have named parts: with `event_shape={"w": (3,), "tau": ()}` the event is a dictionary of arrays, and
    so is `support`. A log density of a dictionary, as BlackJAX takes it, becomes an energy by its sign.

    Args:
        fn: the function of **one** event; returns a floating scalar in nats. An `equinox.Module` contributes its
            arrays as parameters; a plain function is a leaf that is not an array (`eqx.filter_jit`, `eqx.partition`).
        event_shape: shape of one event; `()` for a scalar; or a dictionary of the shapes of its named parts.
        params: pytree of parameters, learnable wherever its leaves are floating arrays; None: `fn` takes none.
            NumPy arrays and Python floats become JAX arrays, so that changing them compiles nothing.
        support: where exp(-E) is positive: one of `numpyro.distributions.constraints`, or a dictionary of them for
            named parts; None: all reals. A constraint of fewer dimensions than the event applies to every row. Its
            bounds may be arrays; `ebm.fit` never trains them.
        condition_shape: shape of one condition, or None.

    Raises:
        ValueError: if `event_shape` is not a tuple of positive integers, or `support` names an unknown part.
        TypeError: if `fn` is not callable, or `support` is not a constraint.
        EnergyShapeError: if `support` has more dimensions than the event.
        EnergyShapeError: when called, if `fn` does not return a scalar.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> from numpyro.distributions import constraints
        >>> def quadratic(params, x):
        ...     return params["precision"] * jnp.sum(x**2) / 2
        >>> energy = ebm.FunctionEnergy(quadratic, (2,), {"precision": 3.0})
        >>> float(energy(jnp.ones(2)))
        3.0
        >>> named = ebm.FunctionEnergy(
        ...     lambda x: jnp.sum(x["w"] ** 2) + x["tau"], {"w": (2,), "tau": ()},
        ...     support={"tau": constraints.positive})
        >>> float(named({"w": jnp.ones(2), "tau": jnp.array(0.5)}))
        2.5

    References:
        LeCun, Chopra, Hadsell, Ranzato, Huang (2006). A tutorial on energy-based learning.
        In: Predicting Structured Data, MIT Press. doi:10.7551/mitpress/7443.003.0014
    """

    fn: Callable[..., Any]
    params: Params
    event_shape: tuple[int, ...] | NamedShapes = eqx.field(static=True)

    def __init__(
        self,
        fn: Callable[..., Any],
        event_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]],
        params: Params = None,
        *,
        support: Any = None,
        condition_shape: tuple[int, ...] | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"`fn` must be callable; got {type(fn).__name__}.")
        self.fn = fn
        self.params = jax.tree.map(_as_traced, params)
        self.event_shape = as_event_shape(event_shape)
        self.support = check_support(support, self.event_shape)
        if condition_shape is not None:
            condition_shape = check_event_shape(condition_shape, "condition_shape")
        self.condition_shape = condition_shape

    def __call__(self, x: Any, condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x; condition) of one event, in nats."""
        dtype = check_event(self, x, condition)
        arguments = () if self.params is None else (self.params,)
        arguments += (x,) if self.condition_shape is None else (x, condition)
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        fn: Any = getattr(self.fn, "__wrapped__", self.fn) if isinstance(self.fn, jax.stages.Wrapped) else self.fn
        return as_scalar(name, fn(*arguments), dtype)


def _as_traced(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, (float, np.ndarray, np.floating)) else leaf
