"""A small convolutional network as an energy of images."""

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


class ConvEnergy(AbstractEnergy):
    r"""Strided convolutions, sum over positions, linear head: \(E(x; y) = w^\top \sum_{ij} h_{ij}(x, y)\).

    Layout: channels first, `(channels, height, width)`; `(height, width)` is read as one channel. Each layer halves
    height and width (rounding up), so 8 x 8 with two layers ends at 2 x 2. A condition is flattened and enters each
    layer as a learned bias per channel. As in `MLPEnergy` there is no bias after the last layer (it would only shift
    log Z), the activation should be smooth, and integrability is up to you: add a base with `SumEnergy`.

    Args:
        event_shape: `(channels, height, width)` or `(height, width)`.
        channels: output channels of the convolutions, one entry per layer.
        key: JAX key for the initial weights.
        kernel_size: side of the square kernel, odd; padding keeps the borders in.
        support: where exp(-E) is positive, one of `numpyro.distributions.constraints`; None: all reals.
        condition_shape: shape of one condition, or None.
        activation: applied elementwise after each convolution.

    Raises:
        ValueError: if `event_shape` has not 2 or 3 axes, `channels` is empty, or `kernel_size` is even.
        KeyArgumentError: if `key` is not one JAX key.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.ConvEnergy((8, 8), channels=(4, 8), key=jax.random.key(0))
        >>> energy(jnp.zeros((8, 8))).shape
        ()

    References:
        Xie, Lu, Zhu, Wu (2016). A theory of generative ConvNet. ICML 33. arXiv:1602.03264
    """

    convolutions: tuple[eqx.nn.Conv2d, ...]
    projections: tuple[eqx.nn.Linear, ...]
    head: eqx.nn.Linear
    activation: Callable[[Array], Array]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        channels: tuple[int, ...] = (32, 64),
        *,
        key: PRNGKey,
        kernel_size: int = 3,
        support: Any = None,
        condition_shape: tuple[int, ...] | None = None,
        activation: Callable[[Array], Array] = jax.nn.silu,
    ) -> None:
        self.event_shape = check_event_shape(event_shape)
        self.support = check_support(support, self.event_shape)
        if len(self.event_shape) not in (2, 3):
            raise ValueError(
                f"`event_shape` must be (channels, height, width) or (height, width); got {self.event_shape}."
            )
        channels = check_event_shape(channels, "channels")
        if not channels:
            raise ValueError("`channels` must have one entry per layer, at least one; got ().")
        if check_count("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd; got {kernel_size}.")
        if not callable(activation):
            raise TypeError(f"`activation` must be callable; got {type(activation).__name__}.")
        if condition_shape is not None:
            condition_shape = check_event_shape(condition_shape, "condition_shape")
        self.condition_shape, self.activation = condition_shape, activation
        conv_keys, projection_keys, head_key = _split(check_key(key), len(channels))
        inputs = (self.event_shape[0] if len(self.event_shape) == 3 else 1, *channels[:-1])
        self.convolutions = tuple(
            eqx.nn.Conv2d(before, after, kernel_size, stride=2, padding=kernel_size // 2, key=conv_key)
            for before, after, conv_key in zip(inputs, channels, conv_keys, strict=True)
        )
        self.projections = tuple(
            eqx.nn.Linear(math.prod(condition_shape), after, use_bias=False, key=projection_key)
            for after, projection_key in zip(channels, projection_keys, strict=True)
            if condition_shape is not None
        )
        self.head = eqx.nn.Linear(channels[-1], "scalar", use_bias=False, key=head_key)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x; condition) of one event, in nats."""
        dtype = check_event(self, x, condition)
        convolutions, projections, head = cast_floating((self.convolutions, self.projections, self.head), dtype)
        hidden = x.astype(dtype).reshape((-1, *self.event_shape[-2:]))
        for layer, convolution in enumerate(convolutions):
            hidden = convolution(hidden)
            if condition is not None:
                bias = projections[layer](jnp.ravel(condition).astype(dtype))
                hidden = hidden + jnp.broadcast_to(bias[:, None, None], hidden.shape)
            hidden = self.activation(hidden)
        return head(jnp.sum(hidden, axis=(1, 2)))


def _split(key: Array, num_layers: int) -> tuple[Array, Array, Array]:
    conv_key, projection_key, head_key = jax.random.split(key, 3)
    return jax.random.split(conv_key, num_layers), jax.random.split(projection_key, num_layers), head_key
