"""Neighbours of a datum: the noise of the objectives that need no noise density."""

from typing import Any

import jax
from jax.core import Tracer
from jaxtyping import Array, Float

from ebm_ppl._checks import check_positive
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.objectives._drawn_once import drawn_once


def check_noise_scale(noise_scale: Any) -> None:
    """One positive number."""
    check_positive("noise_scale", noise_scale)
    if not isinstance(noise_scale, Tracer) and noise_scale.ndim != 0:
        raise ValueError(f"`noise_scale` must be one number; got shape {noise_scale.shape}.")


def neighbor_energies(
    energy: AbstractEnergy,
    x: Float[Array, "..."],
    condition: Float[Array, "..."] | None,
    noise_scale: Scalar,
    count: int,
    *,
    key: PRNGKey,
) -> Float[Array, " count"]:
    """E at `count` neighbours x + noise_scale * e of one event x, e ~ N(0, I)."""
    noise = drawn_once(jax.random.normal(key, (count, *x.shape), x.dtype))
    return jax.vmap(lambda e: energy(x + noise_scale.astype(x.dtype) * e, condition))(noise)
