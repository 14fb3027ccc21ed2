"""The one boundary at which exact draws are vectorised."""

import math
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
from jaxtyping import Array

from ebm_ppl._checks import check_count, check_key
from ebm_ppl._types import PRNGKey


@runtime_checkable
class Drawable(Protocol):
    """Has one exact draw of one event."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        ...

    def draw(self, key: Array) -> Array:
        """One exact draw, shape `event_shape`."""
        ...


def draw_events(energy: Drawable, key: PRNGKey, sample_shape: tuple[int, ...]) -> Array:
    """Independent draws of shape `(*sample_shape, *event_shape)`; compiled once per energy structure and count."""
    typed_key = check_key(key)
    shape = tuple(check_count("sample_shape", size, 0) for size in sample_shape)
    return _draw_flat(energy, typed_key, math.prod(shape)).reshape(shape + energy.event_shape)


@eqx.filter_jit
def _draw_flat(energy: Drawable, key: Array, num_draws: int) -> Array:
    return jax.vmap(energy.draw)(jax.random.split(key, num_draws))
