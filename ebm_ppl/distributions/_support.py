"""Values inside and outside a support, as a log density must treat them."""

import jax
import jax.numpy as jnp
import numpyro  # noqa: F401  (before any of its submodules)
from jax.core import Tracer
from jaxtyping import Array, Bool
from numpyro.distributions.constraints import Constraint

from ebm_ppl.energies._support import EXACT, base_support, is_real


def support_mask(support: Constraint, value: Array) -> Bool[Array, "..."] | None:
    """Which events lie in the support; None: all of them, or taken for granted.

    NaN counts as inside, so that it stays visible instead of becoming density zero.
    """
    if is_real(support):
        return None
    concrete = not any(isinstance(leaf, Tracer) for leaf in [value, *jax.tree.leaves(support)])
    if concrete:
        with jax.ensure_compile_time_eval():
            inside = _inside(support, value)
            return None if bool(jnp.all(inside)) else inside
    return _inside(support, value) if isinstance(base_support(support), EXACT) else None


def _inside(support: Constraint, value: Array) -> Array:
    axes = tuple(range(-support.event_dim, 0))
    return jnp.asarray(support(value)) | jnp.any(jnp.isnan(value), axis=axes)


def move_inside(support: Constraint, inside: Array, value: Array) -> Array:
    """`value` with the events outside replaced by some inside: where the energy is finite, and so its gradient."""
    feasible = jnp.asarray(support.feasible_like(value), value.dtype)
    inside = inside.reshape(inside.shape + (1,) * support.event_dim)
    return jnp.where(inside, value, jnp.broadcast_to(feasible, value.shape))
