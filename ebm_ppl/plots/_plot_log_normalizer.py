"""`plot_log_normalizer`: estimates of log Z side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ebm_ppl.normalizers import LogNormalizerEstimate
from ebm_ppl.plots._arviz import PlotCollection
from ebm_ppl.plots._panels import BAD, GOOD, MUTED, Panels

PANEL = "log Z"


def plot_log_normalizer(
    estimates: LogNormalizerEstimate | Sequence[LogNormalizerEstimate] | Mapping[str, LogNormalizerEstimate] | Any,
    *,
    truth: float | None = None,
    probability: float = 0.95,
    backend: str | None = None,
) -> PlotCollection:
    r"""Estimates of log Z with their intervals, and the sandwich of those that have one.

    Each row is an estimate: a dot, its interval (`estimate.interval(probability)`) and, where the method bounds log Z
    from both sides, the bounds as bars. Estimates that were compared (`.parts`, as of `ebm.log_normalizer`) have rows
    of their own. An estimate with problems is red.

    Args:
        estimates: one, several, or several by name; each for one condition (`estimate[i]` of a batch).
        truth: the exact log Z, nats, where it is known.
        probability: coverage of the intervals.
        backend: of arviz-plots.

    Returns:
        A `PlotCollection` with the panel `log Z`; artists `estimate 0`, `interval 0`, `bounds 0`, ... by row, `truth`.

    Raises:
        ValueError: no estimate, one for a batch of conditions, or `probability` is out of range.
        TypeError: something else than estimates.

    Example:
        >>> import ebm_ppl as ebm
        >>> estimate = ebm.LogNormalizerEstimate(1.84, 0.01, 900.0, 0.2, "importance", ())
        >>> picture = ebm.plot_log_normalizer(estimate, truth=1.8379)
        >>> low, high = picture.get_viz("interval 0", "log Z").get_xdata()
        >>> print(f"{low:.4f} {high:.4f}")
        1.8204 1.8596

    References:
        Gelman, Meng (1998). Simulating normalizing constants: from importance sampling to bridge sampling to path
        sampling. Statistical Science 13(2), 163-185. doi:10.1214/ss/1028905934
    """
    rows = _rows(estimates)
    panels = Panels([PANEL], backend, width=7.0)
    for row, (_, estimate) in enumerate(rows):
        color = GOOD if estimate.ok else BAD
        if estimate.bounds is not None:
            bounds = [float(np.asarray(bound)) for bound in estimate.bounds]
            panels.draw(PANEL, f"bounds {row}", "scatter", bounds, [row, row], marker="|", size=200, color=MUTED)
        interval = [float(np.asarray(end)) for end in estimate.interval(probability)]
        panels.draw(PANEL, f"interval {row}", "line", interval, [row, row], color=color, width=2)
        value = float(np.asarray(estimate.value))
        panels.draw(PANEL, f"estimate {row}", "scatter", [value], [row], color=color, size=40)
    if truth is not None:
        panels.draw(PANEL, "truth", "vline", float(truth), color=MUTED, linestyle="--")
    panels.rows(PANEL, [name for name, _ in rows])
    panels.label(PANEL, f"nats, with {probability:.0%} intervals")
    codes = dict.fromkeys(problem.code for _, estimate in rows for problem in estimate.problems)
    return panels.title("ok" if not codes else f"NOT ok: {', '.join(codes)}")


def _rows(estimates: Any) -> list[tuple[str, LogNormalizerEstimate]]:
    """Label and estimate, parts after the whole."""
    if isinstance(estimates, LogNormalizerEstimate):
        estimates = [estimates]
    if isinstance(estimates, Mapping):
        named = list(estimates.items())
    elif isinstance(estimates, Sequence):
        named = [(getattr(one, "method", ""), one) for one in estimates]
    else:
        raise TypeError(f"`estimates` must be LogNormalizerEstimate; got {type(estimates).__name__}.")
    rows = []
    for name, one in named:
        if not isinstance(one, LogNormalizerEstimate):
            raise TypeError(f"`estimates` must be LogNormalizerEstimate; got {type(one).__name__}.")
        if np.ndim(one.value) > 0:
            raise ValueError(f"{name!r} is for {len(one)} conditions: pick one, e.g. estimate[0].")
        rows += [(str(name), one), *((f"  {part.method}", part) for part in one.parts)]
    if not rows:
        raise ValueError("`estimates` is empty: there is nothing to show.")
    return rows
