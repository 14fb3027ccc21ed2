"""A smooth ring in the plane."""

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
from ebm_ppl.energies._parameters import as_positive


class Ring(AbstractReferenceEnergy):
    r"""A ring in two dimensions: \(E(x) = (\|x\|^2 - r^2)^2 / (2 s^2)\), \(s = 2 r w\), r = `radius`, w = `width`.

    Near the ring \(E \approx (\|x\| - r)^2 / (2 w^2)\), so w is its standard deviation across; unlike that form E is
    smooth at the origin. \(\|x\|^2\) is \(N(r^2, s^2)\) truncated to positive values and the angle uniform, so
    \(\log Z = \log(\pi s \sqrt{2\pi}\, \Phi(r^2/s))\).

    Args:
        radius: r > 0.
        width: w > 0.

    Raises:
        ValueError: if `radius` or `width` is not a positive scalar.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Ring(radius=2.0, width=0.25)
        >>> float(energy(jnp.array([0.0, 2.0]))), float(energy(jnp.zeros(2)))
        (0.0, 8.0)

    References:
        Rezende, Mohamed (2015). Variational inference with normalizing flows (whose U1 and U2 are rings and bands).
        ICML 32. arXiv:1505.05770
    """

    radius: Float[Array, ""]
    width: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,), init=False)

    def __init__(self, radius: Any = 2.0, width: Any = 0.25) -> None:
        self.radius = as_positive("radius", radius, 0)
        self.width = as_positive("width", width, 0)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x) of one event, in nats."""
        dtype = check_event(self, x, condition)
        radius, width = self.radius.astype(dtype), self.width.astype(dtype)
        return ((jnp.sum(x.astype(dtype) ** 2) - radius**2) / (radius * width)) ** 2 / 8

    @property
    def log_normalizer(self) -> Scalar:
        r"""\(\log Z = \log(\pi s \sqrt{2\pi}\, \Phi(r^2/s))\), s = 2rw, in nats."""
        radius, width = self.radius, self.width.astype(self.radius.dtype)
        constant = float(np.log(2 * np.pi * np.sqrt(2 * np.pi)))
        return constant + jnp.log(radius * width) + jax.scipy.stats.norm.logcdf(radius / (2 * width))

    def draw(self, key: Array) -> Array:
        """One exact draw: the squared distance from a truncated normal, the angle uniform."""
        radius_key, angle_key = jax.random.split(key)
        radius, width = self.radius, self.width.astype(self.radius.dtype)
        lower = -radius / (2 * width)
        standard = jax.random.truncated_normal(radius_key, lower, jnp.inf, (), radius.dtype)
        distance = jnp.sqrt(2 * radius * width * (standard - lower))
        angle = jax.random.uniform(angle_key, (), radius.dtype, maxval=float(2 * np.pi))
        return distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact independent draws, shape `(*sample_shape, 2)`."""
        return draw_events(self, key, sample_shape)
