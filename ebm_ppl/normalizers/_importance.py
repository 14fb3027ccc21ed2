"""Pareto-smoothed importance sampling of log Z."""

from typing import Any

import numpy as np
from jaxtyping import Array

from ebm_ppl._checks import check_count
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.normalizers._estimate import LogNormalizerEstimate, finish
from ebm_ppl.normalizers._inputs import check_base, check_rows, draws_and_log_weights
from ebm_ppl.normalizers._weights import weight_problems, weighted_mean

CURE = "give a wider proposal, one closer to the energy, or use sequential_monte_carlo."


def importance(
    energy: AbstractEnergy | Any,
    proposal: Any = None,
    *,
    key: Array | Any,
    num_samples: int | Any = 10_000,
    condition: Any = None,
    strict: bool = False,
) -> LogNormalizerEstimate:
    r"""Importance sampling of log Z, the largest weights smoothed by a Pareto law.

        Z = E_q[w(x)],   w(x) = exp(-E(x)) / q(x),   x ~ q = `proposal`

    Good where a proposal is known that is a little wider than exp(-E) everywhere. It cannot see modes to which the
    proposal does not go; a proposal that is too narrow shows as `pareto_khat` above .7 and the problem
    `HIGH_PARETO_K`. A proposal of bounded support, such as a uniform one, gives the integral over that support, and
    nothing tells what lies outside.

    Args:
        energy: E, nats.
        proposal: q: a reference energy, a NumPyro distribution or a FlowJAX flow (a conditional one is given the
            condition), in the real coordinates of the energy's support (the event itself where it has none); by
            default N(0, 3^2) in every coordinate.
        key: one JAX key.
        num_samples: draws from q, per condition; at least 2.
        condition: for conditional energies: one condition, or several along a leading axis.
        strict: raise `LogNormalizerError` (carrying the estimate) instead of warning when there is a problem.

    Returns:
        `LogNormalizerEstimate`, one entry per condition where several were given.

    Raises:
        KeyArgumentError: `key` is not one JAX key.
        EnergyShapeError: proposal or condition do not fit the energy.
        TypeError: `proposal` has no density or no draws.
        LogNormalizerError: `strict=True` and there is a problem.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> estimate = ebm.normalizers.importance(energy, key=jax.random.key(0))
        >>> bool(abs(estimate.value - energy.log_normalizer) < 4 * estimate.standard_error), estimate.ok
        (True, True)

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024). Pareto smoothed importance sampling. Journal of Machine Learning
        Research 25(72), 1-58. arXiv:1507.02646
    """
    rows = check_rows(energy, key, condition)
    base = check_base("proposal", proposal, rows.energy)
    num_samples = check_count("num_samples", num_samples, 2)
    _, log_weights = draws_and_log_weights(rows.energy, base, rows.keys, rows.conditions, num_samples=num_samples)
    return finish(estimate_from_weights(np.asarray(log_weights)), batched=rows.batched, strict=strict)


def estimate_from_weights(log_weights: np.ndarray) -> LogNormalizerEstimate:
    """One entry per row of `(row, n)` log weights."""
    means = [weighted_mean(row, log_weights.dtype, smooth=True) for row in log_weights]
    problems = [
        problem
        for index, mean in enumerate(means)
        for problem in weight_problems(mean, log_weights.shape[1], index, CURE)
    ]
    return LogNormalizerEstimate(
        np.array([mean.log_mean for mean in means]),
        np.array([mean.standard_error for mean in means]),
        np.array([mean.effective_sample_size for mean in means]),
        np.array([mean.khat for mean in means]),
        "importance",
        tuple(problems),
    )
