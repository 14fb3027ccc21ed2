"""The change of variables that learns a whole covariance, from draws and gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ebm_ppl.sampling._preconditioners import (
    AbstractPreconditioner,
    finish_welford,
    merge_welford,
    shrunk_scale,
    start_welford,
    update_welford,
)

PRIOR_DRAWS = 1e-3  # weight of "no correlation" against the draws of a window, once these are twice the dimensions


class BothMoments(NamedTuple):
    """Running moments of the draws and of the gradients of the log density there, in the user's coordinates."""

    positions: Any
    gradients: Any


class FisherDense(AbstractPreconditioner):
    r"""x = diag(scale) L z, with diag(scale) L L' diag(scale) = cov(x) # cov(grad log p(x))^-1, the geometric mean.

    That matrix makes the Fisher divergence of the whitened target from N(0, I) least. On a normal target it is the
    covariance itself, exactly, as soon as a window has more draws than dimensions; a sample covariance is then still
    off by the factor (1 + sqrt(d / n))^2 in some directions.

    References:
        Seyboldt, Carlson, Carpenter (2026). Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence.
        arXiv:2603.18845
    """

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
        """Standard deviation of every coordinate of x where z ~ N(0, I)."""
        return self._scale * jnp.sqrt(jnp.sum(self.factor**2, axis=1)).reshape(self._scale.shape)

    def start_moments(self) -> BothMoments:
        """Mean and covariance of no draws."""
        empty = start_welford(self._scale, diagonal=False)
        return BothMoments(empty, empty)

    def observe(self, moments: Any, x: Array, gradient: Array | None, wanted: Bool[Array, ""]) -> BothMoments:
        """Count x and the gradient there in, where `wanted`; `gradient` is that with respect to z."""
        if gradient is None:
            raise TypeError("`precondition='dense'` needs a kernel whose state has a field `logdensity_grad`.")
        # grad_z = T' grad_x with T = diag(scale) L
        back = jax.scipy.linalg.solve_triangular(self.factor.T, jnp.ravel(gradient)) / self._scale.ravel()
        return BothMoments(
            update_welford(moments.positions, x, wanted, diagonal=False),
            update_welford(moments.gradients, back, wanted, diagonal=False),
        )

    def learn_from(self, moments: Any) -> "FisherDense":
        """The map learnt from a window; what did not vary keeps its scale, uncorrelated."""
        covariance, count = finish_welford(moments.positions, diagonal=False)
        scores, _ = finish_welford(moments.gradients, diagonal=False)
        variance, steepness = jnp.diagonal(covariance), jnp.diagonal(scores)
        usable = jnp.isfinite(variance) & (variance > 0) & jnp.isfinite(steepness) & (steepness > 0)
        squared = jnp.where(usable, jnp.sqrt(jnp.where(usable, variance / steepness, 1)), jnp.nan)
        scale = shrunk_scale(self._scale, squared.reshape(self._scale.shape), count)
        flat = scale.ravel()
        both = usable[:, None] & usable[None, :]
        identity = jnp.eye(flat.size, dtype=flat.dtype)
        # Fewer draws than dimensions span two different subspaces: then mostly the scales are to be trusted.
        prior = jnp.where(count >= 2 * flat.size, PRIOR_DRAWS, float(flat.size)).astype(flat.dtype)

        def regular(matrix: Array) -> Array:
            return (count * jnp.where(both, matrix, identity) + prior * identity) / (count + prior)

        outer = flat[:, None] * flat[None, :]
        factor = jnp.linalg.cholesky(_geometric_mean(regular(covariance / outer), regular(scores * outer)))
        known = jnp.all(jnp.isfinite(factor))
        return FisherDense(jnp.where(known, scale, self._scale), jnp.where(known, factor, self.factor))

    def pool(self, moments: Any) -> BothMoments:
        """Moments of all draws together."""
        return BothMoments(merge_welford(moments.positions), merge_welford(moments.gradients))


def _geometric_mean(a: Float[Array, "n n"], b: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """A # B^-1: the positive solution X of X B X = A. NaN where rounding has made A or B indefinite."""
    values, vectors = jnp.linalg.eigh(b)
    root = (vectors * jnp.sqrt(values)[None, :]) @ vectors.T
    inverse_root = (vectors / jnp.sqrt(values)[None, :]) @ vectors.T
    inner = root @ a @ root
    values, vectors = jnp.linalg.eigh((inner + inner.T) / 2)
    middle = (vectors * jnp.sqrt(values)[None, :]) @ vectors.T
    mean = inverse_root @ middle @ inverse_root
    return (mean + mean.T) / 2
