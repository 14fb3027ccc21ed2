"""What the kernels with one proposal per transition share: accept or reject it, and say so."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from blackjax.mcmc.proposal import static_binomial_sampling
from jaxtyping import Array

from ebm_ppl.kernels._base import is_nonfinite


class MetropolisInfo(NamedTuple):
    """What a human needs to know of one transition. BlackJAX's info does not tell a NaN proposal from a poor one."""

    acceptance_rate: Array
    is_accepted: Array
    nonfinite_proposal: Array
    proposal: Any = None  # the state proposed, accepted or not: what `diagnostics.detailed_balance` looks at


def accept_or_reject(
    key: Array, log_ratio: Array, state: Any, proposal: Any, gradient: Any = ()
) -> tuple[Any, MetropolisInfo]:
    """`proposal` with probability min(1, exp(log_ratio)), else `state`; `gradient` is the proposal's, if used."""
    nonfinite = is_nonfinite(proposal.logdensity, gradient)
    safe_log_ratio: Any = reject_nonfinite(log_ratio, nonfinite)
    new_state, (accepted, rate, _) = static_binomial_sampling(key, safe_log_ratio, state, proposal)
    return new_state, MetropolisInfo(rate, accepted, nonfinite, proposal)


def reject_nonfinite(log_ratio: Array, nonfinite: Array) -> Array:
    """The log acceptance ratio of a proposal, -inf where it is unusable or where the ratio itself is NaN.

    NaN would be rejected as well, but it would be reported as the acceptance rate and poison the step size.
    """
    return jnp.where(nonfinite | jnp.isnan(log_ratio), -jnp.inf, log_ratio)


def one_proposal_stats(info: MetropolisInfo) -> dict[str, Array]:
    """Statistics under ArviZ names; a one-step proposal has no trajectory to diverge."""
    return {
        "acceptance_rate": info.acceptance_rate,
        "diverging": jnp.zeros_like(info.nonfinite_proposal),
        "nonfinite_proposal": info.nonfinite_proposal,
        "n_steps": jnp.ones((), jnp.int32),
    }
