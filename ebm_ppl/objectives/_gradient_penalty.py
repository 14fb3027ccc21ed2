"""A penalty on the slope of the energy."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import score
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, energy_of


class GradientPenalty(AbstractStatelessObjective):
    r"""Mean squared gradient of the energy at the data: a term to add to an objective, never part of one.

        R = E || grad_x E(x) ||^2

    It keeps the energy from becoming steep around the data, where chains of a given step size could no longer follow it
    (known as the R1 penalty). With a large weight it flattens the model: added with weight w to `ExactScoreMatching` on
    a Gaussian it divides the precision by 1 + 2w. Add it by
    `SumObjective(objective, GradientPenalty(), weights=[1.0, 0.01])`.

    Returns:
        `loss(model, batch, *, key)`, in squared nats per squared unit of x, summed over the event, averaged over the
        batch; batch `(n, *event_shape)` or `(data, condition)`. `key` is not used.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))
        >>> float(ebm.objectives.GradientPenalty().loss(energy, 2 * jnp.ones((5, 2)), key=jax.random.key(0)))
        8.0

    References:
        Mescheder, Geiger, Nowozin (2018). Which training methods for GANs do actually converge? International
        Conference on Machine Learning 80, 3481-3490. arXiv:1801.04406
    """

    comparable: ClassVar[bool] = True

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One squared norm per row; no metrics."""
        x, condition = self.split_batch(model, batch)
        energy = energy_of(model)

        def event_loss(x: Array, condition: Array | None) -> Scalar:
            return jnp.sum(score(energy, x, condition) ** 2)

        return jax.vmap(event_loss)(x, condition), {}
