"""Random directions with E[v v'] = I, and the curvature of log p along them."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey
from ebm_ppl.energies import AbstractEnergy, score
from ebm_ppl.objectives._drawn_once import drawn_once

type Probe = Literal["rademacher", "gaussian", "sphere"]
"""Law of a random direction: signs, standard normal, or uniform on the sphere of radius sqrt(d)."""


def check_probe(probe: str) -> None:
    """One of the three laws."""
    laws = get_args(Probe.__value__)
    if probe not in laws:
        raise ValueError(f"`probe` must be one of {', '.join(laws)}; got {probe!r}.")


def draw_directions(probe: str, like: Float[Array, "..."], count: int, *, key: PRNGKey) -> Float[Array, "count ..."]:
    """`count` independent directions of the shape and dtype of `like`, normalised so that E[v v'] = I."""

    def draw(key: Array) -> Array:
        if probe == "rademacher":
            return jax.random.rademacher(key, like.shape, like.dtype)
        normal = drawn_once(jax.random.normal(key, like.shape, like.dtype))
        if probe == "gaussian":
            return normal
        return normal * jnp.sqrt(like.size / jnp.sum(normal**2))

    return jax.vmap(draw)(jax.random.split(key, count))


def score_and_curvatures(
    energy: AbstractEnergy,
    x: Float[Array, "..."],
    condition: Float[Array, "..."] | None,
    directions: Float[Array, "count ..."],
) -> tuple[Float[Array, "..."], Float[Array, " count"]]:
    """s(x) and v' (ds/dx) v for every direction v, of one event.

    Forward over reverse mode: the score is linearised once, and every direction costs one product with its Jacobian.
    """
    value, push = jax.linearize(lambda x: score(energy, x, condition), x)
    return value, jax.vmap(lambda direction: jnp.sum(direction * push(direction)))(directions)
