"""Are ranks uniform? An exact simultaneous test of their empirical distribution function."""

import numpy as np
from jaxtyping import Float, Int
from scipy import special, stats

# The distribution function is compared at this many evenly spaced points at most. Finer ones would see the slight
# pile-up at the extreme ranks that draws leave which are nearly, not perfectly, independent.
NUM_BINS = 20


def thresholds(num_draws: int) -> Int[np.ndarray, " threshold"]:
    """The ranks below which is counted."""
    bins = min(num_draws + 1, NUM_BINS)
    return np.unique(np.round(np.arange(1, bins) * (num_draws + 1) / bins).astype(int))


def uniformity_p_value(ranks: Int[np.ndarray, " simulation"], num_draws: int) -> tuple[float, float]:
    r"""The p-value of "these ranks are uniform on 0, ..., num_draws", exact, and the largest ECDF difference.

    With C_k the number of ranks below threshold t_k, Binomial(N, t_k / (num_draws + 1)), the statistic is

        g = min over k of min( P(Bin_k <= C_k), P(Bin_k >= C_k) )

    the smallest pointwise p-value, so that every part of the distribution counts alike. Its distribution over all k at
    once follows from the Markov chain C_1, C_2, ..., whose steps are binomial.

    References:
        Säilynoja, Bürkner, Vehtari (2022). Graphical test for discrete uniformity and its applications in goodness-of-
        fit evaluation and multiple sample comparison. Statistics and Computing 32, 32. doi:10.1007/s11222-022-10090-6
    """
    cuts, number = thresholds(num_draws), len(ranks)
    probabilities = cuts / (num_draws + 1)
    counts = np.array([np.count_nonzero(ranks < cut) for cut in cuts])
    every = np.arange(number + 1)[:, None]
    smaller = np.minimum(
        stats.binom.cdf(every, number, probabilities), stats.binom.sf(every - 1, number, probabilities)
    )
    statistic = float(smaller[counts, np.arange(len(cuts))].min())
    inside = smaller > statistic * (1 + 1e-9)
    # Bounds that hold whatever is rounded in the difference from 1.
    p_value = np.clip(1 - _probability_inside(inside, probabilities), statistic, min(1.0, 2 * len(cuts) * statistic))
    return float(p_value), float(np.abs(counts / number - probabilities).max())


def _probability_inside(inside: np.ndarray, probabilities: Float[np.ndarray, " threshold"]) -> float:
    """P(every count is among its allowed ones)."""
    number = len(inside) - 1
    log_factorial = special.gammaln(np.arange(number + 1) + 1.0)
    counts, weights, last = np.zeros(1, int), np.ones(1), 0.0
    for column, probability in zip(inside.T, probabilities, strict=True):
        allowed = np.flatnonzero(column)
        if not len(allowed):
            return 0.0
        step = (probability - last) / (1 - last)
        left, taken = (number - counts)[:, None], allowed[None, :] - counts[:, None]
        rest = left - taken
        possible = (taken >= 0) & (rest >= 0)
        taken, rest = np.where(possible, taken, 0), np.where(possible, rest, 0)
        log_chance = log_factorial[left] - log_factorial[taken] - log_factorial[rest]
        log_chance = log_chance + taken * np.log(step) + rest * np.log1p(-step)
        weights = weights @ np.exp(np.where(possible, log_chance, -np.inf))
        counts, last = allowed, probability
    return float(weights.sum())


def holm(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Holm's adjustment: each may be compared with the family-wise level.

    References:
        Holm (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6(2),
        65-70.
    """
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(scaled)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
