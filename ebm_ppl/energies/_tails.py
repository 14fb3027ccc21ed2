"""Does an energy grow fast enough for exp(-E) to have a finite integral? Asked along rays."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array

from ebm_ppl.energies._along import energies_along, host_generator, one_hot, unit_rows
from ebm_ppl.energies._base import AbstractEnergy

_NUM_DIRECTIONS = 32
_NUM_AXES = 16
_NUM_RADII = 13
_RATIO = 4.0
_MARGIN = 0.01
"""Slopes this little above the bound count as at the bound: rounding of E over the last radii."""


@dataclasses.dataclass(frozen=True)
class SlowRay:
    """A ray along which E grows too slowly: its slope dE/d log r, the bound, and where the ray goes."""

    slope: float
    bound: int
    where: str


def slowest_ray(energy: AbstractEnergy, x: Array, condition: Any, key: Array) -> SlowRay | None:
    """The ray from `x` that misses its bound by most, or None where every ray grows fast enough.

    In polar coordinates around x, ∫ exp(-E) is finite only if ∫ r^(d-1) exp(-E) dr is, for almost every direction: so
    along random directions dE/d log r must end above d. By Fubini the same integral is finite only if it is along
    almost every line parallel to an axis: so there dE/d log r must end above 1. The second finds a coordinate whose
    tail the others drown. Slopes are taken between 4⁹ and 4¹² times 1 + ‖x‖, so `x` should be a typical event.
    """
    origin = np.asarray(x)
    directions, bounds, names = _rays(origin.shape, host_generator(key))
    radii = (1 + np.linalg.norm(origin)) * _RATIO ** np.arange(_NUM_RADII)
    origins = np.broadcast_to(origin, directions.shape)
    offsets = np.broadcast_to(radii, (len(directions), _NUM_RADII))
    energies = energies_along(energy, origins, directions, offsets, condition, origin.dtype)
    slow = [
        SlowRay(slope, bound, name)
        for row, bound, name in zip(energies, bounds, names, strict=True)
        if (slope := final_slope(row)) is not None and not slope > bound + _MARGIN
    ]
    return min(slow, key=lambda ray: ray.slope - ray.bound, default=None)


def final_slope(energies: np.ndarray) -> float | None:
    """DE/d log r over the last three radii; +inf behind a wall, -inf in a pit, None where E is NaN too soon to tell."""
    if np.any(np.isneginf(energies)):
        return -np.inf
    finite = np.isfinite(energies)
    count = len(energies) if finite.all() else int(np.argmin(finite))
    if count < len(energies) and np.isposinf(energies[count]):
        return np.inf
    if count < 4:
        return None
    return float((energies[count - 1] - energies[count - 4]) / (3 * np.log(_RATIO)))


def _rays(shape: tuple[int, ...], generator: np.random.Generator) -> tuple[np.ndarray, list[int], list[str]]:
    """Random directions with their bound d, then axes with their bound 1; each forwards and backwards."""
    size = int(np.prod(shape))
    random = unit_rows(generator.normal(size=(_NUM_DIRECTIONS, *shape)))
    axes = np.sort(generator.permutation(size)[:_NUM_AXES])
    unit = one_hot(axes, shape)
    indices = [", ".join(map(str, np.unravel_index(int(axis), shape))) for axis in axes]
    names = ["in a random direction"] * (2 * _NUM_DIRECTIONS)
    names += [f"along {sign}x[{index}]" for sign in "+-" for index in indices]
    bounds = [size] * (2 * _NUM_DIRECTIONS) + [1] * (2 * len(axes))
    return np.concatenate([random, -random, unit, -unit]), bounds, names
