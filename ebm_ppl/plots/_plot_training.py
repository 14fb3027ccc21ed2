"""`plot_training`: the curves of a fit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ebm_ppl._checks import check_count
from ebm_ppl.plots._arviz import PlotCollection
from ebm_ppl.plots._panels import GOOD, MUTED, Panels
from ebm_ppl.training import FitResult


def plot_training(
    result: FitResult | Any,
    *,
    metrics: Sequence[str] | None = None,
    smoothing: int | Any = None,
    backend: str | None = None,
) -> PlotCollection:
    r"""Every metric of a fit against the step: as recorded, and smoothed.

        smoothed_t = mean of the metric over the `smoothing` steps up to and including t

    The mean looks back only, so that it shows nothing a run could not have known; the first steps average over what
    there is. A non-finite value shows as a gap as long as it is in the window. Mind that the loss of contrastive
    divergence and of flow contrastive estimation is no measure of quality: see `comparable` of the objective.

    Args:
        result: what `ebm.fit` returned.
        metrics: which to show; by default all.
        smoothing: steps to average over; by default a fiftieth of the run.
        backend: of arviz-plots.

    Returns:
        A `PlotCollection` with one panel per metric; artists `recorded` and `smoothed`.

    Raises:
        ValueError: a metric was not recorded, or no step was taken.

    Example:
        >>> import jax, jax.numpy as jnp, optax, ebm_ppl as ebm
        >>> data = jax.random.normal(jax.random.key(0), (64, 1))
        >>> energy = ebm.energies.Gaussian(jnp.ones(1), jnp.eye(1))
        >>> objective = ebm.objectives.DenoisingScoreMatching(noise_scale=0.5)
        >>> result = ebm.fit(
        ...     energy, data, objective, key=jax.random.key(1), optimizer=optax.sgd(0.1), num_steps=20, batch_size=32,
        ...     progress_bar=False,
        ... )
        >>> picture = ebm.plot_training(result)
        >>> len(picture.get_viz("recorded", "loss").get_xdata())
        20
    """
    if not isinstance(result, FitResult):
        raise TypeError(f"`result` must be a FitResult, what ebm.fit returns; got {type(result).__name__}.")
    if result.num_steps == 0:
        raise ValueError("no step was taken: there is nothing to show.")
    window = max(1, result.num_steps // 50) if smoothing is None else check_count("smoothing", smoothing)
    names = list(result.metrics) if metrics is None else list(metrics)
    unknown = [name for name in names if name not in result.metrics]
    if unknown:
        raise ValueError(f"`metrics` must be among {list(result.metrics)}; got {unknown}.")
    panels = Panels(names, backend)
    steps = np.arange(1, result.num_steps + 1)
    for name in names:
        values = np.asarray(result.metrics[name], np.float64)
        panels.draw(name, "recorded", "line", steps, values, color=MUTED, alpha=0.5)
        panels.draw(name, "smoothed", "line", steps, _smooth(values, window), color=GOOD)
        panels.label(name, "step", name.replace("_", " "))
    codes = dict.fromkeys(problem.code for problem in result.problems)
    return panels.title("ok" if result.ok else f"NOT ok: {', '.join(codes)}")


def _smooth(values: Float[np.ndarray, " step"], window: int) -> Float[np.ndarray, " step"]:
    """Trailing mean; NaN while a non-finite value is in the window."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    broken = np.concatenate([[0], np.cumsum(~finite)])
    upto = np.arange(1, len(values) + 1)
    start = np.maximum(upto - window, 0)
    return np.where(broken[upto] == broken[start], (sums[upto] - sums[start]) / (upto - start), np.nan)
