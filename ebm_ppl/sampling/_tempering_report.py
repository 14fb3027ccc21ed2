"""What a tempered run says about itself: swaps, round trips, and log Z from the potentials at every level."""

import dataclasses

import numpy as np
import scipy.special

NUM_BATCHES = 16  # together, behind a standard error: few and long, for replicas travel slowly
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
        V is infinite w is zero. The error comes from batch means of the linearised estimate, all levels together, so
        that it counts what the levels share; `degrees_of_freedom` says how many batches there were.

        References:
            Bennett (1976). Efficient estimation of free energy differences from Monte Carlo data. Journal of
            Computational Physics 22(2), 245-268. doi:10.1016/0021-9991(76)90078-4
            Meng, Wong (1996). Simulating ratios of normalizing constants via a simple identity. Statistica Sinica 6,
            831-860.
        """
        value, influence = self._bridges_and_influence()
        return value + self.reference_log_normalizer, self._error(influence)

    @property
    def thermodynamic_integral(self) -> tuple[float, float]:
        r"""Target log Z by thermodynamic integration, and its standard error, in nats.

            log Z_1/Z_0 = - integral_0^1 E_beta[V] d beta

        by the trapezoidal rule with the end-point correction that the variances of V give for free
        (d E_beta[V] / d beta = -Var_beta[V]). Where the target has walls inside the reference, the path starts from the
        reference inside the walls, whose share is counted. Needs finite moments of V there.
        """
        value, influence = self._integral_and_influence()
        return value + self.reference_log_normalizer, self._error(influence)

    @property
    def discretization_bias(self) -> tuple[float, float]:
        """What `thermodynamic_integral` misses between the levels, and the standard error of that, in nats.

        By comparison with `log_normalizer`, whose bridges miss nothing, on the same draws.
        """
        integral, one = self._integral_and_influence()
        bridges, other = self._bridges_and_influence()
        return integral - bridges, self._error(one - other)

    def __repr__(self) -> str:
        """Ladder, swaps, round trips, log Z."""
        value, error = self.log_normalizer
        return (
            f"Tempering: {len(self.inverse_temperatures)} levels, swap rejection "
            f"{self.rejection_rates.min():.2f} to {self.rejection_rates.max():.2f} (barrier {self.barrier:.2f}), "
            f"{int(self.round_trips.sum())} round trips (efficiency {self.round_trip_efficiency:.2f}), "
            f"log Z = {value:.3f} +- {error:.3f}"
        )

    @property
    def degrees_of_freedom(self) -> float:
        """Of the standard errors: one less than the number of batches."""
        chains, draws, _ = self.potentials.shape
        return float(_num_batches(chains, draws) * chains - 1)

    @property
    def replicas_outside(self) -> float:
        """Share of the draws above the reference that lie beyond a wall of the target: zero once warm-up is over."""
        return float(np.mean(self.potentials[..., 1:] == np.inf))

    @property
    def bridge_overlap(self) -> float:
        """The smallest effective number of draws (Kish) behind any bridge between neighbouring levels."""
        terms = self._bridges()[1]
        return float(min((term.sum(0) ** 2 / (term**2).sum(0)).min() for term in terms))

    def _flat(self) -> np.ndarray:
        potentials = np.asarray(self.potentials, np.float64)
        return potentials.reshape(-1, potentials.shape[-1])

    def _error(self, influence: np.ndarray) -> float:
        """Standard error of the mean of the `(chain * draw,)` influences, by batch means."""
        chains, draws, _ = self.potentials.shape
        count = _num_batches(chains, draws)
        length = draws // count
        batches = influence.reshape(chains, draws)[:, -count * length :].reshape(chains * count, length).mean(axis=1)
        return float(batches.std(ddof=1) / np.sqrt(len(batches))) if len(batches) > 1 else float("nan")

    def _bridges(self) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
        """Log Z over that of the reference; the terms of both means of every bridge in units of these means."""
        potentials = self._flat()
        gaps = np.diff(self.inverse_temperatures)
        below, above = -gaps * potentials[:, :-1], -gaps * potentials[:, 1:]  # log w at levels k and k + 1
        ratio = _log_mean_exp(below)
        if not np.isfinite(ratio).all():
            return float(np.sum(ratio)), (np.full_like(below, np.nan), np.full_like(above, np.nan))
        there, back = below, above
        for _ in range(MAX_BRIDGE_ITERATIONS):
            there, back = below - np.logaddexp(below, ratio), -np.logaddexp(above, ratio)
            new = _log_mean_exp(there) - _log_mean_exp(back)
            done = np.max(np.abs(new - ratio)) < BRIDGE_TOLERANCE
            ratio = new
            if done:
                break
        return float(np.sum(ratio)), (np.exp(there - _log_mean_exp(there)), np.exp(back - _log_mean_exp(back)))

    def _bridges_and_influence(self) -> tuple[float, np.ndarray]:
        # At its solution a bridge does not depend to first order on the ratio it was given: only the means count.
        value, (there, back) = self._bridges()
        return value, np.sum(there - back, axis=1)

    def _integral_and_influence(self) -> tuple[float, np.ndarray]:
        potentials = self._flat()
        counted = potentials < np.inf
        if not np.isfinite(potentials[:, 1:]).all() or not counted[:, 0].any() or np.isnan(potentials[:, 0]).any():
            return float("nan"), np.full(len(potentials), np.nan)
        share = counted.mean(axis=0)  # 1 but for the reference beyond the walls of the target
        inside = counted / share
        centred = np.where(counted, potentials, 0.0)
        mean = (inside * centred).mean(axis=0)
        centred = np.where(counted, centred - mean, 0.0)
        variance = (inside * centred**2).mean(axis=0)
        gaps = np.diff(self.inverse_temperatures)
        left, right = np.append(gaps, 0.0), np.append(0.0, gaps)
        of_mean, of_variance = (left + right) / 2, (right**2 - left**2) / 12
        value = np.log(share[0]) - np.sum(of_mean * mean + of_variance * variance)
        moments = of_mean * centred + of_variance * (centred**2 - variance)
        return float(value), inside[:, 0] - 1 - np.sum(inside * moments, axis=1)


def _num_batches(chains: int, draws: int) -> int:
    """Of each chain; together about `NUM_BATCHES`."""
    return max(1, min(draws, -(-NUM_BATCHES // chains)))


def _log_mean_exp(values: np.ndarray) -> np.ndarray:
    return scipy.special.logsumexp(values, axis=0) - np.log(len(values))
