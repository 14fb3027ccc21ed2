"""Changes of variables x = T z that make the target rounder; the kernel works on z with unit metric."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.adaptation.mass_matrix import welford_algorithm
from jaxtyping import Array, Bool, Float

PRECONDITIONERS = ("diagonal", "dense", "low_rank", "none")
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
    def start_moments(self) -> Any:
        """What a window gathers, when it has seen nothing."""

    @abc.abstractmethod
    def observe(self, moments: Any, x: Array, gradient: Array | None, wanted: Bool[Array, ""]) -> Any:
        """`moments` with the draw x, where `wanted`; `gradient` is that of the log density with respect to z."""

    @abc.abstractmethod
    def learn_from(self, moments: Any) -> "AbstractPreconditioner":
        """The map that a window taught."""

    @abc.abstractmethod
    def pool(self, moments: Any) -> Any:
        """The moments of all chains (a leading axis) together, as if one chain had seen them."""


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

    def start_moments(self) -> Any:
        """Mean and variances of no draws."""
        return start_welford(self._scale, diagonal=True)

    def observe(self, moments: Any, x: Array, gradient: Array | None, wanted: Bool[Array, ""]) -> Any:
        """Count x in, where `wanted`; the gradient is not looked at."""
        return update_welford(moments, x, wanted, diagonal=True)

    def learn_from(self, moments: Any) -> "Diagonal":
        """The map learnt from a window's variances."""
        return self.learn(*finish_welford(moments, diagonal=True))

    def pool(self, moments: Any) -> Any:
        """Moments of all draws together."""
        return merge_welford(moments)


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

    def start_moments(self) -> Any:
        """Mean and covariance of no draws."""
        return start_welford(self._scale, diagonal=False)

    def observe(self, moments: Any, x: Array, gradient: Array | None, wanted: Bool[Array, ""]) -> Any:
        """Count x in, where `wanted`; the gradient is not looked at."""
        return update_welford(moments, x, wanted, diagonal=False)

    def learn_from(self, moments: Any) -> "Dense":
        """The map learnt from a window's covariance."""
        return self.learn(*finish_welford(moments, diagonal=False))

    def pool(self, moments: Any) -> Any:
        """Moments of all draws together."""
        return merge_welford(moments)


def shrunk_scale(previous: Array, variance: Array, count: Array) -> Array:
    """old^(1-w) * sd^w with w = count / (count + 5).

    Shrinkage towards the previous scale, on the log scale, so that it does not depend on the units. A coordinate
    that did not move keeps its scale.
    """
    weight = count / (count + SHRINKAGE)
    sd = jnp.sqrt(variance)
    usable = jnp.isfinite(sd) & (sd > 0)
    return jnp.where(usable, previous ** (1 - weight) * jnp.where(usable, sd, 1) ** weight, previous)


def start_welford(x: Array, *, diagonal: bool) -> Any:
    """Running moments of no draws, in the dtype of x."""
    init, _, _ = welford_algorithm(is_diagonal_matrix=diagonal)
    # Counters become floats: strict promotion refuses integer arrays in the float arithmetic.
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), init(x.size))


def update_welford(moments: Any, x: Array, wanted: Array, *, diagonal: bool) -> Any:
    """Running moments with one draw more, where `wanted`."""
    _, update, _ = welford_algorithm(is_diagonal_matrix=diagonal)
    updated = update(moments, jnp.ravel(x))
    return jax.tree.map(lambda new, old: jnp.where(wanted, jnp.asarray(new, old.dtype), old), updated, moments)


def finish_welford(moments: Any, *, diagonal: bool) -> tuple[Array, Array]:
    """Variances `(size,)` or covariance `(size, size)`, and the number of draws."""
    _, _, final = welford_algorithm(is_diagonal_matrix=diagonal)
    covariance, count, _ = final(moments)
    return covariance, count


def merge_welford(moments: Any) -> Any:
    """Moments of all chains' draws together (Chan, Golub & LeVeque's merging rule)."""
    counts = moments.sample_size.reshape(-1, *(1 for _ in moments.mean.shape[1:]))
    total = jnp.sum(moments.sample_size)
    mean = jnp.sum(counts * moments.mean, axis=0) / total
    shift = moments.mean - mean[None]
    between = shift**2 if moments.m2.ndim == 2 else shift[:, :, None] * shift[:, None, :]
    weights = moments.sample_size.reshape(-1, *(1 for _ in moments.m2.shape[1:]))
    return type(moments)(mean, jnp.sum(moments.m2 + weights * between, axis=0), total)
