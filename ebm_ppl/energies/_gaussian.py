"""The multivariate normal."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._base import AbstractReferenceEnergy
from ebm_ppl.energies._draws import draw_events
from ebm_ppl.energies._event import check_event
from ebm_ppl.energies._parameters import as_parameter, as_positive, check_covariance, whitening_matrix


class Gaussian(AbstractReferenceEnergy):
    r"""The normal law: \(E(x) = \tfrac12 (x - m)^\top C^{-1} (x - m)\), m = `mean`, C = `covariance`.

    \(\log Z = \tfrac d2 \log 2\pi + \tfrac12 \log\det C\).

    The fields, which training changes, are `mean` and `whitening`, the lower-triangular W with W'W = C⁻¹: so C is
    factorised once, at construction; a gradient step cannot leave the positive semi-definite matrices; and no second
    copy of C can go stale. `covariance` is a property.

    Args:
        mean: m, shape `(d,)`, or `()` for a scalar event.
        covariance: C, shape `(d, d)`, symmetric positive definite; shape `()`, the variance, for a scalar event.

    Raises:
        ValueError: if `mean` has more than one axis, the shapes do not match, or a concrete `covariance` is not
            symmetric positive definite in its dtype.
        EnergyShapeError: when called, if x has not the shape of `mean`.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.diag(jnp.array([1.0, 4.0])))
        >>> float(energy(jnp.array([1.0, 2.0])))
        1.0
        >>> print(f"{energy.log_normalizer:.4f}")           # log 2π + log 2
        2.5310

    References:
        Bishop (2006). Pattern Recognition and Machine Learning, section 2.3. Springer. ISBN 978-0-387-31073-2
    """

    mean: Float[Array, "..."]
    whitening: Float[Array, "..."]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, mean: Any, covariance: Any) -> None:
        self.mean = as_parameter("mean", mean)
        if self.mean.ndim > 1:
            raise ValueError(f"`mean` must have shape (d,) or (); got {self.mean.shape}.")
        self.event_shape = self.mean.shape
        if self.event_shape:
            covariance = as_parameter("covariance", covariance)
            check_covariance("covariance", covariance, *self.event_shape)
            self.whitening = whitening_matrix(covariance)
        else:
            self.whitening = 1 / jnp.sqrt(as_positive("covariance", covariance, 0))

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x) of one event, in nats."""
        dtype = check_event(self, x, condition)
        centred = x.astype(dtype) - self.mean.astype(dtype)
        return jnp.sum(apply_whitening(self.whitening.astype(dtype), centred) ** 2) / 2

    @property
    def covariance(self) -> Float[Array, "..."]:
        """C, recovered from `whitening`; shape `(d, d)` or `()`."""
        if not self.event_shape:
            return 1 / self.whitening**2
        identity = jnp.eye(*self.event_shape, dtype=self.whitening.dtype)
        factor = jax.scipy.linalg.solve_triangular(self.whitening, identity, lower=True)
        return factor @ factor.T

    @property
    def log_normalizer(self) -> Scalar:
        r"""\(\log Z = \tfrac d2 \log 2\pi + \tfrac12 \log\det C\), in nats."""
        size = 1 if not self.event_shape else self.event_shape[0]
        return size / 2 * math.log(2 * math.pi) - log_det_whitening(self.whitening)

    def draw(self, key: Array) -> Array:
        """One exact draw: the mean plus the solution of W z = ξ, ξ standard normal."""
        noise = jax.random.normal(key, self.event_shape, self.whitening.dtype)
        return self.mean.astype(noise.dtype) + solve_whitening(self.whitening, noise)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact independent draws, shape `(*sample_shape, *event_shape)`."""
        return draw_events(self, key, sample_shape)


def apply_whitening(whitening: Array, centred: Array) -> Array:
    """W x; only the lower triangle of W counts, whatever a gradient step put above it."""
    return whitening * centred if whitening.ndim == 0 else jnp.tril(whitening) @ centred


def solve_whitening(whitening: Array, noise: Array) -> Array:
    """The x with W x = noise."""
    if whitening.ndim == 0:
        return noise / whitening
    return jax.scipy.linalg.solve_triangular(whitening, noise, lower=True)


def log_det_whitening(whitening: Array) -> Array:
    """The logarithm of |det W|: minus half of log det C."""
    diagonal = whitening if whitening.ndim == 0 else jnp.diagonal(whitening)
    return jnp.sum(jnp.log(jnp.abs(diagonal)))
