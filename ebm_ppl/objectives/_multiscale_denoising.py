"""Denoising score matching at many noise scales, for one energy that is told the scale."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from ebm_ppl._checks import check_positive
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, as_floating, energy_of
from ebm_ppl.objectives._denoising import denoising_loss


class MultiscaleDenoisingScoreMatching(AbstractStatelessObjective):
    r"""Denoising score matching over a range of noise scales, for one noise-conditioned energy E(x; log s).

        J = 1/2 E_s E || s * score(x + s e; log s) + e ||^2,   e ~ N(0, I),   s ~ noise_scales

    The loss at scale s is weighted by s^2, so that every scale contributes equally much. The energy at scale s
    learns the data smoothed by N(0, s^2 I): large scales join the modes, the smallest one is the model of the data.
    Sampling goes down the scales: `ebm.sample(energy, condition=noise_condition(s), ...)` at the largest s first.

    **The condition is the natural logarithm of the scale.** An energy with `condition_shape=()` receives log s; one
    with `condition_shape=(1 + k,)` receives [log s, y] with the k entries y of the user's own condition
    (`noise_condition` builds both). The data then bring no condition, or one of shape `(k,)`.

    The scales of one batch are stratified (systematic sampling with a random rotation): every row's scale is
    uniform over `noise_scales`, and every batch holds all of them in equal shares, up to one row.

    Args:
        noise_scales: standard deviations s > 0 in the units of x, shape `(k,)`, in descending or ascending order;
            usually geometric, from the largest distance between data down to the resolution wanted.
        continuous: draw s from the continuous range (log-linear between neighbouring `noise_scales`) instead of the
            scales themselves, so that the energy may be used at scales between.
        antithetic: evaluate every datum at +e and at -e: twice the cost, bounded variance at small scales.

    Returns:
        `loss(model, batch, *, key)`: dimensionless, summed over the event, averaged over the batch and the scales.
        At its minimum about d/2, not 0.

    Raises:
        ValueError: if `noise_scales` is not one-dimensional with at least two positive finite numbers in strict order.
        EnergyShapeError: if the energy's `condition_shape` is neither `()` nor `(1 + k,)`.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.MLPEnergy((2,), width=8, depth=1, condition_shape=(), key=jax.random.key(0))
        >>> objective = ebm.objectives.MultiscaleDenoisingScoreMatching(jnp.geomspace(2.0, 0.1, 5))
        >>> loss = objective.loss(energy, jnp.ones((64, 2)), key=jax.random.key(1))
        >>> loss.shape, bool(loss > 0)
        ((), True)

    References:
        Song, Ermon (2019). Generative modeling by estimating gradients of the data distribution. Advances in Neural
        Information Processing Systems 32. doi:10.48550/arXiv.1907.05600
        Li, Chen, Sommer (2023). Learning energy-based models in high-dimensional spaces with multiscale
        denoising-score matching. Entropy 25(10), 1367. doi:10.3390/e25101367
    """

    noise_scales: Float[Array, " k"] = eqx.field(converter=as_floating)
    continuous: bool = eqx.field(static=True, default=False, kw_only=True)
    antithetic: bool = eqx.field(static=True, default=False, kw_only=True)
    comparable: ClassVar[bool] = True
    noise_conditioned: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """Several positive scales in order."""
        check_positive("noise_scales", self.noise_scales)
        if self.noise_scales.ndim != 1 or self.noise_scales.shape[0] < 2:
            raise ValueError(
                f"`noise_scales` must be one-dimensional with at least 2 entries; got shape "
                f"{self.noise_scales.shape}: use DenoisingScoreMatching for one scale."
            )
        if not isinstance(self.noise_scales, Tracer):
            steps = jnp.diff(self.noise_scales)
            if not (jnp.all(steps > 0) or jnp.all(steps < 0)):
                raise ValueError(f"`noise_scales` must be strictly ascending or descending; got {self.noise_scales}.")

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per row, each at its own scale; no metrics."""
        x, condition = self.split_batch(model, batch)
        scale_key, noise_key = jax.random.split(key)
        scales = self.draw_scales(x.shape[0], key=scale_key).astype(x.dtype)
        keys = jax.random.split(noise_key, x.shape[0])
        energy = energy_of(model)

        def event_loss(x: Array, condition: Array | None, scale: Array, key: Array) -> Scalar:
            told = noise_condition(scale, condition)
            return scale**2 * denoising_loss(energy, x, told, scale, antithetic=self.antithetic, key=key)

        return jax.vmap(event_loss)(x, condition, scales, keys), {}

    def draw_scales(self, num_events: int, *, key: PRNGKey) -> Float[Array, " n"]:
        """One scale per event: each uniform over `noise_scales`, all together stratified.

        Args:
            num_events: number of scales.
            key: a JAX key.
        """
        dtype = self.noise_scales.dtype
        strata = jnp.arange(num_events, dtype=dtype) / num_events
        position = (strata + jax.random.uniform(key, (), dtype)) % 1
        count = self.noise_scales.shape[0]
        if not self.continuous:
            return self.noise_scales[jnp.minimum((position * count).astype(int), count - 1)]
        log_scales = jnp.log(self.noise_scales)
        return jnp.exp(jnp.interp(position * (count - 1), jnp.arange(count, dtype=dtype), log_scales))


def noise_condition(
    noise_scale: float | Float[Array, ""], condition: Float[Array, " k"] | None = None
) -> Float[Array, "..."]:
    """What a noise-conditioned energy receives as its condition: log(noise_scale), or [log(noise_scale), condition].

    Args:
        noise_scale: s > 0, in the units of x.
        condition: the user's own condition, shape `(k,)`, or None.

    Returns:
        Shape `()`, or `(1 + k,)` if there is a `condition`.

    Example:
        >>> from ebm_ppl.objectives import noise_condition
        >>> float(noise_condition(1.0))
        0.0
    """
    log_scale = jnp.log(noise_scale)
    if condition is None:
        return log_scale
    return jnp.concatenate([log_scale[None].astype(condition.dtype), condition])
