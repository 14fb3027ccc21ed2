"""Two questions to an energy around one event: is its gradient its derivative, and does every coordinate matter?"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl.energies._along import energies_along, host_generator, one_hot, unit_rows
from ebm_ppl.energies._base import AbstractEnergy

_SCALES = np.repeat([0.1, 1.0, 10.0], 8)
_STEPS = np.array([1e-1, 1e-2, 1e-3])
_MOVES = np.array([-10.0, -1.0, -0.1, 0.1, 1.0, 10.0])


def neighbourhood(x: Array, key: Array) -> Float[Array, "point ..."]:
    """`x` and points around it at three scales."""
    noise = host_generator(key).normal(size=(len(_SCALES), *x.shape))
    steps = noise * _SCALES.reshape((-1,) + (1,) * x.ndim)
    return jnp.asarray(np.asarray(x) + np.concatenate([np.zeros((1, *x.shape)), steps]), x.dtype)


def zero_gradient_range(values: Array, gradients: Array) -> tuple[float, float] | None:
    """Smallest and largest energy if every gradient is exactly zero although the energies differ, else None."""
    finite = np.isfinite(np.asarray(values))
    seen = np.asarray(values)[finite]
    if np.any(np.asarray(gradients)[finite] != 0) or seen.size == 0 or np.ptp(seen) == 0:
        return None
    return float(seen.min()), float(seen.max())


def gradient_mismatch(
    energy: AbstractEnergy, points: Array, gradients: Array, condition: Any, key: Array
) -> tuple[float, float] | None:
    """Directional derivative by JAX and by differences where they disagree at most points, else None.

    At each point the step is the one of three whose own error estimate (half the step against the whole, plus
    rounding) is smallest; a difference within four of those errors, or 5%, is no disagreement: kinks and cliffs of an
    honest energy touch few points only.
    """
    directions = unit_rows(host_generator(key).normal(size=points.shape))
    exact = np.sum((np.asarray(gradients, np.float64) * directions).reshape(len(points), -1), axis=1)
    estimates, errors = _differences(energy, points, directions, condition)
    usable = np.isfinite(exact) & np.isfinite(estimates) & np.isfinite(errors)
    exact, estimates, errors = exact[usable], estimates[usable], errors[usable]
    gap = np.abs(exact - estimates)
    excess = gap - 4 * errors - 0.05 * np.maximum(np.abs(exact), np.abs(estimates))
    if not gap.size or np.mean(excess > 0) <= 0.5:
        return None
    worst = int(np.argmax(excess))
    return float(exact[worst]), float(estimates[worst])


def _differences(
    energy: AbstractEnergy, points: Array, directions: np.ndarray, condition: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Central differences and their error estimates, at the best of the steps; inf or NaN where none is usable."""
    sizes = 1 + np.max(np.abs(np.asarray(points)).reshape(len(points), -1), axis=1)
    steps = np.concatenate([_STEPS, _STEPS / 2])
    widths = sizes[:, None] * steps
    offsets = np.concatenate([widths, -widths], axis=1)
    energies = energies_along(energy, points, directions, offsets, condition, points.dtype)
    ahead, behind = np.split(np.where(np.isfinite(energies), energies, np.nan), 2, axis=1)
    slopes = (ahead - behind) / (2 * widths)
    rounding = float(jnp.finfo(points.dtype).eps) * (np.abs(ahead) + np.abs(behind)) / widths
    coarse, fine = np.split(slopes, 2, axis=1)
    errors = np.abs(fine - coarse) + 4 * rounding[:, len(_STEPS) :]
    rows, best = np.arange(len(points)), np.argmin(np.where(np.isnan(errors), np.inf, errors), axis=1)
    return fine[rows, best], errors[rows, best]


def idle_coordinates(
    energy: AbstractEnergy, points: Array, gradients: Array | None, condition: Any
) -> list[tuple[int, ...]]:
    """Coordinates without any effect: gradient zero at every point, and E unmoved when they alone are moved.

    Of coordinates whose gradient is zero only the first thousand or so are moved, fewer where events are large.
    """
    shape = points.shape[1:]
    size = int(np.prod(shape))
    flat = np.zeros((1, size)) if gradients is None else np.asarray(gradients).reshape(len(points), -1)
    silent = np.flatnonzero(np.all(flat == 0, axis=0))[: max(16, min(1024, 10_000_000 // size))]
    if not silent.size:
        return []
    idle = np.ones(len(silent), bool)
    for point in np.asarray(points)[[0, 9]]:
        origins = np.broadcast_to(point, (len(silent), *shape))
        offsets = np.broadcast_to(np.append(0.0, _MOVES), (len(silent), 1 + len(_MOVES)))
        energies = energies_along(energy, origins, one_hot(silent, shape), offsets, condition, points.dtype)
        idle &= np.all(energies == energies[:, :1], axis=1)
    return [tuple(int(i) for i in np.unravel_index(index, shape)) for index in silent[idle]]
