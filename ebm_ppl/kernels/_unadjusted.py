"""What kernels without a Metropolis step share: they stop at their last finite point, and say so."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ebm_ppl.kernels._base import is_nonfinite


class UnadjustedState(NamedTuple):
    """A point, its log density and gradient; once `diverged`, the chain stays at its last finite point."""

    position: Any
    logdensity: Array
    logdensity_grad: Any
    diverged: Array


class UnadjustedInfo(NamedTuple):
    """What a human needs to know of one transition."""

    nonfinite_proposal: Array


def take_unless_nonfinite(state: Any, proposal: tuple[Any, Array, Any]) -> tuple[Any, UnadjustedInfo]:
    """Position, log density and gradient of `proposal`, or, from the first non-finite one on, what there was."""
    _, logdensity, gradient = proposal
    # Without a rejection a wall (log density -inf) cannot be handled either: it counts as a fault too.
    failed = is_nonfinite(logdensity, gradient) | ~jnp.isfinite(logdensity)
    diverged = state.diverged | failed
    old = (state.position, state.logdensity, state.logdensity_grad)
    kept = jax.tree.map(lambda stay, go: jnp.where(diverged, stay, go), old, tuple(proposal))
    info = UnadjustedInfo(failed & ~state.diverged)
    return state._replace(position=kept[0], logdensity=kept[1], logdensity_grad=kept[2], diverged=diverged), info


def unadjusted_stats(state: Any, info: UnadjustedInfo, n_steps: int = 1) -> dict[str, Array]:
    """Statistics under ArviZ names; no `acceptance_rate`, because nothing is ever rejected."""
    return {
        "diverging": state.diverged,
        "nonfinite_proposal": info.nonfinite_proposal,
        "n_steps": jnp.asarray(n_steps, jnp.int32),
    }
