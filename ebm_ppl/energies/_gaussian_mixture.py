"""A finite mixture of normals."""

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
from ebm_ppl.energies._gaussian import apply_whitening, log_det_whitening, solve_whitening
from ebm_ppl.energies._parameters import as_parameter, as_positive, check_covariance, concrete, whitening_matrix


class GaussianMixture(AbstractReferenceEnergy):
    r"""A mixture of normal laws: \(E(x) = -\log \sum_k w_k\, N(x; m_k, C_k)\).

    Normalised: \(\log Z = 0\). The sum is taken in logarithms, so far tails neither overflow nor underflow.

    The fields, which training changes, are `log_weights` (normalised by a softmax at each call, so that any gradient
    step leaves a mixture), `means` and `whitening` (as in `Gaussian`, one per component).

    Args:
        weights: w, shape `(k,)`, positive, summing to 1.
        means: m, shape `(k, d)`, or `(k,)` for scalar events.
        covariances: C, shape `(k, d, d)`, each symmetric positive definite; the variances `(k,)` for scalar events.

    Raises:
        ValueError: if the shapes do not match, concrete weights are not positive or do not sum to 1, or a concrete
            covariance is not symmetric positive definite.
        EnergyShapeError: when called, if x has not the shape of one mean.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.GaussianMixture([0.2, 0.8], [-4.0, 4.0], [1.0, 1.0])
        >>> print(f"{energy(jnp.asarray(4.0)):.4f}")        # -log 0.8 + ½ log 2π
        1.1421

    References:
        McLachlan, Peel (2000). Finite Mixture Models. Wiley. doi:10.1002/0471721182
    """

    log_weights: Float[Array, " component"]
    means: Float[Array, "component ..."]
    whitening: Float[Array, "component ..."]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, weights: Any, means: Any, covariances: Any) -> None:
        weights = as_positive("weights", weights, 1)
        host = concrete(weights)
        size = weights.shape[0]
        if host is not None and abs(host.sum() - 1) > 8 * size * float(jnp.finfo(weights.dtype).eps):
            raise ValueError(f"`weights` must sum to 1; got a sum of {host.sum():.6g}.")
        self.log_weights = jnp.log(weights)
        self.means = as_parameter("means", means)
        if self.means.ndim not in (1, 2) or self.means.shape[0] != size:
            raise ValueError(f"`means` must have shape ({size}, d) or ({size},); got {self.means.shape}.")
        self.event_shape = self.means.shape[1:]
        if self.event_shape:
            covariances = as_parameter("covariances", covariances, 3)
            _check_leading(covariances, size)
            for index in range(size):
                check_covariance(f"covariances[{index}]", covariances[index], *self.event_shape)
            self.whitening = jax.vmap(whitening_matrix)(covariances)
        else:
            covariances = as_positive("covariances", covariances, 1)
            _check_leading(covariances, size)
            self.whitening = 1 / jnp.sqrt(covariances)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x) of one event, in nats; normalised."""
        dtype = check_event(self, x, condition)
        event = x.astype(dtype)

        def log_density(mean: Array, whitening: Array) -> Array:
            standardised = apply_whitening(whitening, event - mean)
            return log_det_whitening(whitening) - jnp.sum(standardised**2 + float(np.log(2 * np.pi))) / 2

        components = jax.vmap(log_density)(self.means.astype(dtype), self.whitening.astype(dtype))
        return -jax.nn.logsumexp(jax.nn.log_softmax(self.log_weights.astype(dtype)) + components)

    @property
    def log_normalizer(self) -> Scalar:
        r"""\(\log Z = 0\)."""
        return jnp.zeros((), self.log_weights.dtype)

    def draw(self, key: Array) -> Array:
        """One exact draw: a component, then its normal law."""
        component_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(component_key, self.log_weights)
        noise = jax.random.normal(noise_key, self.event_shape, self.whitening.dtype)
        return self.means[component].astype(noise.dtype) + solve_whitening(self.whitening[component], noise)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact independent draws, shape `(*sample_shape, *event_shape)`."""
        return draw_events(self, key, sample_shape)


def _check_leading(covariances: Array, size: int) -> None:
    if covariances.shape[0] != size:
        raise ValueError(f"`covariances` must have {size} entries, one per weight; got {covariances.shape[0]}.")
