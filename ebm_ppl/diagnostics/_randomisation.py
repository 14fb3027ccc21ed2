"""Exact p-values by simulation under the hypothesis, with a rigorous bound below their resolution."""

import numpy as np
from jaxtyping import Float

NUM_RANDOMISATIONS = 1999
_CHUNK = 2**22  # random numbers held at a time


def sign_flip_p_value(
    columns: Float[np.ndarray, "n statistic"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, " statistic"], float]:
    r"""The statistic |sum a_i| / sqrt(sum a_i^2) = z of every column, and the p-value of the largest.

    Under the hypothesis the rows are as likely with either sign, all columns together: the p-value is exact whatever
    their law and correlation (Besag, Clifford 1989, doi:10.1093/biomet/76.4.633). Where no randomisation reaches the
    observed value, Hoeffding's bound on the law under sign flips, 2 exp(-z^2 / 2) a column, may be smaller.
    """
    norms = np.sqrt((columns**2).sum(axis=0))
    columns = columns[:, norms > 0] / norms[norms > 0]
    if columns.shape[1] == 0:
        return np.zeros(0), 1.0
    observed = np.abs(columns.sum(axis=0))
    exceeded, limit = 0, observed.max() * (1 - 1e-12)
    rows = max(1, _CHUNK // len(columns))
    for first in range(0, NUM_RANDOMISATIONS, rows):
        count = min(rows, NUM_RANDOMISATIONS - first)
        bits = np.unpackbits(np.frombuffer(rng.bytes(-(-count * len(columns) // 8)), np.uint8))
        signs = bits[: count * len(columns)].reshape(count, -1).astype(np.float32) * 2 - 1
        largest = np.abs(signs @ columns.astype(np.float32)).max(axis=1)
        exceeded += int((largest >= limit * (1 - 1e-6)).sum())
    return observed, _p_value(exceeded, 2 * columns.shape[1] * np.exp(-(observed.max() ** 2) / 2))


def bernoulli_p_value(
    accepted: Float[np.ndarray, " n"], rate: Float[np.ndarray, " n"], rng: np.random.Generator
) -> tuple[float, float]:
    """Sum of accepted - rate in standard deviations, and its two-sided p-value if accepted ~ Bernoulli(rate)."""
    certain = (rate == 0) | (rate == 1)
    if (accepted[certain] != rate[certain]).any():
        return np.inf, 0.0
    accepted, rate = accepted[~certain], rate[~certain].astype(np.float32)
    if not len(rate):
        return 0.0, 1.0
    centre = float(rate.sum(dtype=np.float64))
    observed = abs(accepted.sum() - centre)
    exceeded = 0
    rows = max(1, _CHUNK // len(rate))
    for first in range(0, NUM_RANDOMISATIONS, rows):
        count = min(rows, NUM_RANDOMISATIONS - first)
        simulated = (rng.random((count, len(rate)), dtype=np.float32) < rate).sum(axis=1)
        exceeded += int((np.abs(simulated - centre) >= observed - 1e-9).sum())
    deviation = observed / np.sqrt((rate * (1 - rate)).sum(dtype=np.float64))
    return float(deviation), _p_value(exceeded, 2 * np.exp(-2 * observed**2 / len(rate)))


def _p_value(exceeded: int, bound: float) -> float:
    simulated = (exceeded + 1) / (NUM_RANDOMISATIONS + 1)
    return min(simulated, bound) if exceeded == 0 else simulated
