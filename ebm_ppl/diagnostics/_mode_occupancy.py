"""Which modes the chains visit, how long, and whether they ever cross."""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int

from ebm_ppl._checks import check_condition, check_count, check_data, check_floating, check_positive
from ebm_ppl.diagnostics._arviz import mcse_mean
from ebm_ppl.diagnostics._evaluate import positions_of
from ebm_ppl.diagnostics._parameters import chains_of
from ebm_ppl.diagnostics._to_datatree import as_datatree
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._check_start import event_rows
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy, coordinate_energy
from ebm_ppl.energies._coordinates import angular_parts
from ebm_ppl.energies._event import evaluate
from ebm_ppl.errors import InvalidDataError
from ebm_ppl.sampling import Draws

MAX_STEPS = 200
CONVERGED = 0.05  # gradient of E in units of nats per spread of the draws
OVERSHOOT = 3.0  # half of the starts lie this many times further from the draws' centre than the draws
MERGE_FRACTION = 0.1


def mode_occupancy(
    data: xr.DataTree | xr.Dataset | Draws | Mapping[str, Any] | Any,
    energy: AbstractEnergy | None = None,
    *,
    modes: Float[Array, "mode ..."] | Float[np.ndarray, "mode ..."] | None = None,
    starts: Float[Array, "n ..."] | Float[np.ndarray, "n ..."] | None = None,
    condition: Float[Array, "..."] | None = None,
    group: str = "posterior",
    num_starts: int = 64,
    merge_distance: float | None = None,
    max_modes: int = 50,
) -> xr.Dataset:
    r"""Share of draws near each mode, per chain, and the transitions between modes.

    A draw belongs to the nearest mode. Modes are given, or found: the energy is descended (L-BFGS) from
    `num_starts` draws, from points three times as far from their centre, and from `starts`; the ends that are closer
    than `merge_distance` are one mode. A mode that no chain visits has occupancy 0: R-hat cannot see it when all
    chains start on the same side, but `starts` (training data, draws of a hotter chain) can reveal it.

    Args:
        data: draws: `DataTree`, `Dataset`, `Draws`, a mapping of arrays or an array `(chain, draw, *event)`.
        energy: the energy to descend; its `event_shape` selects the variable. Not needed where `modes` is given and
            the draws hold one variable.
        modes: mode positions, `(mode, *event)`, in the units of x.
        starts: further points to descend from, `(n, *event)`.
        condition: the condition y of a conditional energy E(x; y), one for all chains.
        group: the group to look at.
        num_starts: draws to descend from, evenly over chains and time.
        merge_distance: Euclidean distance in units of x; None: a tenth of the draws' root-mean-square distance
            from their centre.
        max_modes: more separate ends than this are taken for a ridge or a plateau, and refused.

    Returns:
        A `Dataset` over `chain` and `mode` (in ascending energy where they were found):

        - `occupancy` `(chain, mode)`: share of the chain's draws; `pooled_occupancy` and its Monte Carlo
          `standard_error` `(mode,)`, NaN where the indicator of the mode never changes;
        - `transitions` `(chain, from_mode, to_mode)`: counts of consecutive draws; `num_switches` `(chain,)`: how
          often the chain changed its mode;
        - `position` `(mode, coordinate)`: events flattened; `energy` `(mode,)` in nats, where an energy was given.

    Raises:
        ValueError: neither `energy` nor `modes` is given, no descent ended in a minimum, or more than `max_modes`
            were found.
        EnergyShapeError: `modes`, `starts` or the draws do not have the shape of an event.
        InvalidDataError: draws, modes or starts are not finite.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, ebm_ppl as ebm
        >>> energy = ebm.energies.DoubleWell(barrier=4.0, dim=1)
        >>> left = np.random.default_rng(0).normal(-1.0, 0.2, size=(4, 500, 1))
        >>> table = ebm.diagnostics.mode_occupancy(left, energy, starts=jnp.linspace(-2, 2, 8)[:, None])
        >>> sorted((round(float(x), 3), float(share)) for x, share in zip(
        ...     table.position[:, 0], table.pooled_occupancy))
        [(-1.0, 1.0), (1.0, 0.0)]

    References:
        Liu, Nocedal (1989). On the limited memory BFGS method for large scale optimization. Mathematical
        Programming 45, 503-528. doi:10.1007/BF01589116
    """
    dataset = as_datatree(data, group)[group].to_dataset()
    chains, _ = chains_of(dataset)
    if energy is not None:
        event_shape = energy.event_shape
    elif modes is not None:
        event_shape = np.shape(modes)[1:]
    else:
        raise ValueError("`energy` or `modes` must be given: without them no mode is known.")
    positions = positions_of(dataset, event_shape)
    lead = jax.tree.leaves(positions)[0].shape[:2]
    if 0 in lead:
        raise InvalidDataError(f"there are no draws: {lead[0]} chains of {lead[1]}.")
    every = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), positions)
    flat = _rows("draws", every, event_shape).reshape(*lead, -1)
    if energy is None:
        return _count(flat, _rows("modes", modes, event_shape), chains)
    inner = coordinate_energy(energy, jax.tree.leaves(every)[0].dtype)
    if modes is not None:
        centres = event_rows(inner, "modes", modes, axis="mode")
    else:
        check_count("num_starts", num_starts)
        check_count("max_modes", max_modes)
        draws = np.asarray(event_rows(inner, "draws", every, axis="draw"), np.float64).reshape(*lead, -1)
        points = _starting_points(draws, num_starts)
        if starts is not None:
            rows = np.asarray(event_rows(inner, "starts", starts, axis="start"), np.float64)
            points = np.concatenate([points, rows.reshape(len(rows), -1)])
        centres = _find_modes(inner, points, condition, _spread(flat), merge_distance, max_modes)
    centres = jnp.asarray(centres).reshape(-1, *inner.event_shape)
    events = np.asarray(_packed_events(inner, centres), np.float64).reshape(len(centres), -1)
    counted = _count(flat, events, chains, angular_columns(inner))
    return _with_energies(counted, inner, centres, condition)


@eqx.filter_jit
def _packed_events(energy: CoordinateEnergy, positions: Array) -> Array:
    return jax.vmap(lambda z: energy.coordinates.pack(energy.coordinates.to_event(z)))(positions)


def _rows(name: str, events: Any, event_shape: Any) -> Float[np.ndarray, "n dim"]:
    """Finite events, flattened, in float64; named parts one after the other."""
    if isinstance(event_shape, Mapping):
        parts = [_rows(f"{name}[{part!r}]", events[part], shape) for part, shape in event_shape.items()]
        return np.concatenate(parts, axis=1)
    return np.asarray(check_data(name, events, event_shape), np.float64).reshape(len(events), -1)


def _spread(draws: Float[np.ndarray, "chain draw dim"]) -> float:
    """Root-mean-square distance from the centre; 1 for draws that never move."""
    variance = draws.reshape(-1, draws.shape[-1]).var(axis=0).sum()
    return float(np.sqrt(variance)) if variance > 0 else 1.0


def _starting_points(draws: Float[np.ndarray, "chain draw dim"], num_starts: int) -> Float[np.ndarray, "n dim"]:
    every = draws.reshape(-1, draws.shape[-1])
    chosen = every[np.linspace(0, len(every) - 1, min(num_starts, len(every))).astype(int)]
    centre = every.mean(axis=0)
    return np.concatenate([chosen, centre + OVERSHOOT * (chosen - centre)])


def _find_modes(
    energy: CoordinateEnergy,
    points: Float[np.ndarray, "n dim"],
    condition: Any,
    spread: float,
    merge_distance: float | None,
    max_modes: int,
) -> Float[np.ndarray, "mode dim"]:
    distance = MERGE_FRACTION * spread if merge_distance is None else merge_distance
    check_positive("merge_distance", distance)
    starts = check_floating("starts", points.reshape(-1, *energy.event_shape))
    ends, slopes, values = _descend(energy, starts, check_condition(condition, energy.condition_shape))
    ends = np.asarray(ends, np.float64).reshape(len(points), -1)
    slopes, values = np.asarray(slopes, np.float64), np.asarray(values, np.float64)
    settled = np.isfinite(ends).all(axis=1) & np.isfinite(values) & (slopes * spread <= CONVERGED)
    if not settled.any():
        raise ValueError(
            f"none of {len(points)} descents of the energy ended in a minimum within {MAX_STEPS} steps: the energy may "
            "be unbounded below; see ebm.check_energy, or give `modes`."
        )
    rows = jnp.asarray(ends, starts.dtype).reshape(-1, *energy.event_shape)
    events = np.asarray(_packed_events(energy, rows), np.float64).reshape(len(points), -1)
    modes, angular = [], angular_columns(energy)
    for index in np.flatnonzero(settled)[np.argsort(values[settled], kind="stable")]:
        if all(np.linalg.norm(wrapped(events[index] - events[mode], angular)) > distance for mode in modes):
            modes.append(int(index))
    if len(modes) > max_modes:
        raise ValueError(
            f"`max_modes` is {max_modes}, but {len(modes)} separate minima were found: the energy may have a ridge "
            "or a plateau; raise `merge_distance` or give `modes`."
        )
    return ends[modes]


def angular_columns(energy: CoordinateEnergy) -> np.ndarray:
    """Which entries of a packed event are angles."""
    shapes, angular = energy.coordinates.event_shape, angular_parts(energy.coordinates)
    parts = shapes if isinstance(shapes, Mapping) else {"": shapes}
    flags = angular if isinstance(angular, dict) else {"": angular}
    return np.concatenate([np.full(math.prod(shape), flags[name]) for name, shape in parts.items()])


def wrapped(difference: np.ndarray, angular: np.ndarray | None) -> np.ndarray:
    """Differences of packed events, those of angles modulo a full turn."""
    if angular is None or not angular.any():
        return difference
    return np.where(angular, np.remainder(difference + np.pi, 2 * np.pi) - np.pi, difference)


def _event_energy(energy: CoordinateEnergy, z: Array, condition: Any) -> Array:
    """E at the event of `z`, without the Jacobian: a mode is one of the density of events."""
    return evaluate(energy.target.energy, energy.coordinates.to_event(z), condition)


@eqx.filter_jit
def _event_energies(energy: CoordinateEnergy, positions: Array, condition: Any) -> Array:
    return jax.vmap(lambda z: _event_energy(energy, z, condition))(positions)


@eqx.filter_jit
def _descend(
    energy: CoordinateEnergy, starts: Float[Array, "n ..."], condition: Float[Array, "..."] | None
) -> tuple[Float[Array, "n ..."], Float[Array, " n"], Float[Array, " n"]]:
    """L-BFGS from every start: end, length of the gradient there, energy there."""

    def objective(z: Float[Array, "..."]) -> Float[Array, ""]:
        return _event_energy(energy, z, condition)

    solver = optax.lbfgs(memory_size=10)
    value_and_gradient = optax.value_and_grad_from_state(objective)

    def step(carry: Any) -> Any:
        x, state, count, _ = carry
        value, gradient = value_and_gradient(x, state=state)
        update, state = solver.update(gradient, state, x, value=value, grad=gradient, value_fn=objective)
        return optax.apply_updates(x, update), state, count + 1, jnp.linalg.norm(gradient)

    def unsettled(carry: Any) -> Any:
        _, _, count, slope = carry
        return (count < MAX_STEPS) & (slope > 0)

    def descend(x: Float[Array, "..."]) -> tuple[Array, Array, Array]:
        first = (x, solver.init(x), jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, x.dtype))
        end = jax.lax.while_loop(unsettled, step, first)[0]
        value, gradient = jax.value_and_grad(objective)(end)
        return end, jnp.linalg.norm(gradient), value

    return jax.lax.map(descend, starts, batch_size=64)


def _count(
    draws: Float[np.ndarray, "chain draw dim"],
    modes: Float[np.ndarray, "mode dim"],
    chains: Int[np.ndarray, " chain"],
    angular: np.ndarray | None = None,
) -> xr.Dataset:
    num_modes = len(modes)
    distance = np.stack([np.linalg.norm(wrapped(draws - mode, angular), axis=-1) for mode in modes])
    nearest = distance.argmin(axis=0)
    member = nearest[None] == np.arange(num_modes)[:, None, None]
    pairs = nearest[:, :-1] * num_modes + nearest[:, 1:]
    transitions = np.stack([np.bincount(row, minlength=num_modes**2) for row in pairs])
    transitions = transitions.reshape(-1, num_modes, num_modes)
    return xr.Dataset(
        {
            "occupancy": (("chain", "mode"), member.mean(axis=2).T),
            "pooled_occupancy": ("mode", member.mean(axis=(1, 2))),
            "standard_error": ("mode", np.array([_error(row.astype(np.float64)) for row in member])),
            "transitions": (("chain", "from_mode", "to_mode"), transitions),
            "num_switches": ("chain", (nearest[:, 1:] != nearest[:, :-1]).sum(axis=1)),
            "position": (("mode", "coordinate"), modes),
        },
        {"chain": chains, "mode": np.arange(num_modes)},
    )


def _error(member: Float[np.ndarray, "chain draw"]) -> float:
    """Monte Carlo standard error of a share; NaN where nothing varies within any chain."""
    return mcse_mean(member) if member.shape[1] >= 4 and np.ptp(member, axis=1).any() else float("nan")


def _with_energies(
    table: xr.Dataset, energy: CoordinateEnergy, modes: Float[Array, "mode ..."], condition: Any
) -> xr.Dataset:
    checked = check_condition(condition, energy.condition_shape)
    return table.assign(energy=("mode", np.asarray(_event_energies(energy, modes, checked), np.float64)))
