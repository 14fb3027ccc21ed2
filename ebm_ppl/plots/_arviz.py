"""ArviZ-plots, imported after NumPyro (see docs/conventions.md: the other order breaks NumPyro's models)."""

import numpyro  # noqa: F401

# isort: split
from arviz_base import rcParams
from arviz_plots.plot_collection import PlotCollection
from arviz_plots.plots.combine import combine_plots
from arviz_plots.plots.rank_plot import plot_rank
from arviz_plots.plots.trace_plot import plot_trace

__all__ = ["PlotCollection", "combine_plots", "plot_rank", "plot_trace", "rcParams"]
