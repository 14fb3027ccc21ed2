"""A penalty on the size of the energy."""

from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, energy_of


class EnergyMagnitudePenalty(AbstractStatelessObjective):
    r"""Mean squared energy of the data: a term to add to an objective, never part of one.

        R = E[ E(x)^2 ]

    It holds the additive constant of the energy, which log-Z-free objectives leave to drift, near where the data have
    energy 0, and keeps the energies of the data together: with a large weight it flattens the model. Add it by
    `SumObjective(objective, EnergyMagnitudePenalty(), weights=[1.0, 0.01])`.

    Returns:
        `loss(model, batch, *, key)`, in squared nats, averaged over the batch; batch `(n, *event_shape)` or
        `(data, condition)`. `key` is not used.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))
        >>> float(ebm.objectives.EnergyMagnitudePenalty().loss(energy, 2 * jnp.ones((5, 2)), key=jax.random.key(0)))
        16.0

    References:
        Du, Mordatch (2019). Implicit generation and modeling with energy-based models. NeurIPS 32. arXiv:1903.08689
    """

    comparable: ClassVar[bool] = True
    any_support: ClassVar[bool] = True

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One squared energy per row; no metrics."""
        x, condition = self.split_batch(model, batch)
        energies: Array = jax.vmap(energy_of(model))(x, condition)
        return energies**2, {}
