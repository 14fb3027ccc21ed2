"""Denoising score matching at one noise scale."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_positive
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import AbstractEnergy, score
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, as_floating, energy_of
from ebm_ppl.objectives._drawn_once import drawn_once


class DenoisingScoreMatching(AbstractStatelessObjective):
    r"""Denoising score matching: fit the score of the data smoothed by Gaussian noise.

        J = 1/2 E || score(x + noise_scale * e) + e / noise_scale ||^2,   e ~ N(0, I)

    No second derivative is needed: one score per datum. The minimiser is the score of the *smoothed* density
    p * N(0, noise_scale^2 I), not of p: on N(0, 1) the fitted precision is 1/(1 + noise_scale^2). What the
    estimator gains in bias from a small noise scale it loses in variance, which grows as 1/noise_scale^2;
    `antithetic` removes that growth.

    Args:
        noise_scale: standard deviation of the noise, > 0, in the units of x. Give it as an array or a number: another
            value does not recompile.
        antithetic: evaluate every datum at +e and at -e. Twice the cost; the noise terms of order 1/noise_scale
            cancel, so that the variance stays bounded as noise_scale goes to 0. On N(0, 1) the variance of the fitted
            precision falls from 1/(s^2 (1+s^2)^2) to 4/(1+s^2)^4 (both over n, s = noise_scale): 98 to 3.8 at
            s = 0.1, 2.6 to 1.6 at s = 0.5, no gain from s = 1 on.

    Returns:
        `loss(model, batch, *, key)`: dimensionless, summed over the event, averaged over the batch; batch
        `(n, *event_shape)` or `(data, condition)`. At its minimum it is about d/(2 noise_scale^2), not 0.

    Raises:
        ValueError: if `noise_scale` is not one positive finite number.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> data = jax.random.normal(jax.random.key(0), (4096, 1))
        >>> objective = ebm.objectives.DenoisingScoreMatching(noise_scale=0.5)
        >>> result = ebm.fit(ebm.energies.Gaussian(mean=jnp.zeros(1), covariance=jnp.eye(1)), data, objective,
        ...                  key=jax.random.key(1), num_steps=2, progress_bar=False)
        >>> result.ok
        True

    References:
        Vincent (2011). A connection between score matching and denoising autoencoders. Neural Computation 23(7),
        1661-1674. doi:10.1162/NECO_a_00142
    """

    noise_scale: Float[Array, ""] = eqx.field(converter=as_floating)
    antithetic: bool = eqx.field(static=True, default=False, kw_only=True)
    comparable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """One positive scale; several are another objective's."""
        check_positive("noise_scale", self.noise_scale)
        if self.noise_scale.ndim != 0:
            raise ValueError(
                f"`noise_scale` must be one number; got shape {self.noise_scale.shape}: "
                "use MultiscaleDenoisingScoreMatching for several."
            )

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per row; no metrics."""
        x, condition = self.split_batch(model, batch)
        keys = jax.random.split(key, x.shape[0])
        energy = energy_of(model)

        def event_loss(x: Array, condition: Array | None, key: Array) -> Scalar:
            noise_scale = self.noise_scale.astype(x.dtype)
            return denoising_loss(energy, x, condition, noise_scale, antithetic=self.antithetic, key=key)

        return jax.vmap(event_loss)(x, condition, keys), {}


def denoising_loss(
    energy: AbstractEnergy,
    x: Float[Array, "..."],
    condition: Float[Array, "..."] | None,
    noise_scale: Scalar,
    *,
    antithetic: bool,
    key: PRNGKey,
) -> Scalar:
    r"""1/2 || score(x + noise_scale * e) + e / noise_scale ||^2 of one event, one draw e ~ N(0, I) (and -e)."""
    noise = drawn_once(jax.random.normal(key, x.shape, x.dtype))

    def loss(noise: Array) -> Scalar:
        residual = score(energy, x + noise_scale * noise, condition) + noise / noise_scale
        return jnp.sum(residual**2) / 2

    return (loss(noise) + loss(-noise)) / 2 if antithetic else loss(noise)
