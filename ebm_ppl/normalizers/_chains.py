"""How much correlated draws are worth, in NumPy: ArviZ, which does the same, belongs to the diagnostics."""

import numpy as np


def effective_size(values: np.ndarray) -> float:
    """Effective number of the `(chain, draw)` values for their mean, by Geyer's initial monotone sequence.

    The variance between the chains counts: chains that disagree are worth little.

    References:
        Geyer (1992). Practical Markov chain Monte Carlo. Statistical Science 7(4), 473-483. doi:10.1214/ss/1177011137
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021). Rank-normalization, folding, and localization: an improved
        R-hat for assessing convergence of MCMC. Bayesian Analysis 16(2), 667-718. doi:10.1214/20-BA1221
    """
    values = split_halves(values[..., None])[..., 0]
    length = values.shape[1]
    covariance = _autocovariance(values)
    within = covariance[:, 0].mean() * length / (length - 1)
    total = covariance[:, 0].mean() + values.mean(axis=1).var(ddof=1)
    if total <= 0:
        return float(values.size)
    correlation = 1 - (within - covariance.mean(axis=0) * length / (length - 1)) / total
    correlation[0] = 1
    even = 2 * (length // 2)
    pairs = correlation[:even:2] + correlation[1:even:2]
    first_negative = np.argmax(pairs <= 0) if (pairs <= 0).any() else len(pairs)
    pairs = np.minimum.accumulate(pairs[: max(1, first_negative)])
    time = max(-1 + 2 * pairs.sum(), 1 / np.log10(values.size))
    return float(values.size / time)


def split_rhat(positions: np.ndarray) -> float:
    """The largest split R-hat of any coordinate of `(chain, draw, *event)`; inf for chains that never move."""
    flat = positions.reshape(*positions.shape[:2], -1).astype(np.float64)
    halves = split_halves(flat)
    length = halves.shape[1]
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = halves.mean(axis=1).var(axis=0, ddof=1)
    if not (within > 0).all():
        return float("inf")
    return float(np.sqrt((length - 1) / length + between / within).max())


def split_halves(positions: np.ndarray) -> np.ndarray:
    """`(chain, draw, ...)` as twice as many chains of half the length."""
    half = positions.shape[1] // 2
    return np.concatenate([positions[:, :half], positions[:, -half:]])


def _autocovariance(values: np.ndarray) -> np.ndarray:
    length = values.shape[1]
    centred = values - values.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred, 2 * length, axis=1)
    return np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :length] / length
