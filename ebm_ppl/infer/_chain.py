"""One chain of `BlackJAXKernel`, as pure functions: start, step, and re-evaluation under a changed target."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ebm_ppl._types import LogDensityFn, PRNGKey
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.sampling._warmup import (
    Adaptation,
    ChainState,
    Whitened,
    adapt_chain,
    advance_chain,
    end_slow_window,
    finish_warmup,
    start_adaptation,
    start_chain,
    warmup_windows,
)

type PotentialFn = Callable[[Any], Array]
"""Unconstrained values of the sites -> negative log joint density."""


class BlackJAXState(NamedTuple):
    """The state of one chain, or of all of them with a leading chain axis.

    The statistics of the last transition are attributes too: `state.acceptance_rate`, `state.diverging`, ...; so any
    of them can be asked for in `MCMC.run(..., extra_fields=...)`.

    Attributes:
        i: transitions so far, warm-up included.
        z: unconstrained value of every latent site.
        potential_energy: negative log joint density at `z`, in nats.
        stats: statistics of the last transition, by name.
        mean_acceptance_rate: over the transitions of the current phase.
        num_warmup: transitions of warm-up.
        chain: BlackJAX's own state, step size and preconditioner.
        adaptation: what warm-up has learnt; None where nothing is tuned.
        rng_key: the key of the next transition.
    """

    i: Array
    z: Any
    potential_energy: Array
    stats: dict[str, Array]
    mean_acceptance_rate: Array
    num_warmup: Array
    chain: ChainState
    adaptation: Adaptation | None
    rng_key: Array

    def __getattr__(self, name: str) -> Array:
        stats = object.__getattribute__(self, "stats")
        if name not in stats:
            raise AttributeError(f"no field or statistic {name!r}; statistics are {sorted(stats)}.")
        return stats[name]


class Schedule(NamedTuple):
    """What happens at each transition of warm-up: whether scales are being learnt, and whether they come into use."""

    slow: np.ndarray
    ends: np.ndarray


def make_schedule(num_warmup: int, precondition: str) -> Schedule:
    """Stan's windows, spelt out per transition."""
    slow, ends = np.zeros(num_warmup, bool), np.zeros(num_warmup, bool)
    last = 0
    for window in warmup_windows(num_warmup):
        first, last = last, last + window.num_steps
        if window.slow and precondition != "none":
            slow[first:last], ends[last - 1] = True, True
    return Schedule(slow, ends)


def stat_names(kernel: AbstractKernel) -> tuple[str, ...]:
    """The statistics this kernel reports, `step_size` included; found by tracing one transition."""

    def one(key: Array) -> dict[str, Array]:
        # Two coordinates, for kernels that move at unit speed; one made for a certain number says which.
        position = jnp.zeros(2 if kernel.num_coordinates is None else kernel.num_coordinates)
        chain = start_chain(kernel, _standard_normal, position, key, "none")
        return advance_chain(kernel, _standard_normal, chain, key)[1]

    return tuple(sorted(set(jax.eval_shape(one, jax.random.key(0))) - {"lp"}))


def start(
    kernel: AbstractKernel, potential_fn: PotentialFn, z: Any, key: PRNGKey, num_warmup: int, precondition: str
) -> BlackJAXState:
    """A chain at `z`; with warm-up to come, at a reasonable first step size."""
    flat, unravel = ravel_pytree(z)
    logdensity_fn = FlatDensity(potential_fn, unravel)
    rng_key, start_key, tune_key = jax.random.split(key, 3)
    chain, adaptation = start_chain(kernel, logdensity_fn, flat, start_key, precondition), None
    if num_warmup > 0 and kernel.target_acceptance_rate is not None:
        chain, adaptation = start_adaptation(kernel, logdensity_fn, chain, tune_key)
    shapes = jax.eval_shape(lambda c, k: advance_chain(kernel, logdensity_fn, c, k)[1], chain, start_key)
    stats = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items() if name != "lp"}
    return BlackJAXState(
        jnp.zeros((), jnp.int32),
        unravel(chain.position),
        -chain.inner.logdensity,
        stats,
        jnp.zeros((), flat.dtype),
        jnp.asarray(num_warmup, jnp.int32),
        chain,
        adaptation,
        rng_key,
    )


def step(kernel: AbstractKernel, potential_fn: PotentialFn, state: BlackJAXState, schedule: Schedule) -> BlackJAXState:
    """One transition, and during warm-up what is learnt from it."""
    unravel = ravel_pytree(state.z)[1]
    logdensity_fn = FlatDensity(potential_fn, unravel)
    rng_key, step_key, tune_key = jax.random.split(state.rng_key, 3)
    chain, stats = advance_chain(kernel, logdensity_fn, state.chain, step_key)
    warming, adaptation = state.i < state.num_warmup, state.adaptation
    if adaptation is not None and len(schedule.slow):
        chain, adaptation = _learn(kernel, logdensity_fn, chain, adaptation, stats, state, schedule, tune_key)
    rate = stats.get("acceptance_rate", state.mean_acceptance_rate)
    count = state.i + 1 - jnp.where(warming, 0, state.num_warmup)
    mean = state.mean_acceptance_rate + (rate - state.mean_acceptance_rate) / count.astype(rate.dtype)
    return BlackJAXState(
        state.i + 1,
        unravel(chain.position),
        -stats.pop("lp"),
        stats,
        mean,
        state.num_warmup,
        chain,
        adaptation,
        rng_key,
    )


def refresh(kernel: AbstractKernel, potential_fn: PotentialFn, state: BlackJAXState) -> BlackJAXState:
    """The same place under another target: BlackJAX's state caches log density and gradient."""
    logdensity_fn = FlatDensity(potential_fn, ravel_pytree(state.z)[1])
    chain = state.chain
    algorithm = with_step_size(kernel, chain.step_size).build(Whitened(logdensity_fn, chain.preconditioner))
    inner: Any = algorithm.init(chain.inner.position, jax.random.fold_in(state.rng_key, 0))
    return state._replace(chain=chain._replace(inner=inner), potential_energy=-inner.logdensity)


@dataclasses.dataclass(frozen=True)
class FlatDensity:
    """The log density of all latent values as one vector, which is what kernels and warm-up work on.

    Args:
        potential_fn: the potential energy of the latent values.
        unravel: the vector -> the latent values.
    """

    potential_fn: PotentialFn
    unravel: Callable[[Array], Any]

    def __call__(self, flat: Array) -> Array:
        """Log density at `flat`."""
        return -self.potential_fn(self.unravel(flat))


def _learn(
    kernel: AbstractKernel,
    logdensity_fn: LogDensityFn,
    chain: ChainState,
    adaptation: Adaptation,
    stats: dict[str, Array],
    state: BlackJAXState,
    schedule: Schedule,
    key: PRNGKey,
) -> tuple[ChainState, Adaptation]:
    warming = state.i < state.num_warmup
    index = jnp.minimum(state.i, len(schedule.slow) - 1)
    slow, ends = warming & jnp.asarray(schedule.slow)[index], warming & jnp.asarray(schedule.ends)[index]
    learnt = adapt_chain(kernel, chain, adaptation, stats, slow)
    chain, adaptation = jax.tree.map(lambda new, old: jnp.where(warming, new, old), learnt, (chain, adaptation))

    def end_window(carry: tuple[Array, ChainState, Adaptation]) -> tuple[Array, ChainState, Adaptation]:
        return jnp.zeros((), bool), *end_slow_window(kernel, logdensity_fn, *carry[1:], key)

    if schedule.ends.any():
        # A loop of at most one pass, not `cond`: where chains are vmapped, `cond` would search a step size every time.
        _, chain, adaptation = jax.lax.while_loop(lambda carry: carry[0], end_window, (ends, chain, adaptation))
    tuned = finish_warmup(kernel, chain, adaptation).step_size
    last = state.i == state.num_warmup - 1
    return chain._replace(step_size=jnp.where(last, tuned, chain.step_size)), adaptation


def _standard_normal(x: Array) -> Array:
    return -jnp.sum(x**2) / 2
