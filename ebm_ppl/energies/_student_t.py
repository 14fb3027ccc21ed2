"""Student's t law, coordinate by coordinate."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._base import AbstractReferenceEnergy
from ebm_ppl.energies._draws import draw_events
from ebm_ppl.energies._event import check_event
from ebm_ppl.energies._parameters import as_parameter, as_positive


class StudentT(AbstractReferenceEnergy):
    r"""Independent Student t coordinates.

    \(E(x) = \tfrac{\nu+1}2 \sum_i \log(1 + z_i^2/\nu)\), \(z_i = (x_i - m_i)/s_i\), ν = `degrees_of_freedom`.
    Heavy tails: ν = 1 is Cauchy. \(\log Z = \sum_i [\log B(\tfrac12, \tfrac\nu2) + \tfrac12 \log \nu + \log s_i]\).
    The coordinates are independent, so this is *not* the elliptical multivariate t.

    Args:
        degrees_of_freedom: ν > 0, one scalar for all coordinates.
        location: m, shape `(d,)`, or `()` for a scalar event.
        scale: s > 0 (1.0 by default), shape of `location` or a scalar; not the standard deviation, which is
            s √(ν/(ν-2)).

    Raises:
        ValueError: if a parameter is out of range or `scale` matches neither `location` nor a scalar.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> cauchy = ebm.energies.StudentT(1.0, 0.0)
        >>> print(f"{cauchy(jnp.asarray(1.0)):.4f} {cauchy.log_normalizer:.4f}")      # log 2, log π
        0.6931 1.1447

    References:
        Student (1908). The probable error of a mean. Biometrika 6(1), 1-25. doi:10.1093/biomet/6.1.1
    """

    degrees_of_freedom: Float[Array, ""]
    location: Float[Array, "..."]
    scale: Float[Array, "..."]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, degrees_of_freedom: Any, location: Any = 0.0, scale: Any = 1.0) -> None:
        self.degrees_of_freedom = as_positive("degrees_of_freedom", degrees_of_freedom, 0)
        self.location = as_parameter("location", location)
        if self.location.ndim > 1:
            raise ValueError(f"`location` must have shape (d,) or (); got {self.location.shape}.")
        self.event_shape = self.location.shape
        scale = as_positive("scale", scale)
        if scale.shape not in ((), self.event_shape):
            raise ValueError(
                f"`scale` must have the shape of `location`, {self.event_shape}, or (); got {scale.shape}."
            )
        self.scale = jnp.broadcast_to(scale, self.event_shape)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x) of one event, in nats."""
        dtype = check_event(self, x, condition)
        freedom = self.degrees_of_freedom.astype(dtype)
        standardised = (x.astype(dtype) - self.location.astype(dtype)) / self.scale.astype(dtype)
        return (freedom + 1) / 2 * jnp.sum(jnp.log1p(standardised**2 / freedom))

    @property
    def log_normalizer(self) -> Scalar:
        r"""\(\log Z = \sum_i [\log B(\tfrac12, \tfrac\nu2) + \tfrac12 \log \nu + \log s_i]\), in nats."""
        freedom = self.degrees_of_freedom
        half = jnp.asarray(0.5, freedom.dtype)
        each = jax.scipy.special.betaln(half, freedom / 2) + jnp.log(freedom) / 2
        return jnp.sum(each + jnp.log(self.scale).astype(freedom.dtype))

    def draw(self, key: Array) -> Array:
        """One exact draw, each coordinate by itself."""
        dtype = self.location.dtype
        standard = jax.random.t(key, self.degrees_of_freedom.astype(dtype), self.event_shape, dtype)
        return self.location + self.scale.astype(dtype) * standard

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact independent draws, shape `(*sample_shape, *event_shape)`."""
        return draw_events(self, key, sample_shape)
