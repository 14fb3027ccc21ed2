"""Deliberately broken kernels: every statistical test of a sampler must fail on them."""

from typing import ClassVar, NamedTuple

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp

from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import is_nonfinite
from ebm_ppl.kernels._metropolis import MetropolisInfo, one_proposal_stats

FAULTS = (
    "no_correction",  # no Metropolis step: every proposal is taken
    "half_noise",  # sqrt(h) instead of sqrt(2 h)
    "wrong_sign",  # of the proposal ratio
    "no_proposal_ratio",
    "stale_gradient",  # a state carries the gradient of the state before it
    "rejections_dropped",  # only accepted states are recorded
    "state_dependent_step",  # ignored in the ratio
    "nan_accepted",  # NaN becomes 0
)


class State(NamedTuple):
    position: jax.Array
    logdensity: jax.Array
    logdensity_grad: jax.Array


class BrokenMALA(AbstractKernel):
    """MALA with one fault of `FAULTS`, or with none: "". It reports the rate of a correct one, so that it is tuned.

    The fault is an array: all of them share one compiled program.
    """

    step_size: float = 0.1
    fault: jax.Array = eqx.field(
        converter=lambda name: name if hasattr(name, "dtype") else jnp.asarray(("", *FAULTS).index(name), jnp.int32),
        default="",
    )
    target_acceptance_rate: ClassVar[float | None] = 0.574

    def _has(self, name):
        return self.fault == ("", *FAULTS).index(name)

    def build(self, logdensity_fn):
        def evaluate(position):
            state = State(position, *jax.value_and_grad(logdensity_fn)(position))
            zeroed = jax.tree.map(jnp.nan_to_num, state)
            return jax.tree.map(lambda bad, good: jnp.where(self._has("nan_accepted"), bad, good), zeroed, state)

        def step(key, state):
            def attempt(carry):
                return (*self._transition(evaluate, jax.random.fold_in(key, carry[2]), state), carry[2] + 1)

            def unfinished(carry):  # 50 attempts: where nothing at all is accepted, warm-up would wait for ever
                dropped = self._has("rejections_dropped") & ~carry[1].is_accepted & (carry[2] < 50)
                return (carry[2] == 0) | dropped

            false = jnp.zeros((), bool)
            info = MetropolisInfo(jnp.zeros_like(state.logdensity), false, false, state)
            start = (state, info, jnp.zeros((), jnp.int32))
            return jax.lax.while_loop(unfinished, attempt, start)[:2]

        return blackjax.base.SamplingAlgorithm(lambda x, rng_key=None: evaluate(x), step)

    def _transition(self, evaluate, key, state):
        noise_key, accept_key = jax.random.split(key)
        x, dtype = state.position, state.position.dtype
        noise = jax.random.normal(noise_key, x.shape, dtype)
        noise *= jnp.where(self._has("half_noise"), 0.5**0.5, 1.0).astype(dtype)
        h = jnp.asarray(self.step_size, dtype)
        h *= jnp.where(self._has("state_dependent_step"), jnp.exp(jnp.tanh(jnp.mean(x))), 1.0)
        points = jnp.stack([x + h * state.logdensity_grad + jnp.sqrt(2 * h) * noise, x])
        both = jax.vmap(evaluate)(points)
        proposal, stale = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))
        correction = _log_q(state, proposal, h) - _log_q(proposal, state, h)
        correction *= jnp.where(self._has("wrong_sign"), -1, jnp.where(self._has("no_proposal_ratio"), 0, 1))
        ratio = proposal.logdensity - state.logdensity + correction
        rate = jnp.where(jnp.isnan(ratio), 0.0, jnp.exp(jnp.minimum(ratio, 0.0)))
        accepted = (jax.random.uniform(accept_key, dtype=dtype) < rate) | self._has("no_correction")
        nonfinite = is_nonfinite(proposal.logdensity, proposal.logdensity_grad)
        gradient = jnp.where(self._has("stale_gradient"), stale.logdensity_grad, proposal.logdensity_grad)
        new = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), proposal._replace(logdensity_grad=gradient), state)
        return new, MetropolisInfo(rate, accepted, nonfinite, proposal)

    def stats(self, state, info):
        return one_proposal_stats(info)


def _log_q(to, start, step_size):
    return -jnp.sum((to.position - start.position - step_size * start.logdensity_grad) ** 2) / (4 * step_size)
