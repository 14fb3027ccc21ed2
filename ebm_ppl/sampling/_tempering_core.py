"""The pure part of parallel tempering: one ensemble is a ladder of replicas; `jax.vmap` makes many."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import AbstractReferenceEnergy
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.sampling._warmup import (
    Adaptation,
    ChainState,
    adapt_chain,
    advance_chain,
    finish_warmup,
    start_adaptation,
    start_chain,
)

EXPLORE, SWAP, REFERENCE, TUNE = 0, 1, 2, 3  # folded into an iteration's key


class Path(eqx.Module):
    """x -> -(1 - beta) E_0(x) - beta E(x): the log density of one level, and its potential V = E - E_0."""

    energy: CoordinateEnergy
    reference: AbstractReferenceEnergy
    condition: Any
    inverse_temperature: Float[Array, ""]

    def __call__(self, x: Float[Array, "..."]) -> Scalar:
        """Log density of one event; where beta = 0 the target is not looked at: its walls do not count there."""
        beta = self.inverse_temperature
        mixed = -(1 - beta) * self.reference(x) - beta * self.energy(x, self.condition)
        return jnp.where(beta == 0, -self.reference(x), mixed)

    def potential(self, x: Float[Array, "..."]) -> Scalar:
        """V(x) = E(x) - E_0(x)."""
        return self.energy(x, self.condition) - self.reference(x)


class Ensemble(NamedTuple):
    """The replicas of one ladder, level by level, and where each came from."""

    chains: ChainState
    adaptation: Adaptation | Any
    label: Int[Array, " level"]  # which replica sits at each level
    heading: Array  # per replica: whether it has been at the target since it last left the reference
    round_trips: Int[Array, ""]


def start_ensemble(
    kernel: AbstractKernel, path: Path, betas: Array, positions: Array, key: PRNGKey, *, tune: bool
) -> Ensemble:
    """Replicas at `positions` `(level, *event)`."""

    def start(beta: Array, x: Array, key: Array) -> tuple[ChainState, Any]:
        density = eqx.tree_at(lambda p: p.inverse_temperature, path, beta)
        chain = start_chain(kernel, density, x, key, "none")
        if not tune:
            return chain, None
        return start_adaptation(kernel, density, chain, jax.random.fold_in(key, TUNE))

    levels = len(betas)
    chains, adaptation = jax.vmap(start)(betas, positions, jax.random.split(key, levels))
    heading = jnp.zeros(levels, bool)
    return Ensemble(chains, adaptation, jnp.arange(levels, dtype=jnp.int32), heading, jnp.zeros((), jnp.int32))


def iterate(
    kernel: AbstractKernel, path: Path, betas: Array, ensemble: Ensemble, key: PRNGKey, parity: Array, num_steps: int
) -> tuple[Ensemble, dict[str, Array]]:
    """Explore at every level, then try to swap the even or the odd pairs of neighbours.

    The reference level is drawn exactly and afresh. Statistics: V per level, swap acceptance per pair (NaN where not
    attempted), the target chain's own statistics and position.
    """
    chains, adaptation, stats = _explore(kernel, path, betas, ensemble, jax.random.fold_in(key, EXPLORE), num_steps)
    fresh = path.reference.sample(jax.random.fold_in(key, REFERENCE)).astype(chains.position.dtype)
    positions = chains.position.at[0].set(fresh)
    potentials = jax.vmap(path.potential)(positions)
    order, rates = _swap(betas, potentials, jax.random.fold_in(key, SWAP), parity)
    positions = positions[order]
    chains = _move(kernel, path, betas, chains, positions, jax.random.fold_in(key, TUNE))
    label = ensemble.label[order]
    heading, trips = _round_trips(ensemble.heading, label)
    moved = Ensemble(chains, adaptation, label, heading, ensemble.round_trips + trips)
    target = {name: value[-1] for name, value in stats.items()} | {"lp": chains.inner.logdensity[-1]}
    return moved, target | {
        "position": positions[-1],
        "potentials": potentials,
        "swap_acceptance": rates,
        "swapped": order[-1] != len(betas) - 1,
    }


def finish_tuning(kernel: AbstractKernel, ensemble: Ensemble) -> Ensemble:
    """Fix the step size of every level."""
    finished = jax.vmap(lambda chain, adaptation: finish_warmup(kernel, chain, adaptation))
    return ensemble._replace(chains=finished(ensemble.chains, ensemble.adaptation), adaptation=None)


def _explore(
    kernel: AbstractKernel, path: Path, betas: Array, ensemble: Ensemble, key: Array, num_steps: int
) -> tuple[ChainState, Any, dict[str, Array]]:
    def explore(beta: Array, chain: ChainState, adaptation: Any, key: Array) -> tuple:
        density = eqx.tree_at(lambda p: p.inverse_temperature, path, beta)

        def step(i: Array, carry: tuple) -> tuple:
            chain, adaptation, faults = carry
            chain, stats = advance_chain(kernel, density, chain, jax.random.fold_in(key, i))
            if adaptation is not None:
                chain, adaptation = adapt_chain(kernel, chain, adaptation, stats, jnp.zeros((), bool))
            return chain, adaptation, faults | stats["nonfinite_proposal"]

        # All but the last transition in a loop; the last one's statistics are reported.
        carry = (chain, adaptation, jnp.zeros((), bool))
        chain, adaptation, faults = jax.lax.fori_loop(0, num_steps - 1, step, carry)
        chain, stats = advance_chain(kernel, density, chain, jax.random.fold_in(key, num_steps))
        if adaptation is not None:
            chain, adaptation = adapt_chain(kernel, chain, adaptation, stats, jnp.zeros((), bool))
        return chain, adaptation, stats | {"nonfinite_proposal": stats["nonfinite_proposal"] | faults}

    keys = jax.random.split(key, len(betas))
    return jax.vmap(explore)(betas, ensemble.chains, ensemble.adaptation, keys)


def _swap(betas: Array, potentials: Array, key: Array, parity: Array) -> tuple[Array, Array]:
    """Accepted swaps as a permutation of levels, and the acceptance rates of the attempted pairs.

    The ratio of neighbours i, i+1 is exp((beta_{i+1} - beta_i) (V_{i+1} - V_i)); a NaN is refused.
    """
    pairs = jnp.arange(len(betas) - 1, dtype=jnp.int32)
    log_ratio = (betas[1:] - betas[:-1]) * (potentials[1:] - potentials[:-1])
    rate = jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))
    attempted = pairs % 2 == parity
    accepted = attempted & (jax.random.uniform(key, rate.shape, rate.dtype) < rate)
    up = jnp.append(accepted, False)
    down = jnp.concatenate([jnp.zeros(1, bool), accepted])
    order = jnp.arange(len(betas), dtype=jnp.int32) + up.astype(jnp.int32) - down.astype(jnp.int32)
    return order, jnp.where(attempted, rate, jnp.nan)


def _move(
    kernel: AbstractKernel, path: Path, betas: Array, chains: ChainState, positions: Array, key: Array
) -> ChainState:
    """Put positions at levels; the cached log density and gradient must be those of the new level."""

    def move(beta: Array, chain: ChainState, x: Array, key: Array) -> ChainState:
        density = eqx.tree_at(lambda p: p.inverse_temperature, path, beta)
        fresh = start_chain(kernel, density, x, key, "none")
        return chain._replace(inner=fresh.inner)

    return jax.vmap(move)(betas, chains, positions, jax.random.split(key, len(betas)))


def _round_trips(heading: Array, label: Array) -> tuple[Array, Array]:
    """A replica that reaches the target turns back; when it is at the reference again, a trip is complete."""
    at_reference, at_target = label[0], label[-1]
    completed = heading[at_reference]
    heading = heading.at[at_reference].set(False).at[at_target].set(True)
    return heading, completed.astype(jnp.int32)
