"""A multilayer perceptron as an energy."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count, check_event_shape, check_key
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import check_event
from ebm_ppl.energies._parameters import cast_floating
from ebm_ppl.energies._support import check_support


class MLPEnergy(AbstractEnergy):
    r"""A multilayer perceptron of the flattened event: \(E(x; y) = w^\top h(x, y)\).

    There is no bias after the last layer: a constant added to E changes log Z and nothing else, so beside the
    learned `log_normalizer` of `ShiftedEnergy` it would make both unidentifiable.

    The tails grow at most linearly and may well decrease: nothing makes exp(-E) integrable. Where that matters, add
    a base: `SumEnergy(MLPEnergy(...), Gaussian(...))`; `check_energy` looks.

    Args:
        event_shape: shape of one event.
        width: units of each hidden layer.
        depth: number of hidden layers, at least 1.
        key: JAX key for the initial weights.
        support: where exp(-E) is positive, one of `numpyro.distributions.constraints`; None: all reals.
        condition_shape: shape of one condition, flattened and appended to the event; None: unconditional.
        activation: applied elementwise after each hidden layer. Score matching differentiates twice: with
            `jax.nn.relu` the Laplacian of E is zero almost everywhere and its loss meaningless; choose a smooth one.
            Noise-contrastive training has no such need.

    Raises:
        ValueError: if a size is not a positive integer.
        KeyArgumentError: if `key` is not one JAX key.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.MLPEnergy((3,), width=16, key=jax.random.key(0))
        >>> energy(jnp.zeros(3)).shape, ebm.score(energy, jnp.zeros(3)).shape
        ((), (3,))

    References:
        Du, Mordatch (2019). Implicit generation and modeling with energy-based models. NeurIPS 32. arXiv:1903.08689
    """

    mlp: eqx.nn.MLP
    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        width: int = 128,
        depth: int = 2,
        *,
        key: PRNGKey,
        support: Any = None,
        condition_shape: tuple[int, ...] | None = None,
        activation: Callable[[Array], Array] = jax.nn.silu,
    ) -> None:
        if not callable(activation):
            raise TypeError(f"`activation` must be callable; got {type(activation).__name__}.")
        self.event_shape = check_event_shape(event_shape)
        self.support = check_support(support, self.event_shape)
        if condition_shape is not None:
            condition_shape = check_event_shape(condition_shape, "condition_shape")
        self.condition_shape = condition_shape
        self.mlp = eqx.nn.MLP(
            in_size=math.prod(self.event_shape) + (math.prod(condition_shape) if condition_shape is not None else 0),
            out_size="scalar",
            width_size=check_count("width", width),
            depth=check_count("depth", depth),
            activation=activation,
            use_final_bias=False,
            key=check_key(key),
        )

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x; condition) of one event, in nats."""
        dtype = check_event(self, x, condition)
        inputs = [x] if condition is None else [x, condition]
        flat = jnp.concatenate([jnp.ravel(part).astype(dtype) for part in inputs])
        return cast_floating(self.mlp, dtype)(flat)
