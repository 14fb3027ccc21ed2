"""Minimum probability flow: probability must not leave the data."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, as_floating, energy_of
from ebm_ppl.objectives._neighbors import check_noise_scale, neighbor_energies


class MinimumProbabilityFlow(AbstractStatelessObjective):
    r"""Minimum probability flow: the rate at which probability leaves the data under dynamics that lead to the model.

        K = E exp( (E(x) - E(y)) / 2 ),   y = x + noise_scale * e,  e ~ N(0, I),   mean over num_neighbors

    The dynamics jump from x to y at the rate g(y, x) exp((E(x) - E(y))/2), which is in detailed balance with exp(-E)
    for symmetric g; here g is the Gaussian of width `noise_scale`, sampled. K is the time derivative, at time 0, of the
    Kullback-Leibler divergence from the data to where the dynamics take them. It is stationary at the true model for
    every `noise_scale`, convex in the parameters of an exponential family, and log Z cancels. As noise_scale -> 0,
    K = 1 + noise_scale^2/4 * (loss of `ExactScoreMatching`) + ...

    The exponential makes single data far out in the tails of the model count for much, and its variance grows with
    `noise_scale` and the dimension; `ConditionalNoiseContrastive` is the same contrast with a bounded gradient.

    Args:
        noise_scale: standard deviation of the jumps, > 0, in the units of x. As an array or a number: another value
            does not recompile.
        num_neighbors: jumps per datum, >= 1; more lower the variance.

    Returns:
        `loss(model, batch, *, key)`, dimensionless; batch `(n, *event_shape)` or `(data, condition)`. It is 1 for a
        flat energy, and below that at the optimum.

    Raises:
        ValueError: if `noise_scale` is not one positive finite number, or `num_neighbors` not a count >= 1.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> flat = ebm.FunctionEnergy(lambda x: 0.0 * jnp.sum(x), (2,))
        >>> objective = ebm.objectives.MinimumProbabilityFlow(noise_scale=0.5)
        >>> float(objective.loss(flat, jnp.ones((8, 2)), key=jax.random.key(0)))
        1.0

    References:
        Sohl-Dickstein, Battaglino, DeWeese (2011). New method for parameter estimation in probabilistic models: minimum
        probability flow. Physical Review Letters 107, 220601. doi:10.1103/PhysRevLett.107.220601
    """

    noise_scale: Float[Array, ""] = eqx.field(converter=as_floating)
    num_neighbors: int = eqx.field(static=True, default=1)
    comparable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """One positive scale, at least one jump."""
        check_noise_scale(self.noise_scale)
        check_count("num_neighbors", self.num_neighbors)

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per datum, with its own jumps; no metrics."""
        x, condition = self.split_batch(model, batch)
        keys = jax.random.split(key, x.shape[0])
        energy = energy_of(model)

        def event_loss(x: Array, condition: Array | None, key: Array) -> Scalar:
            neighbors = neighbor_energies(energy, x, condition, self.noise_scale, self.num_neighbors, key=key)
            return jnp.mean(jnp.exp((energy(x, condition) - neighbors) / 2))

        return jax.vmap(event_loss)(x, condition, keys), {}
