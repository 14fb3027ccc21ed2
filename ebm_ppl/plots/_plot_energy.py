"""`plot_energy`: the landscape of an energy, and where draws fell."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count, check_floating
from ebm_ppl.diagnostics._evaluate import energies_at, positions_of
from ebm_ppl.diagnostics._to_datatree import as_datatree
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import EnergyShapeError
from ebm_ppl.plots._arviz import PlotCollection
from ebm_ppl.plots._panels import BAD, GOOD, MUTED, Panels

LEVELS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)  # nats above the lowest point shown
MAX_DRAWS = 2000  # shown; evenly spaced over the run
MARGIN = 0.15  # of the range of the draws, on each side


def plot_energy(
    energy: AbstractEnergy | Any,
    draws: Any = None,
    *,
    condition: Float[Array, "..."] | Any = None,
    bounds: Any = None,
    coordinates: Any = None,
    at: Any = None,
    num_points: int | Any = 101,
    group: str = "posterior",
    backend: str | None = None,
) -> PlotCollection:
    r"""Show an energy in one or two coordinates, with draws.

    One coordinate: the energy E(x) - min E, and the density \(\exp(-E) / \int \exp(-E)\) over the window beside the
    histogram of the draws. Two: contours of E(x) - min E at .5, 1, 2, 3, 4, 6, 8, 12, 16, 24 nats, with the draws.
    Of an energy with more coordinates a slice through `at` is shown: the draws' histogram is then no picture of the
    curve, and is left out.

    Where the energy is not finite (walls) nothing is drawn.

    Args:
        energy: E, nats.
        draws: `Draws`, `DataTree`, or an array `(chain, draw, *event)`; at most 2,000 of them are shown.
        condition: the condition of a conditional energy.
        bounds: the window, one pair (lower, upper) or one per coordinate shown; by default the range of the draws and
            15 % more. Needed without draws.
        coordinates: which one or two coordinates of the (flattened) event to show; by default all.
        at: the event through which to cut, where not all coordinates are shown; by default the draw of lowest energy.
        num_points: points along each coordinate.
        group: the group of a `DataTree`.
        backend: of arviz-plots.

    Returns:
        A `PlotCollection` with the panels `energy` and, in one coordinate, `density`; artists `energy` (curve or
        contours), `density`, `draws`.

    Raises:
        ValueError: neither draws nor `bounds`; `coordinates` or `bounds` do not fit.
        EnergyShapeError: draws do not have the energy's event shape.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.DoubleWell(barrier=2.0, dim=2)
        >>> picture = ebm.plot_energy(energy, bounds=(-2.0, 2.0), num_points=21)
        >>> [float(level) for level in picture.get_viz("energy", "energy").levels[:3]]
        [0.5, 1.0, 2.0]

    References:
        LeCun, Chopra, Hadsell, Ranzato, Huang (2006). A tutorial on energy-based learning.
        In: Predicting Structured Data, MIT Press. doi:10.7551/mitpress/7443.003.0014
    """
    if not isinstance(energy, AbstractEnergy):
        raise TypeError(f"`energy` must be an ebm.AbstractEnergy; got {type(energy).__name__}.")
    num_points = check_count("num_points", num_points, 3)
    points = None if draws is None else positions_of(as_datatree(draws, group)[group].to_dataset(), energy.event_shape)
    dim = int(np.prod(energy.event_shape))
    shown = _coordinates(coordinates, dim)
    centre = _centre(energy, points, at, condition) if len(shown) < dim else np.zeros(dim)
    flat = None if points is None else points.reshape(-1, dim)
    axes = [np.linspace(low, high, num_points) for low, high in _windows(bounds, flat, shown)]
    values = _on_grid(energy, axes, shown, centre, condition)
    thinned = None if flat is None else flat[:: -(-len(flat) // MAX_DRAWS)][:, list(shown)]
    names = [f"x[{index}]" for index in shown]
    if len(shown) == 2:
        return _contours(axes, values, thinned, names, type(energy).__name__, backend)
    return _curve(axes[0], values, thinned if dim == 1 else None, names[0], type(energy).__name__, backend)


def _curve(
    x: np.ndarray, values: np.ndarray, draws: np.ndarray | None, name: str, title: str, backend: str | None
) -> PlotCollection:
    panels = Panels(["energy", "density"], backend)
    panels.draw("energy", "energy", "line", x, values, color=GOOD)
    panels.label("energy", name, "E - min E (nats)")
    density = np.where(np.isfinite(values), np.exp(-values), 0.0)
    density /= np.trapezoid(density, x)
    if draws is not None:
        heights, edges = np.histogram(draws, bins=50, range=(x[0], x[-1]))
        heights = heights / (len(draws) * np.diff(edges))  # draws outside the window count in the total
        panels.draw("density", "draws", "hist", heights, edges[:-1], edges[1:], color=MUTED, alpha=0.5)
    panels.draw("density", "density", "line", x, density, color=GOOD)
    panels.label("density", name, "density in the window")
    return panels.title(title)


def _contours(
    axes: list[np.ndarray],
    values: np.ndarray,
    draws: np.ndarray | None,
    names: list[str],
    title: str,
    backend: str | None,
) -> PlotCollection:
    panels = Panels(["energy"], backend, width=5.5)
    if draws is not None:
        panels.draw("energy", "draws", "scatter", draws[:, 0], draws[:, 1], size=4, color=BAD, alpha=0.4)
    panels.draw("energy", "energy", "contour", *axes, values, levels=list(LEVELS), color=GOOD)
    panels.label("energy", *names)
    panels.draw("energy", "title", "title", "E - min E (nats)")
    return panels.title(title)


def _on_grid(
    energy: AbstractEnergy, axes: list[np.ndarray], shown: tuple[int, ...], centre: np.ndarray, condition: Any
) -> np.ndarray:
    """E - min E on the grid, NaN where E is not finite."""
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    events = np.broadcast_to(centre, (*grid.shape[:-1], len(centre))).copy()
    events[..., list(shown)] = grid
    positions = events.reshape(1, -1, *energy.event_shape).astype(_dtype(energy))
    values = energies_at(energy, positions, condition)[0].reshape(grid.shape[:-1])
    values = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(values).all():
        raise ValueError("the energy is not finite anywhere in `bounds`.")
    return values - np.nanmin(values)


def _dtype(energy: AbstractEnergy) -> Any:
    floats = [leaf.dtype for leaf in jax.tree.leaves(eqx.filter(energy, eqx.is_inexact_array))]
    return floats[0] if floats else jnp.result_type(float)


def _coordinates(coordinates: Any, dim: int) -> tuple[int, ...]:
    if coordinates is None and dim > 2:
        raise ValueError(f"the event has {dim} coordinates: name one or two to show, e.g. coordinates=(0, 1).")
    given = range(dim) if coordinates is None else np.atleast_1d(coordinates).tolist()
    shown = tuple(given)
    valid = all(isinstance(index, int) and 0 <= index < dim for index in shown)
    if not valid or len(shown) not in (1, 2) or len(set(shown)) != len(shown):
        raise ValueError(f"`coordinates` must be one or two different indices below {dim}; got {coordinates!r}.")
    return shown


def _centre(energy: AbstractEnergy, points: np.ndarray | None, at: Any, condition: Any) -> np.ndarray:
    if at is not None:
        event = np.asarray(check_floating("at", at))
        if event.shape != tuple(energy.event_shape):
            raise EnergyShapeError(f"`at` must have the event shape {tuple(energy.event_shape)}; got {event.shape}.")
        return event.reshape(-1)
    if points is None:
        raise ValueError("`at` must say where to cut, as there are no draws.")
    values = energies_at(energy, points, condition)[0]
    return points.reshape(values.size, -1)[np.nanargmin(values)]


def _windows(bounds: Any, flat: np.ndarray | None, shown: tuple[int, ...]) -> list[tuple[float, float]]:
    if bounds is not None:
        pairs = np.asarray(bounds, dtype=float)
        if pairs.shape not in ((2,), (len(shown), 2)) or not np.isfinite(pairs).all():
            raise ValueError(f"`bounds` must be one finite pair or one for each of {len(shown)}; got {bounds!r}.")
        pairs = np.broadcast_to(pairs, (len(shown), 2))
        if (pairs[:, 0] >= pairs[:, 1]).any():
            raise ValueError(f"`bounds` must be pairs (lower, upper); got {bounds!r}.")
        return [(float(low), float(high)) for low, high in pairs]
    if flat is None:
        raise ValueError("give `draws` or `bounds`: there is nothing to choose a window by.")
    windows = []
    for index in shown:
        finite = flat[np.isfinite(flat[:, index]), index]
        if not len(finite):
            raise ValueError("the draws are not finite: give `bounds`.")
        low, high = float(finite.min()), float(finite.max())
        margin = MARGIN * (high - low) or 1.0
        windows.append((low - margin, high + margin))
    return windows
