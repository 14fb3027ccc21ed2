"""`plot_tempering`: the ladder of a parallel-tempering run and what it says."""

import dataclasses
from typing import Any

import numpy as np

from ebm_ppl.plots._arviz import PlotCollection
from ebm_ppl.plots._panels import BAD, GOOD, MUTED, Panels
from ebm_ppl.sampling import Draws, Tempering


def plot_tempering(draws: Draws | Tempering | Any, *, backend: str | None = None) -> PlotCollection:
    r"""Show a tempered run: ladder, swaps, round trips, and log Z along the path.

    - `ladder`: the inverse temperature of every level, as tuned;
    - `swaps`: the share of rejected swaps between neighbours, at the middle of their inverse temperatures, and the
      mean, which a tuned ladder meets everywhere;
    - `round trips`: completed journeys of each ensemble, and the most that a ladder of this barrier can make,
      num_iterations / (2 + 2 barrier);
    - `log Z`: \(\log Z_\beta\) from the reference (0) to the target (1) by optimal bridges, with 2 standard errors.

    Args:
        draws: what `ebm.parallel_tempering` returned, or its `.tempering`.
        backend: of arviz-plots.

    Returns:
        A `PlotCollection` with these four panels; artists `levels`, `rejection_rates`, `mean_rejection_rate`,
        `round_trips`, `most_round_trips`, `log_normalizer`, `interval`.

    Raises:
        ValueError: the draws are of an untempered run.

    Example:
        >>> import numpy as np, ebm_ppl as ebm
        >>> potentials = np.random.default_rng(0).normal(size=(2, 100, 3))  # V at three levels of two ensembles
        >>> ladder = ebm.Tempering(
        ...     inverse_temperatures=np.array([0.0, 0.4, 1.0]), rejection_rates=np.array([0.3, 0.3]),
        ...     round_trips=np.array([20, 25]), num_iterations=100, potentials=potentials, reference_log_normalizer=0.0,
        ... )  # as `ebm.parallel_tempering(...).tempering`
        >>> picture = ebm.plot_tempering(ladder)
        >>> picture.get_viz("levels", "ladder").get_ydata().tolist()
        [0.0, 0.4, 1.0]

    References:
        Syed, Bouchard-Cote, Deligiannidis, Doucet (2022). Non-reversible parallel tempering. Journal of the Royal
        Statistical Society B 84(2), 321-350. doi:10.1111/rssb.12464
    """
    tempering = draws.tempering if isinstance(draws, Draws) else draws
    if tempering is None:
        raise ValueError("`draws` are of an untempered run: they have no ladder. See ebm.parallel_tempering.")
    if not isinstance(tempering, Tempering):
        raise TypeError(f"`draws` must be Draws or a Tempering; got {type(draws).__name__}.")
    panels = Panels(["ladder", "swaps", "round trips", "log Z"], backend, columns=2)
    betas = np.asarray(tempering.inverse_temperatures, np.float64)
    panels.draw("ladder", "levels", "line", np.arange(len(betas)), betas, color=GOOD, marker="o")
    panels.label("ladder", "level", "inverse temperature")
    middles = (betas[1:] + betas[:-1]) / 2
    panels.draw("swaps", "rejection_rates", "line", middles, tempering.rejection_rates, color=GOOD, marker="o")
    panels.draw(
        "swaps", "mean_rejection_rate", "hline", float(np.mean(tempering.rejection_rates)), color=MUTED, linestyle="--"
    )
    panels.set("swaps", "ylim", (0.0, 1.0))
    panels.label("swaps", "inverse temperature", "rejected swaps")
    trips = np.atleast_1d(tempering.round_trips)
    panels.draw("round trips", "round_trips", "scatter", np.arange(len(trips)), trips, color=GOOD, size=40)
    most = tempering.num_iterations / (2 + 2 * tempering.barrier)
    panels.draw("round trips", "most_round_trips", "hline", most, color=BAD, linestyle="--")
    panels.set("round trips", "ylim", (0.0, 1.1 * max(most, float(trips.max()))))
    panels.label("round trips", "ensemble", "round trips")
    values, errors = _path(tempering)
    panels.draw(
        "log Z", "interval", "fill_between_y", betas, values - 2 * errors, values + 2 * errors, color=GOOD, alpha=0.3
    )
    panels.draw("log Z", "log_normalizer", "line", betas, values, color=GOOD)
    panels.label("log Z", "inverse temperature", "log Z (nats)")
    return panels.title(
        f"log Z = {values[-1]:.3f} +- {errors[-1]:.3f}, {int(trips.sum())} round trips "
        f"(efficiency {tempering.round_trip_efficiency:.2f})"
    )


def _path(tempering: Tempering) -> tuple[np.ndarray, np.ndarray]:
    """Log Z and its standard error at every level: that of the ladder cut off there."""
    values, errors = [tempering.reference_log_normalizer], [0.0]
    for top in range(2, len(tempering.inverse_temperatures) + 1):
        ladder = dataclasses.replace(
            tempering,
            inverse_temperatures=tempering.inverse_temperatures[:top],
            rejection_rates=tempering.rejection_rates[: top - 1],
            potentials=tempering.potentials[..., :top],
        )
        value, error = ladder.log_normalizer
        values.append(value)
        errors.append(error)
    return np.array(values), np.array(errors)
