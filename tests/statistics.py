"""Monte Carlo assertions whose tolerance is derived, never tried: |estimate - truth| against its standard error.

Every helper controls the family-wise error of all the numbers it compares (Bonferroni), so that a correct
implementation fails with probability at most `alpha` per call for a fresh key. A test that uses one of them has a
deliberately broken twin that must fail it: `pytest.raises(StatisticalError)`.
"""

import arviz_stats
import numpy as np
from scipy import stats

ALPHA = 1e-5


class StatisticalError(AssertionError):
    """A statistic is further from its truth than chance allows."""


def critical_value(num_comparisons: int, alpha: float = ALPHA) -> float:
    """Two-sided Bonferroni normal quantile: 4.4 for one comparison at alpha = 1e-5."""
    return float(stats.norm.isf(alpha / (2 * num_comparisons)))


def assert_close(estimate, expected, standard_error, *, alpha: float = ALPHA, what: str = "estimate"):
    """Every |estimate - expected| / standard_error within the critical value; non-finite values fail."""
    estimate, expected, standard_error = np.broadcast_arrays(
        np.asarray(estimate, float), np.asarray(expected, float), np.asarray(standard_error, float)
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # a standard error of 0 proves nothing: not finite, it fails
        z = (estimate - expected) / standard_error
    limit = critical_value(z.size, alpha)
    if not np.all(np.abs(z) <= limit):
        worst = np.unravel_index(np.nanargmax(np.where(np.isfinite(z), np.abs(z), np.inf)), z.shape)
        raise StatisticalError(
            f"{what}{list(map(int, worst)) if z.ndim else ''}: {estimate[worst]:.6g}, expected {expected[worst]:.6g}, "
            f"standard error {standard_error[worst]:.3g}: {z[worst]:.1f} standard errors (limit {limit:.1f})"
        )


def mcse_mean(draws) -> np.ndarray:
    """ArviZ's Monte Carlo standard error of the mean over `(chain, draw, ...)`; NaN for constant draws (never 0)."""
    draws = np.asarray(draws, float)
    flat = draws.reshape(*draws.shape[:2], -1)
    columns = [flat[..., i] for i in range(flat.shape[-1])]
    mcse = arviz_stats.base.array_stats.mcse
    errors = np.array([np.nan if np.ptp(column) == 0 else float(mcse(column, method="mean")) for column in columns])
    return errors.reshape(draws.shape[2:])


def assert_mean_close(draws, expected, *, alpha: float = ALPHA, what: str = "mean"):
    """Means of MCMC draws `(chain, draw, ...)` within the bound given by their MCSE; frozen or NaN draws fail."""
    draws = np.asarray(draws, float)
    assert_close(draws.mean((0, 1)), expected, mcse_mean(draws), alpha=alpha, what=what)


def assert_iid_mean_close(draws, expected, *, alpha: float = ALPHA, what: str = "mean"):
    """Means over the leading axis of independent draws `(n, ...)`."""
    draws = np.asarray(draws, float)
    assert_close(draws.mean(0), expected, draws.std(0, ddof=1) / np.sqrt(len(draws)), alpha=alpha, what=what)
