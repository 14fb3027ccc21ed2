"""The Barker proposal where others break: steep energies, step sizes that are too large."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm


def transitions(kernel, log_density, start, key, length):
    algorithm = kernel.build(log_density)

    def step(state, key):
        state, info = algorithm.step(key, state)
        return state, (state.position, info.acceptance_rate)

    return jax.jit(lambda: jax.lax.scan(step, algorithm.init(start), jax.random.split(key, length))[1])()


@pytest.mark.parametrize("start", [30.0, 1000.0])
def test_a_steep_energy_does_not_overflow(start, key):
    """At x = 30 the gradient of x^4 is 1e5: log(1 + exp(a)) as written is infinite, and no move down is accepted."""
    positions, rates = transitions(ebm.Barker(2.0), lambda x: -jnp.sum(x**4), jnp.full(1, start), key, 4000)
    assert np.isfinite(rates).all()
    assert np.abs(positions[-1000:]).max() < 3
    positions, _ = transitions(ebm.MALA(2.0), lambda x: -jnp.sum(x**4), jnp.full(1, start), key, 4000)
    assert (positions == start).all()  # as far as MALA gets with that step


def log_proposal(to, start, gradient, step_size):
    """Density of the proposal, written out: 2 N(to; start, s^2) / (1 + exp(-gradient (to - start)))."""
    move = to - start
    normal = -(move**2) / (2 * step_size**2) - np.log(step_size * np.sqrt(2 * np.pi))
    return np.sum(np.log(2) + normal - np.log1p(np.exp(-gradient * move)))


def test_the_acceptance_rate_is_that_of_the_written_out_proposal(key):
    def log_density(x):
        return -jnp.sum(jnp.exp(x) - 2 * x + jnp.sin(x[0]) * x[1])

    gradient = jax.grad(log_density)
    kernel, x = ebm.Barker(0.8), jnp.array([0.3, -0.7, 1.1])
    algorithm = kernel.build(log_density)
    moved = 0
    for step_key in jax.random.split(key, 20):
        state, info = algorithm.step(step_key, algorithm.init(x))
        if not info.is_accepted:
            continue
        moved += 1
        here, there = np.asarray(x, np.float64), np.asarray(state.position, np.float64)
        ratio = float(log_density(state.position)) - float(log_density(x))
        ratio += log_proposal(here, there, np.asarray(gradient(state.position), np.float64), 0.8)
        ratio -= log_proposal(there, here, np.asarray(gradient(x), np.float64), 0.8)
        assert float(info.acceptance_rate) == pytest.approx(min(1.0, np.exp(ratio)), rel=1e-4)
    assert moved > 5
