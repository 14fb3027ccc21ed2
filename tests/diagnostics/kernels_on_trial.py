"""Kernels, right and wrong, whose verdict is known, and targets with exact draws to try them on."""

from typing import Any, ClassVar, NamedTuple

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import ebm_ppl as ebm
from ebm_ppl.diagnostics._balance_evidence import collect, statistical_tests
from ebm_ppl.diagnostics._proposal_ratios import ratio_of
from ebm_ppl.diagnostics._references import references
from ebm_ppl.diagnostics._transitions import Invariant
from ebm_ppl.energies._coordinate_energy import coordinate_energy
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.kernels._metropolis import one_proposal_stats

STANDARD = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1))
CORRELATED = ebm.energies.Gaussian(jnp.zeros(2), jnp.array([[1.0, 0.8], [0.8, 1.0]]))
SKEWED = ebm.energies.GaussianMixture(jnp.array([0.7, 0.3]), jnp.array([[0.0], [2.0]]), jnp.array([[[0.3]], [[1.0]]]))
HEAVY = ebm.energies.StudentT(3.0, jnp.ones(2))


class GibbsState(NamedTuple):
    position: jax.Array
    logdensity: jax.Array


class GibbsSweep(ebm.AbstractKernel):
    """Exact conditionals of a bivariate normal law with unit variances, always x_0 first: invariant, irreversible."""

    correlation: float = 0.8
    step_size: Any = 1.0
    target_acceptance_rate: ClassVar[float | None] = None
    reversible: ClassVar[bool] = False
    uses_gradient: ClassVar[bool] = False

    def build(self, logdensity_fn):
        def step(key, state):
            noise = (1 - self.correlation**2) ** 0.5 * jax.random.normal(key, (2,), state.position.dtype)
            first = self.correlation * state.position[1] + noise[0]
            new = jnp.stack([first, self.correlation * first + noise[1]])
            return GibbsState(new, logdensity_fn(new)), None

        return blackjax.base.SamplingAlgorithm(lambda x, rng_key=None: GibbsState(x, logdensity_fn(x)), step)

    def stats(self, state, info):
        return {"acceptance_rate": jnp.ones_like(state.logdensity)}


class UndeclaredSweep(GibbsSweep):
    """The same, claiming to be reversible."""

    reversible: ClassVar[bool] = True


class BlackJAXWalk(ebm.AbstractKernel):
    """BlackJAX's random walk as it is: what it calls a proposal is the state after the decision."""

    step_size: Any = 1.0
    target_acceptance_rate: ClassVar[float | None] = 0.4
    uses_gradient: ClassVar[bool] = False

    def build(self, logdensity_fn):
        return blackjax.normal_random_walk(logdensity_fn, jnp.asarray(self.step_size))

    def stats(self, state, info):
        return {"acceptance_rate": info.acceptance_rate}


class AdaptiveState(NamedTuple):
    position: jax.Array
    logdensity: jax.Array
    log_step: jax.Array


class Adaptive(ebm.AbstractKernel):
    """Random walk whose step size goes on adapting by so little that no statistical test could see it."""

    step_size: Any = 1.0
    gain: jax.Array = eqx.field(converter=jnp.asarray, default=1e-3)
    target_acceptance_rate: ClassVar[float | None] = 0.4
    uses_gradient: ClassVar[bool] = False

    def build(self, logdensity_fn):
        def init(x, rng_key=None):
            return AdaptiveState(x, logdensity_fn(x), jnp.log(jnp.asarray(self.step_size, x.dtype)))

        def step(key, state):
            walk = ebm.RandomWalk(jnp.exp(state.log_step)).build(logdensity_fn)
            new, info = walk.step(key, type(walk.init(state.position))(*state[:2]))
            return AdaptiveState(*new, state.log_step + self.gain * (info.acceptance_rate - 0.4)), info

        return blackjax.base.SamplingAlgorithm(init, step)

    def stats(self, state, info):
        return one_proposal_stats(info)


_HIDDEN = np.random.default_rng(0)


class HiddenNoise(ebm.AbstractKernel):
    """A random walk with noise from outside: the same key does not give the same step."""

    step_size: Any = 1.0
    target_acceptance_rate: ClassVar[float | None] = None
    uses_gradient: ClassVar[bool] = False

    def build(self, logdensity_fn):
        walk = ebm.RandomWalk(self.step_size).build(logdensity_fn)

        def step(key, state):
            shape = jax.ShapeDtypeStruct((), jnp.uint32)

            def draw(bits):
                return _HIDDEN.integers(0, 2**32, np.shape(bits), np.uint32)

            hidden = jax.pure_callback(draw, shape, jax.random.bits(key), vmap_method="expand_dims")
            return walk.step(jax.random.fold_in(key, hidden), state)

        return blackjax.base.SamplingAlgorithm(walk.init, step)

    def stats(self, state, info):
        return one_proposal_stats(info)


def p_values(energy, kernel, *, key, runs, pairs, num_steps=6):
    """p-values of every test in `runs` experiments of `pairs` pairs each: a dictionary of arrays."""
    drawn = references(energy, None, runs * pairs, key, None, 1)
    kernel = with_step_size(kernel, jnp.asarray(kernel.step_size, drawn.start.dtype))
    target = Invariant(coordinate_energy(energy), None)
    ratio = ratio_of(kernel, None)
    evidence = collect(kernel, target, drawn.start, drawn.fresh, key, ratio=ratio, num_steps=num_steps).evidence
    table: dict[str, list[float]] = {}
    for run in range(runs):
        findings, _ = statistical_tests(evidence.part(run, runs), np.random.default_rng([run, pairs]))
        for finding in findings:
            if finding.p_value is not None:
                table.setdefault(finding.test, []).append(finding.p_value)
    return {test: np.array(values) for test, values in table.items()}
