"""Means of importance weights in logarithms: Pareto smoothing, standard error, what speaks against them."""

import dataclasses

import numpy as np

from ebm_ppl.errors import Problem

MIN_TAIL = 5  # weights in the tail below which no shape can be fitted
FEW = 20  # effective draws below which a standard error means nothing


def log_sum(logs: np.ndarray) -> float:
    """Log of the sum of exponentials, in double precision."""
    logs = np.asarray(logs, np.float64)
    top = float(np.max(logs))
    if not np.isfinite(top):
        return top
    return top + float(np.log(np.exp(logs - top).sum()))


@dataclasses.dataclass(frozen=True)
class WeightedMean:
    """log mean w, its standard error by the delta method, Kish's effective sample size, the Pareto shape."""

    log_mean: float
    standard_error: float
    effective_sample_size: float
    khat: float


def weighted_mean(log_weights: np.ndarray, dtype: np.dtype, *, smooth: bool) -> WeightedMean:
    """Of one row of log weights; rounding in `dtype` counts as error."""
    raw = np.asarray(log_weights, np.float64)
    smoothed, khat = pareto_smoothed(raw)
    used = smoothed if smooth else raw
    n = len(used)
    total = log_sum(used)
    if not np.isfinite(total):
        return WeightedMean(float(total - np.log(n)), np.nan, 0.0, khat)
    effective = float(np.exp(2 * total - log_sum(2 * used)))
    relative_variance = max(0.0, n / effective - 1) / (n - 1)
    log_mean = float(total - np.log(n))
    # Of a sum of exponentials: draws of next to no weight may be as inaccurate as they like.
    alive = np.isfinite(used)
    rounding = rounding_error(dtype, float(np.sum(np.exp(used[alive] - total) * np.abs(raw[alive]))))
    return WeightedMean(log_mean, float(np.hypot(np.sqrt(relative_variance), rounding)), effective, khat)


def rounding_error(dtype: np.dtype, magnitudes: np.ndarray | float) -> float:
    """What an energy of this size cannot resolve in this precision, nats."""
    return float(np.finfo(dtype).eps * max(1.0, np.max(np.abs(magnitudes), initial=0.0)))


def pareto_smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Log weights whose largest are replaced by quantiles of a generalised Pareto law fitted to them, and its shape.

    Weights of zero are left out of the fit. Constant tails have shape -inf: there is nothing to smooth.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024). Pareto smoothed importance sampling. Journal of Machine Learning
        Research 25(72), 1-58. arXiv:1507.02646
    """
    if np.isnan(log_weights).any() or (log_weights == np.inf).any():
        return log_weights, np.inf
    alive = np.flatnonzero(log_weights > -np.inf)
    size = int(min(0.2 * len(alive), 3 * np.sqrt(len(alive))))
    if size < MIN_TAIL:
        return log_weights, np.inf
    order = alive[np.argsort(log_weights[alive], kind="stable")]
    top = log_weights[order[-1]]
    tail = np.exp(log_weights[order[-size:]] - top)
    cutoff = np.exp(log_weights[order[-size - 1]] - top)
    if tail[-1] - tail[0] < np.sqrt(np.finfo(float).eps):
        return log_weights, -np.inf
    shape, scale = fit_generalized_pareto(tail - cutoff)
    if not np.isfinite(shape):
        return log_weights, np.inf
    probability = (np.arange(size) + 0.5) / size
    excess = -np.log1p(-probability) if shape == 0 else np.expm1(-shape * np.log1p(-probability)) / shape
    smoothed = log_weights.copy()
    smoothed[order[-size:]] = np.minimum(np.log(cutoff + scale * excess), 0) + top
    return smoothed, float(shape)


def fit_generalized_pareto(excess: np.ndarray) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto law fitted to sorted positive numbers; (NaN, NaN) where none fits.

    The profile posterior mean of Zhang & Stephens, with the shape drawn towards 1/2 by the weight of ten numbers.

    References:
        Zhang, Stephens (2009). A new and efficient estimation method for the generalized Pareto distribution.
        Technometrics 51(3), 316-325. doi:10.1198/tech.2009.08017
    """
    n = len(excess)
    count = 30 + int(np.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    if quartile <= excess[0]:
        return np.nan, np.nan
    grid = 1 - np.sqrt(count / (np.arange(1, count + 1) - 0.5))
    grid = grid / (3 * quartile) + 1 / excess[-1]
    shapes = np.log1p(-grid[:, None] * excess).mean(axis=1)
    profile = n * (np.log(-grid / shapes) - shapes - 1)
    posterior = np.exp(profile - log_sum(profile))
    slope = float(np.sum(grid * posterior))
    shape = float(np.log1p(-slope * excess).mean())
    return (n * shape + 10 * 0.5) / (n + 10), -shape / slope


def weight_problems(mean: WeightedMean, num_weights: int, condition: int | None, cure: str) -> list[Problem]:
    """Not finite, a heavy tail, few effective draws."""
    found = nonfinite_problems(mean.log_mean, condition)
    if found:
        return found
    limit = min(1 - 1 / np.log10(num_weights), 0.7) if num_weights > 10 else 0.0
    if mean.khat > limit:
        advice = f"the importance weights have too heavy a tail (k-hat above {limit:.2f}): do not trust log Z; {cure}"
        found.append(Problem("HIGH_PARETO_K", advice, None, mean.khat, condition))
    if mean.effective_sample_size < FEW:
        advice = f"a few of {num_weights} weights make the whole estimate: do not trust its error; {cure}"
        found.append(Problem("FEW_EFFECTIVE_DRAWS", advice, None, mean.effective_sample_size, condition))
    return found


def nonfinite_problems(value: float, condition: int | None) -> list[Problem]:
    """An estimate that is not a number, with the likeliest cause."""
    if np.isfinite(value):
        return []
    if value == -np.inf:
        advice = "no draw of the reference fell where the energy is finite; give one that lives on the support."
    elif value == np.inf:
        advice = "the energy is -inf somewhere: exp(-E) has no finite integral."
    else:
        advice = "the energy is NaN somewhere; see ebm.check_energy."
    return [Problem("NONFINITE_LOG_NORMALIZER", advice, None, float(value), condition)]
