"""Many independent pairs (state, next state) of a kernel: two compiled programs, whatever the number of steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._types import LogDensityFn
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy
from ebm_ppl.kernels import AbstractKernel

type Ratio = Callable[[LogDensityFn, Any, Any, Any, Any], tuple[Array, Array]]
"""(log density, step size, state, position proposed, info) -> log Metropolis ratio, distance from its own proposal."""


class Invariant(eqx.Module):
    """The density that the kernel should leave invariant, in real coordinates."""

    energy: CoordinateEnergy
    condition: Float[Array, "..."] | None

    def logdensity_fn(self) -> LogDensityFn:
        """What the kernel is built for."""
        return self.energy.target.at_condition(self.condition)


class Step(NamedTuple):
    """One transition of every lane, seen from outside; None: the kernel does not tell.

    `energy` and `log_ratio` are evaluated here, independently of the kernel; `rate`, `accepted` and `proposal` are
    what it reports.
    """

    position: Any
    energy: Any
    diverging: Any
    proposal: Any
    proposal_energy: Any
    rate: Any
    accepted: Any
    log_ratio: Any
    displacement: Any
    energy_change: Any


@eqx.filter_jit
def start(kernel: AbstractKernel, target: Invariant, positions: Float[Array, "n ..."], keys: Array) -> Any:
    """The kernel's fresh state at every position."""
    return jax.vmap(kernel.build(target.logdensity_fn()).init)(positions, keys)


@eqx.filter_jit
def evaluate(target: Invariant, positions: Float[Array, "n ..."], *, gradient: bool) -> tuple[Array, Array | None]:
    """E and, if asked for, the gradient of the log density."""
    logdensity_fn = target.logdensity_fn()
    if not gradient:
        return -jax.vmap(logdensity_fn)(positions), None
    values, gradients = jax.vmap(jax.value_and_grad(logdensity_fn))(positions)
    return -values, gradients


@eqx.filter_jit
def advance(
    kernel: AbstractKernel, target: Invariant, states: Any, keys: Array, *, ratio: Ratio | None
) -> tuple[Any, Step]:
    """One transition of every lane."""
    logdensity_fn = target.logdensity_fn()
    algorithm: Any = kernel.build(logdensity_fn)

    def one(state: Any, key: Array) -> tuple[Any, Step]:
        new, info = algorithm.step(key, state)
        reported = kernel.stats(new, info)
        rate, proposal = reported.get("acceptance_rate"), _proposal(info)
        if rate is None:
            proposal = new.position  # it takes every proposal
        log_ratio, displacement, proposal_energy = None, None, None
        if proposal is not None:
            proposal_energy = -logdensity_fn(proposal)
            if ratio is not None:
                log_ratio, displacement = ratio(logdensity_fn, kernel.step_size, state, proposal, info)
        return new, Step(
            position=new.position,
            energy=-logdensity_fn(new.position),
            diverging=reported.get("diverging"),
            proposal=proposal,
            proposal_energy=proposal_energy,
            rate=rate,
            accepted=getattr(info, "is_accepted", None),
            log_ratio=log_ratio,
            displacement=displacement,
            energy_change=reported.get("energy_change"),
        )

    return jax.vmap(one)(states, keys)


def _proposal(info: Any) -> Any:
    """The position proposed, where the info tells: BlackJAX's `info.proposal`, a state or a position."""
    proposal = getattr(info, "proposal", None)
    return getattr(proposal, "position", proposal)


class Chains:
    """Lanes on their way: host-side copies of every step, energies of lanes that did not move kept to the bit."""

    def __init__(
        self, kernel: AbstractKernel, target: Invariant, positions: Any, key: Array, ratio: Ratio | None
    ) -> None:
        self._kernel, self._target, self._ratio, self._key = kernel, target, ratio, key
        self._start = jnp.asarray(positions)
        self.position = np.asarray(positions, np.float64)
        self.energy = np.asarray(evaluate(target, self._start, gradient=kernel.uses_gradient)[0], np.float64)
        self.states = start(kernel, target, self._start, self.keys(0))
        self._count = 0

    def keys(self, index: int) -> Array:
        """The keys of step `index`, one a lane; 0: of the start."""
        return jax.random.split(jax.random.fold_in(self._key, index), len(self._start))

    def step(self) -> Step:
        """One more transition of every lane, on the host."""
        self._count += 1
        keys = self.keys(self._count)
        self.states, step = advance(self._kernel, self._target, self.states, keys, ratio=self._ratio)
        step = Step(*(None if leaf is None else np.asarray(leaf) for leaf in step))
        position = np.asarray(step.position, np.float64)
        # The same point must have the same energy to the last bit, or ties of ranks would not be ties.
        stayed = _equal(position, self.position)
        if _shows_only_the_outcome(step, self.position):
            step = step._replace(proposal=None, proposal_energy=None, log_ratio=None, displacement=None)
        energy = np.where(stayed, self.energy, np.asarray(step.energy, np.float64))
        self.position, self.energy = position, energy
        return step._replace(position=position, energy=energy)


def _equal(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one == other).reshape(len(one), -1).all(axis=1)


def _shows_only_the_outcome(step: Step, before: np.ndarray) -> bool:
    """Whether what is called the proposal is the state after the decision, as in BlackJAX 1.7's random walks."""
    if step.accepted is None or step.proposal is None or step.accepted.all():
        return False
    rejected = ~step.accepted
    return bool(_equal(step.proposal[rejected].astype(np.float64), before[rejected]).all())
