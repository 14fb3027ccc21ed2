"""A normal distribution with independent coordinates, of any event shape."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._base import AbstractReferenceEnergy
from ebm_ppl.energies._draws import draw_events
from ebm_ppl.energies._event import check_event
from ebm_ppl.energies._parameters import as_parameter, as_positive


class DiagonalGaussian(AbstractReferenceEnergy):
    r"""A normal distribution with independent coordinates: \(E(x) = \tfrac12 \sum_i (x_i - \mu_i)^2 / s_i^2\).

    Of any event shape, and linear in the number of coordinates in time and memory; `Gaussian` has correlations.

    Args:
        mean: \(\mu\), an array of the event's shape.
        scale: standard deviations s > 0, in the units of x: an array of that shape, or one number for all coordinates.

    Raises:
        ValueError: if `mean` is not finite, `scale` not positive, or their shapes differ.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.DiagonalGaussian(jnp.zeros((2, 3)), 3.0)
        >>> energy.sample(jax.random.key(0), (5,)).shape
        (5, 2, 3)
        >>> print(f"{energy.log_normalizer:.4f}")                       # 3 log 2π + 6 log 3
        12.1053

    References:
        Bishop (2006). Pattern recognition and machine learning, section 2.3. Springer. ISBN 978-0-387-31073-2
    """

    mean: Float[Array, "..."]
    scale: Float[Array, "..."]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, mean: Any, scale: Any = 1.0) -> None:
        self.mean = as_parameter("mean", mean)
        self.event_shape = self.mean.shape
        scale = as_positive("scale", scale)
        if scale.shape not in ((), self.event_shape):
            raise ValueError(f"`scale` must be one number or have shape {self.event_shape}; got {np.shape(scale)}.")
        self.scale = jnp.broadcast_to(scale, self.event_shape)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x) of one event, in nats."""
        dtype = check_event(self, x, condition)
        return jnp.sum(((x.astype(dtype) - self.mean.astype(dtype)) / self.scale.astype(dtype)) ** 2) / 2

    @property
    def log_normalizer(self) -> Scalar:
        r"""\(\log Z = \tfrac d2 \log 2\pi + \sum_i \log s_i\), in nats."""
        return math.prod(self.event_shape) / 2 * math.log(2 * math.pi) + jnp.sum(jnp.log(self.scale))

    def draw(self, key: Array) -> Array:
        """One exact draw."""
        noise = jax.random.normal(key, self.event_shape, self.scale.dtype)
        return self.mean.astype(noise.dtype) + self.scale * noise

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact independent draws, shape `(*sample_shape, *event_shape)`."""
        return draw_events(self, key, sample_shape)
