"""Metropolis ratios written from the textbook, independently of the kernels that use them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ebm_ppl._types import LogDensityFn
from ebm_ppl.diagnostics._transitions import Ratio
from ebm_ppl.kernels import HMC, MALA, ULA, AbstractKernel, Barker, RandomWalk

type LogProposal = Callable[[LogDensityFn, Any, Array, Array], Array]
"""(log density, step size, start, end) -> log q(start, end), up to a constant that is the same both ways."""


def langevin(logdensity_fn: LogDensityFn, step_size: Any, start: Array, end: Array) -> Array:
    """Log density of N(end; start - h grad E(start), 2 h I)."""
    drift = start + step_size * jax.grad(logdensity_fn)(start)
    return -jnp.sum((end - drift) ** 2 / (4 * step_size))


def barker(logdensity_fn: LogDensityFn, step_size: Any, start: Array, end: Array) -> Array:
    """Sum over coordinates of log[2 N(z; 0, s^2) / (1 + exp(z dE/dx))], z = end - start."""
    z = end - start
    steepness = z * jax.grad(logdensity_fn)(start)
    return jnp.sum(jax.nn.log_sigmoid(steepness) - z**2 / (2 * step_size**2))


def random_walk(logdensity_fn: LogDensityFn, step_size: Any, start: Array, end: Array) -> Array:
    """Log density of N(end; start, s^2 I)."""
    return -jnp.sum((end - start) ** 2 / (2 * step_size**2))


class ProposalRatio(eqx.Module):
    """log[p(y) q(y, x)] - log[p(x) q(x, y)] for a proposal density q."""

    log_proposal: LogProposal = eqx.field(static=True)

    def __call__(
        self, logdensity_fn: LogDensityFn, step_size: Any, state: Any, proposal: Any, info: Any
    ) -> tuple[Array, Array]:
        """The log ratio; the distance is 0, for a density says nothing of one draw from it."""
        x, y = state.position, proposal
        there = logdensity_fn(x) + self.log_proposal(logdensity_fn, step_size, x, y)
        back = logdensity_fn(y) + self.log_proposal(logdensity_fn, step_size, y, x)
        return back - there, jnp.zeros_like(there)


class HamiltonianRatio(eqx.Module):
    """H(x, v) - H(x', v') with the leapfrog trajectory integrated here, from the momentum that the kernel reports."""

    def __call__(
        self, logdensity_fn: LogDensityFn, step_size: Any, state: Any, proposal: Any, info: Any
    ) -> tuple[Array, Array]:
        """The log ratio, and the largest distance between the kernel's end point and the one found here."""
        gradient = jax.grad(logdensity_fn)

        def leapfrog(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, v = carry
            v = v + step_size / 2 * gradient(x)
            x = x + step_size * v
            return x, v + step_size / 2 * gradient(x)

        start = (state.position, info.momentum)
        x, v = jax.lax.fori_loop(0, info.num_integration_steps, leapfrog, start)
        kinetic = (jnp.sum(info.momentum**2) - jnp.sum(v**2)) / 2
        difference = jnp.where(jnp.isfinite(proposal) | jnp.isfinite(x), x - proposal, jnp.zeros_like(x))
        return logdensity_fn(x) - logdensity_fn(state.position) + kinetic, jnp.max(jnp.abs(difference))


PROPOSALS: dict[str, LogProposal] = {"langevin": langevin, "barker": barker, "random_walk": random_walk}
_OF_KERNEL: dict[type, Ratio] = {
    MALA: ProposalRatio(langevin),
    ULA: ProposalRatio(langevin),
    Barker: ProposalRatio(barker),
    RandomWalk: ProposalRatio(random_walk),
    HMC: HamiltonianRatio(),
}


def ratio_of(kernel: AbstractKernel, log_proposal: Any) -> Ratio | None:
    """The independent ratio of this kernel: by name or by function if given, else by its class, else None."""
    if log_proposal is None:
        return _OF_KERNEL.get(type(kernel))
    if isinstance(log_proposal, str):
        if log_proposal not in PROPOSALS:
            raise ValueError(f"`log_proposal` must be one of {sorted(PROPOSALS)} or a function; got {log_proposal!r}.")
        return ProposalRatio(PROPOSALS[log_proposal])
    if not callable(log_proposal):
        raise TypeError(f"`log_proposal` must be a name or a function; got {type(log_proposal).__name__}.")
    function: Any = log_proposal
    return ProposalRatio(function)
