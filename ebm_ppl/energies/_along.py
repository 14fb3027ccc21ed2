"""Energies along lines: the one evaluation behind tails, finite differences and moved coordinates."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import evaluate


@eqx.filter_jit
def _energies_along(
    energy: AbstractEnergy, origins: Array, directions: Array, offsets: Float[Array, "line step"], condition: Any
) -> Float[Array, "line step"]:
    def along(line: tuple[Array, Array, Array]) -> Array:
        origin, direction, steps = line
        return jax.vmap(lambda step: evaluate(energy, origin + step * direction, condition))(steps)

    return jax.lax.map(along, (origins, directions, offsets))


def energies_along(
    energy: AbstractEnergy, origins: Any, directions: np.ndarray, offsets: np.ndarray, condition: Any, dtype: np.dtype
) -> np.ndarray:
    """E(origin + step * direction) for every line and step, in float64 on the host.

    Args:
        energy: E.
        origins: shape `(line, *event_shape)`.
        directions: shape `(line, *event_shape)`.
        offsets: shape `(line, step)`.
        condition: one condition, or None.
        dtype: dtype of the events.
    """
    start, direction, steps = (jnp.asarray(np.asarray(part, dtype)) for part in (origins, directions, offsets))
    return np.asarray(_energies_along(energy, start, direction, steps, condition), np.float64)


def host_generator(key: Array) -> np.random.Generator:
    """A NumPy generator that depends on `key` alone: directions drawn on the host compile nothing."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Each row divided by its length."""
    flat = rows.reshape(len(rows), -1)
    return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).reshape(rows.shape)


def one_hot(indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Unit vectors of the coordinates `indices` (flat), each of shape `shape`."""
    rows = np.zeros((len(indices), int(np.prod(shape))))
    rows[np.arange(len(indices)), indices] = 1
    return rows.reshape((len(indices), *shape))
