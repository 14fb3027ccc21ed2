"""What a tempered run says about itself: swaps, round trips, and log Z from the potentials at every level."""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.special

NUM_BATCHES = 20  # batch means per ensemble behind the standard error of log Z
MAX_BRIDGE_ITERATIONS, BRIDGE_TOLERANCE = 500, 1e-10  # the fixed point converges geometrically


@dataclasses.dataclass(frozen=True, eq=False)
class Tempering:
    r"""The ladder of a parallel-tempering run and how well it works.

    Along the path \(E_\beta = (1 - \beta) E_0 + \beta E\), from the reference (\(\beta = 0\)) to the target
    (\(\beta = 1\)), with the potential \(V = E - E_0\):

    Args:
        inverse_temperatures: \(\beta_0 = 0 < ... < \beta_K = 1\), as tuned.
        rejection_rates: of the swaps between neighbours, `(levels - 1,)`; equal when the ladder is tuned.
        round_trips: completed journeys reference -> target -> reference, per ensemble.
        num_iterations: swap attempts of each ensemble.
        potentials: V at every level, `(chain, draw, level)`, nats.
        reference_log_normalizer: log Z of the reference, nats.

    References:
        Syed, Bouchard-Cote, Deligiannidis, Doucet (2022). Non-reversible parallel tempering. Journal of the Royal
        Statistical Society B 84(2), 321-350. doi:10.1111/rssb.12464
    """

    inverse_temperatures: np.ndarray
    rejection_rates: np.ndarray
    round_trips: np.ndarray
    num_iterations: int
    potentials: np.ndarray
    reference_log_normalizer: float

    @property
    def barrier(self) -> float:
        """The communication barrier: the sum of the rejection rates. Twice that many levels is a good ladder."""
        return float(np.sum(self.rejection_rates))

    @property
    def round_trip_rate(self) -> float:
        """Round trips per iteration and ensemble; at most 1 / (2 + 2 barrier) for a non-reversible ladder."""
        return float(np.mean(self.round_trips)) / self.num_iterations

    @property
    def round_trip_efficiency(self) -> float:
        """`round_trip_rate` over its theoretical maximum; above about .15 the ladder communicates."""
        return self.round_trip_rate * (2 + 2 * self.barrier)

    @property
    def log_normalizer(self) -> tuple[float, float]:
        r"""Target log Z by optimal bridges between neighbouring levels, and its standard error, in nats.

            r_k = Z_{k+1} / Z_k  solves  mean_k[ w / (w + r_k) ] = r_k mean_{k+1}[ 1 / (w + r_k) ],   w = exp(-d_k V)

        with d_k = beta_{k+1} - beta_k and mean_k over the draws at level k. Walls of the target are no obstacle: where
        V is infinite w is zero. The error comes from batch means.

        References:
            Bennett (1976). Efficient estimation of free energy differences from Monte Carlo data. Journal of
            Computational Physics 22(2), 245-268. doi:10.1016/0021-9991(76)90078-4
            Meng, Wong (1996). Simulating ratios of normalizing constants via a simple identity. Statistica Sinica 6,
            831-860.
        """
        return self._estimate(self._bridges)

    @property
    def thermodynamic_integral(self) -> tuple[float, float]:
        r"""Target log Z by thermodynamic integration, and its standard error, in nats.

            log Z_1/Z_0 = - integral_0^1 E_beta[V] d beta

        by the trapezoidal rule with the end-point correction that the variances of V give for free
        (d E_beta[V] / d beta = -Var_beta[V]). Where the target has walls inside the reference, the path starts from the
        reference inside the walls, whose share is counted. Needs finite moments of V there.
        """
        return self._estimate(self._integral)

    @property
    def discretization_bias(self) -> tuple[float, float]:
        """What `thermodynamic_integral` misses between the levels, and the standard error of that, in nats.

        By comparison with `log_normalizer`, whose bridges miss nothing, on the same draws.
        """
        value, error = self._estimate(lambda potentials: self._integral(potentials) - self._bridges(potentials))
        return value - self.reference_log_normalizer, error

    def __repr__(self) -> str:
        """Ladder, swaps, round trips, log Z."""
        value, error = self.log_normalizer
        return (
            f"Tempering: {len(self.inverse_temperatures)} levels, swap rejection "
            f"{self.rejection_rates.min():.2f} to {self.rejection_rates.max():.2f} (barrier {self.barrier:.2f}), "
            f"{int(self.round_trips.sum())} round trips (efficiency {self.round_trip_efficiency:.2f}), "
            f"log Z = {value:.3f} +- {error:.3f}"
        )

    def _estimate(self, estimator) -> tuple[float, float]:
        potentials = np.asarray(self.potentials, np.float64)
        _, draws, levels = potentials.shape
        whole = estimator(potentials.reshape(-1, levels))
        length = max(1, draws // NUM_BATCHES)
        values = _batched(estimator, potentials, length)
        # A short batch may have no draw of the reference inside the target's walls: then longer ones.
        while not np.isfinite(values).all() and 2 * length <= draws:
            length *= 2
            values = _batched(estimator, potentials, length)
        known = len(values) > 1 and np.isfinite(values).all()
        error = values.std(ddof=1) / np.sqrt(len(values)) if known else np.nan
        return float(whole + self.reference_log_normalizer), float(error)

    def _bridges(self, potentials: np.ndarray) -> float:
        gaps = np.diff(self.inverse_temperatures)
        below, above = -gaps * potentials[:, :-1], -gaps * potentials[:, 1:]  # log w at levels k and k + 1
        ratio = _log_mean_exp(below)
        if not np.isfinite(ratio).all():
            return float(np.sum(ratio))
        for _ in range(MAX_BRIDGE_ITERATIONS):
            weighted = _log_mean_exp(below - np.logaddexp(below, ratio))
            new = weighted - _log_mean_exp(-np.logaddexp(above, ratio))
            done = np.max(np.abs(new - ratio)) < BRIDGE_TOLERANCE
            ratio = new
            if done:
                break
        return float(np.sum(ratio))

    def _integral(self, potentials: np.ndarray) -> float:
        outside = potentials[:, 0] == np.inf  # draws of the reference beyond a wall of the target
        levels = [potentials[~outside, 0], *potentials[:, 1:].T]
        if outside.all() or not all(np.isfinite(level).all() for level in levels):
            return float("nan")
        gaps = np.diff(self.inverse_temperatures)
        mean = np.array([level.mean() for level in levels])
        slope = np.array([-level.var() for level in levels])
        trapezoid = gaps * (mean[1:] + mean[:-1]) / 2 - gaps**2 * (slope[1:] - slope[:-1]) / 12
        return float(np.log1p(-outside.mean()) - np.sum(trapezoid))


def _batched(estimator: Callable[[np.ndarray], float], potentials: np.ndarray, length: int) -> np.ndarray:
    """The estimator on every stretch of this length of every ensemble."""
    chains, draws, levels = potentials.shape
    count = draws // length
    batches = potentials[:, : count * length].reshape(chains * count, length, levels)
    return np.array([estimator(batch) for batch in batches])


def _log_mean_exp(values: np.ndarray) -> np.ndarray:
    return scipy.special.logsumexp(values, axis=0) - np.log(len(values))
