"""`plot_mixing`: traces and ranks of the worst parameters, under the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ebm_ppl._checks import check_count
from ebm_ppl.diagnostics import diagnose
from ebm_ppl.diagnostics._parameters import iterate_parameters
from ebm_ppl.diagnostics._to_datatree import as_datatree
from ebm_ppl.plots._arviz import PlotCollection, combine_plots, plot_rank, plot_trace
from ebm_ppl.plots._panels import layout
from ebm_ppl.sampling import Draws


def plot_mixing(
    data: xr.DataTree | xr.Dataset | Draws | Mapping[str, Any] | Any,
    *,
    group: str = "posterior",
    parameters: Sequence[str] | None = None,
    max_parameters: int | Any = 4,
    backend: str | None = None,
) -> PlotCollection:
    r"""Trace and rank plots of the parameters that mix worst, with the verdict of `diagnose` as title.

    Left, the draws of each chain in turn. Right, ArviZ' fractional ranks over all chains: the difference between
    each chain's empirical distribution of ranks and the diagonal; chains that agree stay inside the band. One chain
    has no ranks among others: its trace is all there is.

    Args:
        data: draws of this or another library: `DataTree`, `Dataset`, `Draws`, a mapping of arrays or an array
            `(chain, draw, *event)`.
        group: the group to show.
        parameters: ArviZ labels, e.g. `["x[0]", "w"]`; by default those with the fewest effective draws.
        max_parameters: how many are shown where they are not named.
        backend: of arviz-plots.

    Returns:
        A `PlotCollection` with one row per parameter and the columns `trace` and `rank`.

    Raises:
        ValueError: a name is no parameter; the group is missing; the draws cannot be shown (not finite).

    Example:
        >>> import numpy as np, ebm_ppl as ebm
        >>> draws = np.random.default_rng(0).normal(size=(4, 500, 2))
        >>> picture = ebm.plot_mixing(draws)
        >>> picture.get_viz("figure_title").get_text()
        'ok, no problems found'

    References:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021). Rank-normalization, folding, and localization: An
        improved R-hat for assessing convergence of MCMC. Bayesian Analysis 16(2), 667-718. doi:10.1214/20-BA1221
    """
    count = check_count("max_parameters", max_parameters)
    tree = as_datatree(data, group)
    report = diagnose(tree, group=group)
    draws = {one.label: one.draws for one in iterate_parameters(tree[group].to_dataset(), constants_allowed=True)}
    names = _worst(report.table["ess_bulk"].to_numpy(), list(draws), count) if parameters is None else list(parameters)
    unknown = [name for name in names if name not in draws]
    if unknown:
        raise ValueError(f"`parameters` must be among {list(draws)[:20]}; got {unknown}.")
    infinite = [name for name in names if not np.isfinite(draws[name]).all()]
    if infinite:
        raise ValueError(f"{infinite} have draws that are not finite, which no picture shows: see ebm.diagnose.")
    shown = xr.Dataset({name: (("chain", "draw"), draws[name]) for name in names})
    shown = shown.assign_coords(chain=np.arange(shown.sizes["chain"]), draw=np.arange(shown.sizes["draw"]))
    kinds: list[Any] = [plot_trace, *([plot_rank] if shown.sizes["chain"] > 1 else [])]
    picture = combine_plots(
        xr.DataTree.from_dict({group: shown}),
        plots=[(kind, {}) for kind in kinds],
        plot_names=["trace", "rank"][: len(kinds)],
        group=group,
        backend=backend,
        figure_kwargs=layout(backend),
    )
    picture.add_title("ok, no problems found" if report.ok else f"NOT ok: {', '.join(report.codes)}")
    return picture


def _worst(effective: np.ndarray, names: list[str], count: int) -> list[str]:
    """The names with the fewest effective draws; NaN (nothing could be computed) is worst."""
    order = np.argsort(np.where(np.isnan(effective), -1.0, effective), kind="stable")
    return [names[index] for index in sorted(order[:count])]
