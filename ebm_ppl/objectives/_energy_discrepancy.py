"""Energy discrepancy: contrast data with the energy smoothed by noise."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._parameters import as_parameter, concrete
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, as_floating, energy_of
from ebm_ppl.objectives._drawn_once import drawn_once
from ebm_ppl.objectives._neighbors import check_noise_scale, neighbor_energies


def _as_stabilization(value: Any) -> Array:
    return as_parameter("stabilization", value, 0)


class EnergyDiscrepancy(AbstractStatelessObjective):
    r"""Energy discrepancy: the energy of the data against a free energy of their neighbourhood; no scores, no chains.

        J = E log( w/M + 1/M sum_j exp(E(x) - E(x'_j)) ),   x'_j = x + noise_scale * (e + e_j),   e, e_j ~ N(0, I)
        M = num_samples, w = stabilization

    As num_samples -> infinity this is E(x) - E_smoothed(x + noise_scale * e) with
    E_smoothed(y) = -log E exp(-E(y + noise_scale * e')), a divergence between data and model. It lies between score
    matching (noise_scale -> 0) and maximum likelihood (noise_scale -> infinity), and sees the weights of separate
    modes where score matching does not. log Z cancels.

    With `stabilization=1`, the default, the estimate is consistent for every `num_samples`: given y = x +
    noise_scale * e, the datum is ranked among draws from N(y, noise_scale^2 I), which is ranking NCE. Other values are
    those of the paper's family and are biased at finite `num_samples`, at most of order 1/num_samples; 0 leaves the
    loss without a lower bound, since energies may then grow without limit off the data.

    Args:
        noise_scale: standard deviation of the noise, > 0, in the units of x; the paper's sqrt(t). As an array or a
            number: another value does not recompile.
        num_samples: M, draws per datum, >= 1.
        stabilization: w >= 0; an array field.

    Returns:
        `loss(model, batch, *, key)`, in nats per datum; batch `(n, *event_shape)` or `(data, condition)`. It is
        log((w + M)/M) for a flat energy, and negative at large M where something was learned.

    Raises:
        ValueError: if `noise_scale` is not one positive finite number, `num_samples` not a count >= 1, or
            `stabilization` negative.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> flat = ebm.FunctionEnergy(lambda x: 0.0 * jnp.sum(x), (2,))
        >>> objective = ebm.objectives.EnergyDiscrepancy(noise_scale=0.5, num_samples=1)
        >>> float(objective.loss(flat, jnp.ones((8, 2)), key=jax.random.key(0)))            # log 2
        0.69314...

    References:
        Schröder, Ou, Lim, Li, Vollmer, Duncan (2023). Energy discrepancies: a score-independent loss for energy-based
        models. Advances in Neural Information Processing Systems 36. arXiv:2307.06431
    """

    noise_scale: Float[Array, ""] = eqx.field(converter=as_floating)
    num_samples: int = eqx.field(static=True, default=16)
    stabilization: Float[Array, ""] = eqx.field(converter=_as_stabilization, default=1.0, kw_only=True)
    comparable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """One positive scale, at least one draw, a weight that is not negative."""
        check_noise_scale(self.noise_scale)
        check_count("num_samples", self.num_samples)
        host = concrete(self.stabilization)
        if host is not None and host < 0:
            raise ValueError(f"`stabilization` must not be negative; got {self.stabilization!r}.")

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per datum; no metrics."""
        x, condition = self.split_batch(model, batch)
        keys = jax.random.split(key, x.shape[0])
        energy = energy_of(model)

        def event_loss(x: Array, condition: Array | None, key: Array) -> Scalar:
            centre_key, key = jax.random.split(key)
            scale = self.noise_scale.astype(x.dtype)
            centre = x + scale * drawn_once(jax.random.normal(centre_key, x.shape, x.dtype))
            around = neighbor_energies(energy, centre, condition, scale, self.num_samples, key=key)
            differences = energy(x, condition) - around
            log_weight = jnp.log(self.stabilization.astype(x.dtype))[None]  # -inf where there is none
            return jax.nn.logsumexp(jnp.concatenate([log_weight, differences])) - math.log(self.num_samples)

        return jax.vmap(event_loss)(x, condition, keys), {}
