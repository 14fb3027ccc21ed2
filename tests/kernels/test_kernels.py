"""Kernels: equal to BlackJAX where BlackJAX has them, exact about what they report."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.diffusions import overdamped_langevin

import ebm_ppl as ebm

KERNELS = [ebm.ULA(0.1), ebm.MALA(0.3), ebm.HMC(0.3, 5), ebm.NUTS(0.3)]


def log_density(x):
    return -jnp.sum(jnp.cosh(x) - 0.3 * x)


def trajectory(algorithm, position, key, length=50):
    def step(state, key):
        state, info = algorithm.step(key, state)
        return state, (state.position, info)

    return jax.lax.scan(step, algorithm.init(position, key), jax.random.split(key, length))[1]


@pytest.mark.parametrize(
    ("kernel", "reference"),
    [
        (ebm.MALA(0.3), lambda f: blackjax.mala(f, 0.3)),
        (ebm.HMC(0.3, 5), lambda f: blackjax.hmc(f, 0.3, jnp.ones(3), 5)),
        (ebm.NUTS(0.3), lambda f: blackjax.nuts(f, 0.3, jnp.ones(3))),
    ],
    ids=["MALA", "HMC", "NUTS"],
)
def test_equal_to_blackjax(kernel, reference, key):
    ours, info = trajectory(kernel.build(log_density), jnp.zeros(3), key)
    theirs, their_info = trajectory(reference(log_density), jnp.zeros(3), key)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=64 * np.finfo(np.float32).eps)
    # rounding only: XLA fuses the two programs differently
    np.testing.assert_allclose(info.acceptance_rate, their_info.acceptance_rate, rtol=64 * np.finfo(np.float32).eps)


def test_ula_is_the_langevin_step(key):
    x, h = jnp.array([0.5, -1.0]), 0.1
    state, _ = ebm.ULA(h).build(log_density).step(key, ebm.ULA(h).build(log_density).init(x))
    noise = jax.random.normal(key, (2,))
    expected = x + h * jax.grad(log_density)(x) + jnp.sqrt(2 * h) * noise
    np.testing.assert_allclose(state.position, expected, rtol=4 * np.finfo(np.float32).eps)


def test_ula_stays_at_its_last_finite_point_and_counts_the_fault_once(key):
    kernel = ebm.ULA(0.5)
    algorithm = kernel.build(lambda x: -jnp.sum(x**4))

    def step(state, key):
        state, info = algorithm.step(key, state)
        return state, (state.position, kernel.stats(state, info))

    _, (positions, stats) = jax.lax.scan(step, algorithm.init(jnp.full(1, 3.0)), jax.random.split(key, 30))
    first = int(np.argmax(stats["diverging"]))
    assert stats["diverging"][first:].all()
    assert not stats["diverging"][:first].any()
    assert np.isfinite(positions).all()
    assert np.ptp(positions[first:]) == 0
    assert stats["nonfinite_proposal"].sum() == 1


def test_nonfinite_proposals_are_exact_to_the_step(key):
    """Oracle: the proposals, replayed from the recorded positions with the kernel's own keys."""

    def barrier(x):  # NaN below 0
        return -jnp.sum(x) + 0.5 * jnp.sum(jnp.log(x))

    kernel = ebm.MALA(0.5)
    algorithm = kernel.build(barrier)
    propose = overdamped_langevin(jax.value_and_grad(barrier))

    def step(state, key):
        proposal = propose(jax.random.split(key)[0], state, 0.5)
        new_state, info = algorithm.step(key, state)
        return new_state, (kernel.stats(new_state, info), proposal.position, new_state.position)

    keys = jax.random.split(key, 400)
    _, (stats, proposals, positions) = jax.lax.scan(step, algorithm.init(jnp.ones(1)), keys)
    expected = np.asarray(proposals[:, 0]) < 0
    assert np.array_equal(stats["nonfinite_proposal"], expected)
    assert 0 < expected.sum() < 400
    assert (positions > 0).all()
    assert (stats["acceptance_rate"][expected] == 0).all()


def test_a_wall_is_not_a_fault(key):
    """An energy of +inf is density zero: rejected, not counted."""
    kernel = ebm.MALA(0.5)
    algorithm = kernel.build(lambda x: jnp.where(jnp.sum(x) > 0, -jnp.sum(x), -jnp.inf))
    _, info = trajectory(algorithm, jnp.ones(1), key, 200)
    assert (info.acceptance_rate == 0).any()
    assert not info.nonfinite_proposal.any()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
def test_every_kernel_reports_the_same_statistics(kernel, key):
    algorithm = kernel.build(log_density)
    state, info = algorithm.step(key, algorithm.init(jnp.zeros(3), key))
    stats = kernel.stats(state, info)
    assert {"diverging", "nonfinite_proposal", "n_steps"} <= set(stats)
    assert ("acceptance_rate" in stats) == kernel.adjusted
    assert all(jnp.shape(value) == () for value in stats.values())
    assert stats["diverging"].dtype == stats["nonfinite_proposal"].dtype == bool
    assert stats["n_steps"] == {"ULA": 1, "MALA": 1, "HMC": 5}.get(type(kernel).__name__, stats["n_steps"])


@pytest.mark.parametrize("kernel_class", [ebm.ULA, ebm.MALA, ebm.HMC, ebm.NUTS])
@pytest.mark.parametrize("step_size", [0.0, -1.0, np.nan, np.inf, "big", None])
def test_bad_step_sizes_are_refused(kernel_class, step_size):
    with pytest.raises((ValueError, TypeError), match="step_size"):
        kernel_class(step_size)


@pytest.mark.parametrize("count", [0, -1, 2.5, True])
def test_bad_counts_are_refused(count):
    with pytest.raises((ValueError, TypeError), match="num_integration_steps"):
        ebm.HMC(0.1, count)
    with pytest.raises((ValueError, TypeError), match="max_num_doublings"):
        ebm.NUTS(0.1, count)
