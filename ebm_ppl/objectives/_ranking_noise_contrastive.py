"""Ranking noise-contrastive estimation (InfoNCE): find the datum among noise."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, energy_of
from ebm_ppl.objectives._noise import Noise, check_coverage, check_noise, check_noise_support


class RankingNoiseContrastive(AbstractStatelessObjective):
    r"""Ranking noise-contrastive estimation, also known as InfoNCE: find the datum among `num_noise` noise events.

        J = -E log[ w(x) / (w(x) + w(y_1) + ... + w(y_K)) ],   w(u) = exp(-E(u)) / p_noise(u)
        x ~ data,  y_1 ... y_K ~ noise,  K = num_noise

    log Z cancels: the model needs no learned constant, and for a conditional energy E(x; y) the normaliser may depend
    on the condition, where `NoiseContrastive` would need a network for log Z(y). In turn nothing is learned of log Z.
    The estimate is consistent for every `num_noise`; its variance approaches that of maximum likelihood as
    `num_noise` grows, and large `num_noise` is what noise far from the data asks for.

    Args:
        noise: anything with `log_prob(x)` and `sample(key, shape)` whose events have the energy's `event_shape` (a
            NumPyro distribution with its event dimensions declared, a FlowJAX distribution), or a reference energy.
            It must have density > 0 wherever there are data; the same noise serves at every condition.
        num_noise: K, noise events per datum, >= 1.

    Returns:
        `loss(model, batch, *, key)`, in nats per datum; batch `(n, *event_shape)` or `(data, condition)`. It is
        log(num_noise + 1) where nothing tells the datum from noise. Metric: `accuracy`, the share of data ranked
        before all their noise events.

    Raises:
        TypeError: if `noise` has not the two methods.
        ValueError: if `num_noise` is not a count >= 1.
        EnergyShapeError: if noise and energy differ in event shape.
        InvalidDataError: if data lie where the noise has no density.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> normal = ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))
        >>> objective = ebm.objectives.RankingNoiseContrastive(normal, num_noise=7)
        >>> float(objective.loss(normal, normal.sample(jax.random.key(0), (64,)), key=jax.random.key(1)))   # log 8
        2.0794...

    References:
        Ma, Collins (2018). Noise contrastive estimation and negative sampling for conditional models: consistency and
        statistical efficiency. EMNLP, 3698-3707. doi:10.18653/v1/D18-1405
        van den Oord, Li, Vinyals (2018). Representation learning with contrastive predictive coding. arXiv:1807.03748
    """

    noise: Any
    num_noise: int = eqx.field(static=True, default=10)
    comparable: ClassVar[bool] = True
    any_support: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """Usable noise, at least one draw per datum."""
        check_noise(self.noise)
        check_count("num_noise", self.num_noise)

    def init(self, model: Any, batch: Batch, *, key: PRNGKey) -> None:
        """No state; data that the noise does not cover are refused."""
        check_noise_support(self.noise, energy_of(model))
        x, _ = self.split_batch(model, batch)
        if not isinstance(x, Tracer):
            check_coverage(Noise(self.noise, x.shape[1:]), x)

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per datum, with its own noise events; accuracy."""
        x, condition = self.split_batch(model, batch)
        keys = jax.random.split(key, x.shape[0])
        energy, noise = energy_of(model), Noise(self.noise, x.shape[1:])

        def event_loss(x: Array, condition: Array | None, key: Array) -> tuple[Scalar, Array]:
            candidates = jnp.concatenate([x[None], noise.sample(key, self.num_noise).astype(x.dtype)])
            log_weights = jax.vmap(lambda u: -energy(u, condition) - noise.log_prob(u))(candidates)
            return jax.nn.logsumexp(log_weights) - log_weights[0], log_weights[0] > jnp.max(log_weights[1:])

        losses, right = jax.vmap(event_loss)(x, condition, keys)
        return losses, {"accuracy": jnp.mean(right, dtype=x.dtype)}
