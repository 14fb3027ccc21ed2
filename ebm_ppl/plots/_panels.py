"""Named panels of one figure: every artist is kept in the `PlotCollection` under its own name."""

import importlib
from collections.abc import Sequence
from typing import Any

import xarray as xr

from ebm_ppl.plots._arviz import PlotCollection, rcParams

GOOD, BAD, MUTED = "C0", "C3", "gray"


class Panels:
    """A figure with one panel per name. `collection.get_viz(artist, panel)` gives back what was drawn.

    Args:
        names: of the panels; also their titles.
        backend: of arviz-plots: "matplotlib", or another one that is installed.
        columns: panels side by side before a new row starts.
        width: of each panel, inches.
    """

    def __init__(
        self, names: Sequence[str], backend: str | None = None, *, columns: int = 3, width: float = 4.5
    ) -> None:
        backend = rcParams["plot.backend"] if backend is None else backend
        self._backend: Any = importlib.import_module(f"arviz_plots.backend.{backend}")
        self._data = xr.Dataset(dict.fromkeys(names, 0.0))
        wide, high = min(columns, len(names)), -(-len(names) // columns)
        size: dict[str, Any] = {"figsize": (width * wide, 3.5 * high), "figsize_units": "inches"} | layout(backend)
        self.collection = PlotCollection.wrap(
            self._data, cols=["__variable__"], col_wrap=columns, backend=backend, figure_kwargs=size
        )
        for name in names:
            self.draw(name, "title", "title", name)

    def draw(self, panel: str, artist: str, function: str, *values: Any, **style: Any) -> None:
        """Call a drawing function of the backend on a panel, and keep the artist."""
        visual = getattr(self._backend, function)
        self.collection.map(
            lambda _, target, **aesthetics: visual(*values, target, **style), artist, data=self._data[[panel]]
        )

    def set(self, panel: str, function: str, *values: Any) -> None:
        """The same for what is a property of the panel and no artist."""
        visual = getattr(self._backend, function)
        self.collection.map(
            lambda _, target, **aesthetics: visual(*values, target),
            function,
            data=self._data[[panel]],
            store_artist=False,
        )

    def label(self, panel: str, x: str, y: str = "") -> None:
        """Name the axes of a panel."""
        self.draw(panel, "xlabel", "xlabel", x)
        if y:
            self.draw(panel, "ylabel", "ylabel", y)

    def rows(self, panel: str, labels: Sequence[str]) -> None:
        """Name rows 0, 1, ... of a panel, from the top down."""
        self.set(panel, "yticks", range(len(labels)), list(labels))
        self.set(panel, "ylim", (len(labels) - 0.5, -0.5))

    def title(self, text: str) -> PlotCollection:
        """Title of the figure; returns the finished collection."""
        self.collection.add_title(text)
        return self.collection


def layout(backend: str | None) -> dict[str, str]:
    """Matplotlib alone has to be told to keep titles and labels apart."""
    return {"layout": "constrained"} if (backend or rcParams["plot.backend"]) == "matplotlib" else {}
