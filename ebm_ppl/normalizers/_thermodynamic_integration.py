"""Thermodynamic integration over the replicas of parallel tempering."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array

from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import Problem
from ebm_ppl.kernels._base import check_invariant
from ebm_ppl.normalizers._estimate import LogNormalizerEstimate, finish
from ebm_ppl.normalizers._inputs import check_rows
from ebm_ppl.normalizers._weights import FEW, nonfinite_problems, rounding_error
from ebm_ppl.sampling import parallel_tempering
from ebm_ppl.sampling._tempering_report import Tempering

MAX_BIAS_ERRORS = 2.0  # standard errors between the integral and the bridges of the same draws
MIN_ROUND_TRIPS = 5  # of each replica, on average: batches shorter than a journey are not independent
LARGE_BIAS = 0.1  # nats: a smaller correction is left unsaid


def thermodynamic_integration(
    energy: AbstractEnergy | Any,
    reference: Any = None,
    *,
    key: Array | Any,
    kernel: Any = None,
    inverse_temperatures: Any = 16,
    num_chains: int | Any = 4,
    num_warmup: int | Any = 1000,
    num_samples: int | Any = 2000,
    num_steps: int | Any = 5,
    condition: Any = None,
    progress_bar: bool = True,
    strict: bool = False,
) -> LogNormalizerEstimate:
    r"""Thermodynamic integration over `parallel_tempering`.

        log Z_1 - log Z_0 = - integral_0^1 E_beta[V] d beta,   V = E - E_0,   p_beta ~ exp(-(1-beta) E_0 - beta E)

    by the trapezoidal rule with the end-point correction that the variances of V give (d E_beta[V] / d beta =
    -Var_beta[V]), less what this rule misses between the temperatures. That is its difference from the optimal bridges
    between neighbouring temperatures on the same draws, which miss nothing; so `value` is the bridges', and the
    integral alone is `draws.tempering.thermodynamic_integral`. Where it misses more than .1 nats that is the problem
    `LADDER_TOO_COARSE`. The replicas swap, so that all modes are visited at all temperatures; fewer than five round
    trips each are the problem `FEW_ROUND_TRIPS`. The standard error is that of batch means of all levels together;
    `interval` uses Student's t with one degree of freedom less than there are batches.

    Where the energy has walls inside the reference, the path starts from the reference inside the walls.

    Args:
        energy: E, nats.
        reference: E_0, a reference energy with exact draws; by default N(0, 3^2) in every coordinate. The moments of
            E under it must be finite.
        key: one JAX key.
        kernel: how each level is explored; `MALA()` by default.
        inverse_temperatures: the number of levels, or the ladder to start from.
        num_chains: independent ladders.
        num_warmup: iterations of tuning.
        num_samples: iterations that are kept.
        num_steps: transitions between two swap attempts.
        condition: for conditional energies: one condition, or several along a leading axis (one run each, with one
            compiled program).
        progress_bar: of `parallel_tempering`.
        strict: raise `LogNormalizerError` (carrying the estimate) instead of warning when there is a problem.

    Returns:
        `LogNormalizerEstimate`, one entry per condition where several were given.

    Raises:
        KeyArgumentError: `key` is not one JAX key.
        EnergyShapeError: reference or condition do not fit the energy.
        ValueError: a number is out of range.
        LogNormalizerError: `strict=True` and there is a problem.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.ones(1), jnp.eye(1))
        >>> estimate = ebm.normalizers.thermodynamic_integration(
        ...     energy, key=jax.random.key(0), inverse_temperatures=8, num_warmup=100, num_samples=400,
        ...     progress_bar=False)
        >>> bool(abs(estimate.value - energy.log_normalizer) < 4 * estimate.standard_error), estimate.ok
        (True, True)

    References:
        Gelman, Meng (1998). Simulating normalizing constants: from importance sampling to bridge sampling to path
        sampling. Statistical Science 13(2), 163-185. doi:10.1214/ss/1028905934
        Bennett (1976). Efficient estimation of free energy differences from Monte Carlo data. Journal of Computational
        Physics 22(2), 245-268. doi:10.1016/0021-9991(76)90078-4
        Friel, Hurn, Wyse (2014). Improving power posterior estimation of statistical evidence. Statistics and
        Computing 24, 709-723. doi:10.1007/s11222-013-9397-1
    """
    rows = check_rows(energy, key, condition)
    check_invariant("kernel", kernel)
    estimates = []
    for index in range(len(rows)):
        draws = parallel_tempering(
            rows.energy,
            kernel,
            key=rows.keys[index],
            reference=reference,
            inverse_temperatures=inverse_temperatures,
            num_chains=num_chains,
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_steps=num_steps,
            condition=None if rows.conditions is None else rows.conditions[index],
            progress_bar=progress_bar,
        )
        one = estimate_from_tempering(draws.tempering)
        estimates.append(dataclasses.replace(one, problems=draws.problems + one.problems))
    return finish(stacked(estimates), batched=rows.batched, strict=strict)


def estimate_from_tempering(tempering: Tempering | None) -> LogNormalizerEstimate:
    """Of one run of parallel tempering, all of whose ladders count."""
    if tempering is None:
        raise ValueError("`draws` must come from ebm.parallel_tempering.")
    value, error = tempering.log_normalizer
    bias, bias_error = tempering.discretization_bias
    problems = nonfinite_problems(value, None)
    if not problems:
        problems = [*_problems(tempering), *_coarse(bias, max(MAX_BIAS_ERRORS * bias_error, LARGE_BIAS))]
    if np.isfinite(value):
        error = float(np.hypot(error, rounding_error(tempering.potentials.dtype, value)))
    return LogNormalizerEstimate(
        value,
        error,
        float("nan"),
        float("nan"),
        "thermodynamic_integration",
        tuple(problems),
        degrees_of_freedom=tempering.degrees_of_freedom,
    )


def _coarse(bias: float, limit: float) -> list[Problem]:
    if np.isnan(bias) or abs(bias) <= limit:
        return []
    advice = (
        f"the integral alone misses {bias:+.3f} nats between the temperatures, which the bridges between them make up "
        "for; use more temperatures, or a reference closer to the energy."
    )
    return [Problem("LADDER_TOO_COARSE", advice, None, bias)]


def _problems(tempering: Tempering) -> list[Problem]:
    found = []
    if tempering.replicas_outside > 0:
        advice = (
            "replicas above the reference are still beyond a wall of the energy: raise num_warmup, or give a reference "
            "with more of its mass inside."
        )
        found.append(Problem("REPLICAS_OUTSIDE", advice, None, tempering.replicas_outside))
    levels, trips = len(tempering.inverse_temperatures), float(np.mean(tempering.round_trips))
    if trips < MIN_ROUND_TRIPS * levels:
        advice = (
            f"{levels} replicas made only {trips:.0f} round trips between reference and energy: where there are modes "
            "apart, the error is too small; raise num_samples or num_steps, or give a reference closer to the energy."
        )
        found.append(Problem("FEW_ROUND_TRIPS", advice, None, trips))
    if tempering.bridge_overlap < FEW:
        advice = "neighbouring temperatures hardly overlap: use more of them, or a reference closer to the energy."
        found.append(Problem("FEW_EFFECTIVE_DRAWS", advice, None, tempering.bridge_overlap))
    return found


def stacked(estimates: list[LogNormalizerEstimate]) -> LogNormalizerEstimate:
    problems = tuple(
        dataclasses.replace(problem, condition=index)
        for index, estimate in enumerate(estimates)
        for problem in estimate.problems
    )
    none = np.full(len(estimates), np.nan)
    return LogNormalizerEstimate(
        np.array([estimate.value for estimate in estimates]),
        np.array([estimate.standard_error for estimate in estimates]),
        none,
        none,
        estimates[0].method,
        problems,
        degrees_of_freedom=estimates[0].degrees_of_freedom,
    )
