"""Bounded functions of a state: what the tests of a kernel compare before and after."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

MAX_COORDINATES = 4  # in more dimensions as many fixed random directions, and the length, stand for all


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    r"""Location, scale and products of standardised coordinates, and the energy, each bounded.

    With u = (x - centre) / scale and v = directions @ u:  tanh(v_i),  v_i^2 / (1 + v_i^2),  tanh(v_i) tanh(v_j),
    tanh of the standardised energy, and beyond `MAX_COORDINATES` dimensions r / (1 + r), r = |u|^2 / d. Bounded
    functions have light tails on every target, so that z-tests keep their level.
    """

    centre: Float[np.ndarray, " dim"]
    scale: Float[np.ndarray, " dim"]
    directions: Float[np.ndarray, "coordinate dim"]
    energy_centre: float
    energy_scale: float

    def __call__(self, positions: np.ndarray, energies: np.ndarray) -> Float[np.ndarray, "n feature"]:
        """Every feature at `(n, *event)` with energies `(n,)`; NaN where either is not finite."""
        with np.errstate(invalid="ignore", over="ignore"):
            u = (positions.reshape(len(positions), -1) - self.centre) / self.scale
            v = u @ self.directions.T
            located, squares = np.tanh(v), v**2
            pairs = [located[:, i] * located[:, i - 1] for i in range(1, v.shape[1])]
            columns = [*located.T, *(1 - 1 / (1 + squares)).T, *pairs]
            columns.append(np.tanh((energies - self.energy_centre) / self.energy_scale))
            if self.centre.size > MAX_COORDINATES:
                columns.append(1 - 1 / (1 + (u**2).mean(axis=1)))
        table = np.stack(columns, axis=1)
        table[~np.isfinite(v).all(axis=1) | ~np.isfinite(energies)] = np.nan
        return table

    @property
    def names(self) -> tuple[str, ...]:
        """A name for every feature."""
        count, what = len(self.directions), "x" if self.centre.size <= MAX_COORDINATES else "direction "
        labels = [f"{what}{i}" for i in range(count)]
        names = [*(f"tanh {a}" for a in labels), *(f"square {a}" for a in labels)]
        names += [f"product {labels[i - 1]} {labels[i]}" for i in range(1, count)]
        return (*names, "energy", *(["length"] if self.centre.size > MAX_COORDINATES else []))


def features_of(positions: np.ndarray, energies: np.ndarray) -> Features:
    """Features standardised by median and mean absolute deviation of reference draws."""
    flat = positions.reshape(len(positions), -1)
    dim = flat.shape[1]
    centre, energy_centre = np.median(flat, axis=0), float(np.median(energies))
    scale, energy_scale = _spread(np.abs(flat - centre)), float(_spread(np.abs(energies - energy_centre)[:, None])[0])
    directions = np.eye(dim)
    if dim > MAX_COORDINATES:
        random = np.random.default_rng(0).normal(size=(MAX_COORDINATES, dim))
        directions = random / np.linalg.norm(random, axis=1, keepdims=True)
    return Features(centre, scale, directions, energy_centre, energy_scale)


def _spread(deviations: np.ndarray) -> np.ndarray:
    median = 1.4826 * np.median(deviations, axis=0)
    return np.where(median > 0, median, 1.0)


def auxiliary_leaves(states: Any, others: Any) -> tuple[int, ...]:
    """The leaves of a fresh state that depend on the key of `init`: momenta, slices, directions."""
    pairs = zip(jax.tree.leaves(states), jax.tree.leaves(others), strict=True)
    floating = ((np.asarray(a), np.asarray(b)) for a, b in pairs)
    return tuple(i for i, (a, b) in enumerate(floating) if a.dtype.kind == "f" and (a != b).any())


def auxiliary_features(states: Any, leaves: tuple[int, ...], features: Features) -> Float[np.ndarray, "n feature"]:
    """Bounded features of the auxiliary leaves, along the directions of the position where the sizes agree."""
    flat = jax.tree.leaves(states)
    count = len(flat[0])
    columns = [np.zeros((count, 0))]
    for index in leaves:
        leaf = np.asarray(flat[index], np.float64).reshape(count, -1)
        if leaf.shape[1] == features.centre.size:
            leaf = leaf @ features.directions.T
        columns.append(np.tanh(leaf[:, :MAX_COORDINATES]))
    return np.concatenate(columns, axis=1)
