"""Binary noise-contrastive estimation, with a learned log Z."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import AbstractEnergy, ShiftedEnergy
from ebm_ppl.errors import MissingLogNormalizerError
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, energy_of
from ebm_ppl.objectives._noise import Noise, check_coverage, check_noise, check_noise_support


class NoiseContrastive(AbstractStatelessObjective):
    r"""Binary noise-contrastive estimation (NCE): learn to tell data from noise, and log Z with it.

        J = E_x softplus(-G(x)) + noise_ratio * E_y softplus(G(y)),   x ~ data, y ~ noise
        G(u) = -E(u) - log p_noise(u) - log(noise_ratio)

    The classifier's log odds G hold a *normalised* model density, so the energy must own a free additive constant
    that becomes log Z: wrap it, `ShiftedEnergy(energy)`, and read `result.model.log_normalizer`. Energies that also
    have an output bias of their own learn only the sum of the two.

    With the right model and noise that covers the data the estimate is consistent for any noise; its variance is
    not the same for any. Noise with lighter tails than the data makes it large or infinite, noise far from the data
    ruinous; noise somewhat wider than the data and `noise_ratio` 5 to 10 are safe choices. Every call draws fresh
    noise, and no gradient flows into it.

    A conditional energy E(x; y) is contrasted with the same noise at every y; the network must then learn
    log Z(y), the learned constant its mean.

    Args:
        noise: anything with `log_prob(x)` and `sample(key, shape)` whose events have the energy's `event_shape` (a
            NumPyro distribution with its event dimensions declared, a FlowJAX distribution), or a reference energy.
            It must have density > 0 wherever there are data.
        noise_ratio: noise events per datum, >= 1. As it grows the estimate approaches maximum likelihood.
        self_normalized: the energy owns its constant without a `ShiftedEnergy` (an output bias), or is known to be
            normalised: do not ask for one.

    Returns:
        `loss(model, batch, *, key)`, in nats per datum; batch `(n, *event_shape)` or `(data, condition)`. It is
        2 log 2 where data, noise and model agree (noise_ratio 1), and 2 log 2 - 2 JSD(data, noise) at the optimum.
        Metrics: `accuracy` (share of data and noise events told apart) and, for a `ShiftedEnergy`, `log_normalizer`.

    Raises:
        TypeError: if `noise` has not the two methods.
        ValueError: if `noise_ratio` is not a count >= 1.
        MissingLogNormalizerError: if the model has no learned constant.
        EnergyShapeError: if noise and energy differ in event shape.
        InvalidDataError: if data lie where the noise has no density.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> normal = ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))
        >>> objective = ebm.objectives.NoiseContrastive(normal)
        >>> model = ebm.ShiftedEnergy(normal, normal.log_normalizer)
        >>> float(objective.loss(model, normal.sample(jax.random.key(0), (64,)), key=jax.random.key(1)))
        1.38629...

    References:
        Gutmann, Hyvärinen (2012). Noise-contrastive estimation of unnormalized statistical models, with applications
        to natural image statistics. Journal of Machine Learning Research 13, 307-361.
        https://jmlr.org/papers/v13/gutmann12a.html
        Chehab, Gramfort, Hyvärinen (2022). The optimal noise in noise-contrastive learning is not what you think.
        Uncertainty in Artificial Intelligence 180, 307-316. doi:10.48550/arXiv.2203.01110
    """

    noise: Any
    noise_ratio: int = eqx.field(static=True, default=1)
    self_normalized: bool = eqx.field(static=True, default=False, kw_only=True)
    comparable: ClassVar[bool] = True
    any_support: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """Usable noise, at least one draw per datum."""
        check_noise(self.noise)
        check_count("noise_ratio", self.noise_ratio)

    def init(self, model: Any, batch: Batch, *, key: PRNGKey) -> None:
        """No state; a model without a learned constant and data that the noise does not cover are refused."""
        check_constant(model, "NoiseContrastive", self_normalized=self.self_normalized)
        check_noise_support(self.noise, energy_of(model))
        x, _ = self.split_batch(model, batch)
        if not isinstance(x, Tracer):
            check_coverage(Noise(self.noise, x.shape[1:]), x)

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per datum, with its own `noise_ratio` noise events; accuracy and the learned constant."""
        check_constant(model, "NoiseContrastive", self_normalized=self.self_normalized)
        x, condition = self.split_batch(model, batch)
        keys = jax.random.split(key, x.shape[0])
        energy, noise = energy_of(model), Noise(self.noise, x.shape[1:])

        def event_loss(x: Array, condition: Array | None, key: Array) -> tuple[Scalar, Array]:
            noise_events = noise.sample(key, self.noise_ratio).astype(x.dtype)
            log_odds = jax.vmap(lambda y: self._log_odds(energy, noise, y, condition))
            of_the_truth = jnp.concatenate([log_odds(x[None]), -log_odds(noise_events)])
            return jnp.sum(jax.nn.softplus(-of_the_truth)), jnp.mean(of_the_truth > 0, dtype=x.dtype)

        losses, right = jax.vmap(event_loss)(x, condition, keys)
        metrics = {"accuracy": jnp.mean(right)}
        if isinstance(model, ShiftedEnergy):
            metrics["log_normalizer"] = model.log_normalizer
        return losses, metrics

    def _log_odds(self, energy: AbstractEnergy, noise: Noise, x: Array, condition: Array | None) -> Scalar:
        return -energy(x, condition) - noise.log_prob(x) - math.log(self.noise_ratio)


def check_constant(model: Any, objective: str, *, self_normalized: bool) -> None:
    """Without a free constant the classifier cannot be calibrated: the energy itself is bent to hold log Z."""
    nodes = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, ShiftedEnergy))
    if not self_normalized and not any(isinstance(node, ShiftedEnergy) for node in nodes):
        raise MissingLogNormalizerError(
            f"`{objective}` learns log Z, and {type(model).__name__} has no constant to hold it: pass "
            "ebm.ShiftedEnergy(energy), or self_normalized=True if the energy has its own (an output bias)."
        )
