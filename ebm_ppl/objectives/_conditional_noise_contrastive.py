"""Conditional noise-contrastive estimation: tell data from their own noisy copies."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, as_floating, energy_of
from ebm_ppl.objectives._neighbors import check_noise_scale, neighbor_energies


class ConditionalNoiseContrastive(AbstractStatelessObjective):
    r"""Conditional noise-contrastive estimation (CNCE): tell every datum from noisy copies of itself.

        J = 2 E softplus(E(x) - E(y)),   y = x + noise_scale * e,  e ~ N(0, I),   mean over noise_ratio copies

    No noise density has to be chosen, and log Z cancels. The noise being symmetric, its density cancels as well. The
    estimate is consistent for every `noise_scale`. As noise_scale -> 0 it becomes score matching,
    J = 2 log 2 + noise_scale^2/2 * (loss of `ExactScoreMatching`) + ..., with its blindness to the weights of separate
    modes; a scale that reaches from mode to mode sees them. Noise of about the spread of the data is a good start:
    far larger noise is told apart at a glance and teaches little.

    Args:
        noise_scale: standard deviation of the noise, > 0, in the units of x. Give it as an array or a number: another
            value does not recompile.
        noise_ratio: copies per datum, >= 1; more lower the variance.

    Returns:
        `loss(model, batch, *, key)`, in nats per datum; batch `(n, *event_shape)` or `(data, condition)`. It is
        2 log 2 for a flat energy, and below that at the optimum. Metric: `accuracy`, the share of copies with a higher
        energy than their datum.

    Raises:
        ValueError: if `noise_scale` is not one positive finite number, or `noise_ratio` not a count >= 1.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> flat = ebm.FunctionEnergy(lambda x: 0.0 * jnp.sum(x), (2,))
        >>> objective = ebm.objectives.ConditionalNoiseContrastive(noise_scale=0.5, noise_ratio=4)
        >>> float(objective.loss(flat, jnp.ones((8, 2)), key=jax.random.key(0)))        # 2 log 2
        1.38629...

    References:
        Ceylan, Gutmann (2018). Conditional noise-contrastive estimation of unnormalised models. International
        Conference on Machine Learning 80, 726-734. arXiv:1806.03664
    """

    noise_scale: Float[Array, ""] = eqx.field(converter=as_floating)
    noise_ratio: int = eqx.field(static=True, default=1)
    comparable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """One positive scale, at least one copy."""
        check_noise_scale(self.noise_scale)
        check_count("noise_ratio", self.noise_ratio)

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per datum, with its own noisy copies; accuracy."""
        x, condition = self.split_batch(model, batch)
        keys = jax.random.split(key, x.shape[0])
        energy = energy_of(model)

        def event_log_odds(x: Array, condition: Array | None, key: Array) -> Array:
            copies = neighbor_energies(energy, x, condition, self.noise_scale, self.noise_ratio, key=key)
            return copies - energy(x, condition)

        log_odds = jax.vmap(event_log_odds)(x, condition, keys)
        accuracy = jnp.mean(log_odds > 0, dtype=x.dtype)
        return 2 * jnp.mean(jax.nn.softplus(-log_odds), axis=1), {"accuracy": accuracy}
