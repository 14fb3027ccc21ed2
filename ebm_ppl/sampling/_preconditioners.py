"""Changes of variables x = T z that make the target rounder; the kernel works on z with unit metric."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PRECONDITIONERS = ("diagonal", "dense", "none")
SHRINKAGE = 5.0  # prior observations that keep a window's scale near the previous one; Stan's number


class AbstractPreconditioner(eqx.Module):
    """A linear map from whitened coordinates to the user's."""

    @abc.abstractmethod
    def to_user(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """The image x = T z."""

    @abc.abstractmethod
    def to_whitened(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The preimage z = T^-1 x."""

    @property
    @abc.abstractmethod
    def scale(self) -> Float[Array, "..."]:
        """Standard deviation of every coordinate of x where z ~ N(0, I); event-shaped."""

    @abc.abstractmethod
    def learn(self, covariance: Array, count: Array) -> "AbstractPreconditioner":
        """The map learnt from `count` draws: their variances `(size,)` or, where dense, covariance `(size, size)`."""


class Diagonal(AbstractPreconditioner):
    """x = scale * z, coordinate by coordinate."""

    _scale: Float[Array, "..."]

    def to_user(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """The image scale * z."""
        return self._scale * z

    def to_whitened(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The preimage x / scale."""
        return x / self._scale

    @property
    def scale(self) -> Float[Array, "..."]:
        """The scale itself."""
        return self._scale

    def learn(self, covariance: Array, count: Array) -> "Diagonal":
        """Variances of the draws, shrunk towards the previous scale."""
        variance = covariance if covariance.ndim == 1 else jnp.diagonal(covariance)
        return Diagonal(shrunk_scale(self._scale, variance.reshape(self._scale.shape), count))


class Dense(AbstractPreconditioner):
    r"""x = diag(scale) L z with L the Cholesky factor of a correlation matrix."""

    _scale: Float[Array, "..."]
    factor: Float[Array, "size size"]

    def to_user(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """The image scale * (L z)."""
        return self._scale * (self.factor @ z.ravel()).reshape(z.shape)

    def to_whitened(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The preimage L^-1 (x / scale)."""
        return jax.scipy.linalg.solve_triangular(self.factor, (x / self._scale).ravel(), lower=True).reshape(x.shape)

    @property
    def scale(self) -> Float[Array, "..."]:
        """Correlation matrices have unit diagonal: the scale of x is `scale`."""
        return self._scale

    def learn(self, covariance: Array, count: Array) -> "Dense":
        """Scales as for the diagonal; correlations shrunk towards none with the weight of `size` observations.

        A sample correlation matrix of fewer draws than dimensions is singular; `count / (count + size)` of it plus
        the rest of the identity is not.
        """
        variance = jnp.diagonal(covariance)
        size = variance.size
        scale = shrunk_scale(self._scale, variance.reshape(self._scale.shape), count)
        usable = jnp.isfinite(variance) & (variance > 0)
        sd = jnp.where(usable, jnp.sqrt(jnp.where(usable, variance, 1)), 1)
        correlation = jnp.where(usable[:, None] & usable[None, :], covariance / (sd[:, None] * sd[None, :]), 0)
        weight = count / (count + size)
        identity = jnp.eye(size, dtype=covariance.dtype)
        shrunk = weight * (correlation * (1 - identity)) + identity
        factor = jnp.linalg.cholesky(shrunk)
        return Dense(scale, jnp.where(jnp.all(jnp.isfinite(factor)), factor, self.factor))


def initial_preconditioner(name: str, position: Float[Array, "..."]) -> AbstractPreconditioner:
    """The identity map, in the form that `name` learns."""
    if name == "dense":
        return Dense(jnp.ones_like(position), jnp.eye(position.size, dtype=position.dtype))
    return Diagonal(jnp.ones_like(position))


def shrunk_scale(previous: Array, variance: Array, count: Array) -> Array:
    """old^(1-w) * sd^w with w = count / (count + 5).

    Shrinkage towards the previous scale, on the log scale, so that it does not depend on the units. A coordinate
    that did not move keeps its scale.
    """
    weight = count / (count + SHRINKAGE)
    sd = jnp.sqrt(variance)
    usable = jnp.isfinite(sd) & (sd > 0)
    return jnp.where(usable, previous ** (1 - weight) * jnp.where(usable, sd, 1) ** weight, previous)
