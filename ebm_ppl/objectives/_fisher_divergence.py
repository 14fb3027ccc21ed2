"""The Fisher divergence between two energies."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ebm_ppl._checks import check_data
from ebm_ppl._types import Scalar
from ebm_ppl.energies import AbstractEnergy, score
from ebm_ppl.errors import EnergyShapeError, InvalidDataError


class DivergenceEstimate(NamedTuple):
    """A divergence and its Monte Carlo standard error."""

    value: Scalar
    standard_error: Scalar


def fisher_divergence(
    energy: AbstractEnergy, other: AbstractEnergy, draws: Any, condition: Any = None
) -> DivergenceEstimate:
    r"""Fisher divergence of `other` from `energy`, estimated on independent draws from `energy`.

        F = 1/2 E || score_energy(x) - score_other(x) ||^2,   x ~ exp(-energy)/Z

    No normaliser is needed. It is what score matching minimises: the loss of `ExactScoreMatching` minus its minimum,
    with `energy` the law of the data. It is blind where score matching is: two mixtures with well-separated modes
    and different weights have F near 0.

    Args:
        energy: the law that `draws` come from.
        other: the law compared with it.
        draws: independent draws from `energy`, shape `(n, *event_shape)`, n >= 2. The standard error takes them for
            independent: thin the draws of a Markov chain first.
        condition: for conditional energies, the condition of each draw, shape `(n, *condition_shape)`.

    Returns:
        `DivergenceEstimate(value, standard_error)`, in squared inverse units of x.

    Raises:
        EnergyShapeError: if the energies or the draws differ in event shape.
        InvalidDataError: if draws are not finite, or fewer than two.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> law = ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))
        >>> other = ebm.energies.Gaussian(mean=jnp.ones(2), covariance=jnp.eye(2))
        >>> estimate = ebm.fisher_divergence(law, other, law.sample(jax.random.key(0), (100,)))
        >>> float(estimate.value), bool(estimate.standard_error < 1e-6)       # the scores differ by (1, 1) everywhere
        (1.0, True)

    References:
        Hyvärinen (2005). Estimation of non-normalized statistical models by score matching. Journal of Machine
        Learning Research 6, 695-709. https://jmlr.org/papers/v6/hyvarinen05a.html
    """
    if energy.event_shape != other.event_shape:
        raise EnergyShapeError(
            f"the energies must share one event shape; got {energy.event_shape} and {other.event_shape}."
        )
    x = check_data("draws", draws, energy.event_shape)
    if x.shape[0] < 2:
        raise InvalidDataError("`draws` must hold at least 2 events, or there is no standard error; got 1.")
    if condition is not None:
        condition = check_data("condition", condition, energy.condition_shape or ())
    return DivergenceEstimate(*_mean_and_error(energy, other, x, condition))


@eqx.filter_jit
def _mean_and_error(
    energy: AbstractEnergy, other: AbstractEnergy, x: Array, condition: Array | None
) -> tuple[Array, Array]:
    def of_event(x: Array, condition: Array | None) -> Scalar:
        return jnp.sum((score(energy, x, condition) - score(other, x, condition)) ** 2) / 2

    values = jax.vmap(of_event)(x, condition)
    return jnp.mean(values), jnp.std(values, ddof=1) / jnp.sqrt(jnp.asarray(x.shape[0], x.dtype))
