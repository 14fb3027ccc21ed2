"""Kernels: equal to BlackJAX where BlackJAX has them, exact about what they report."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.diffusions import overdamped_langevin

import ebm_ppl as ebm
from ebm_ppl.kernels._base import random_length

BASE = ebm.energies.Gaussian(jnp.zeros(3), jnp.eye(3))
KERNELS = [
    ebm.ULA(0.1),
    ebm.MALA(0.3),
    ebm.Barker(0.5),
    ebm.RandomWalk(0.5),
    ebm.HMC(0.3, 5),
    ebm.NUTS(0.3),
    ebm.MCLMC(0.3),
    ebm.kernels.AdjustedMCLMC(0.3, 3),
    ebm.kernels.GeneralizedHMC(0.3),
    ebm.kernels.EllipticalSlice(BASE),
]
ADJUSTED = [kernel for kernel in KERNELS if kernel.adjusted]
EPSILON = np.finfo(np.float32).eps


def name(kernel):
    return type(kernel).__name__


def log_density(x):
    return -jnp.sum(jnp.cosh(x) - 0.3 * x)


def trajectory(algorithm, position, key, length=50):
    def step(state, key):
        state, info = algorithm.step(key, state)
        return state, (state.position, info)

    return jax.lax.scan(step, algorithm.init(position, key), jax.random.split(key, length))[1]


def of_random_length(make, mean):
    """BlackJAX's kernel of fixed length with our choice of length and our use of the key."""

    def step(rng_key, state):
        length_key, rng_key = jax.random.split(rng_key)
        return make(random_length(length_key, mean)).step(rng_key, state)

    return blackjax.base.SamplingAlgorithm(make(1).init, step)


ALPHA = 1 - np.exp(-2 * 1.0 * 0.3)
REFERENCES = {
    "MALA": lambda f: blackjax.mala(f, 0.3),
    "Barker": lambda f: blackjax.barker(f, 0.5),
    "RandomWalk": lambda f: blackjax.normal_random_walk(f, jnp.asarray(0.5)),
    "HMC": lambda f: of_random_length(lambda n: blackjax.hmc(f, 0.3, jnp.ones(3), n), 5),
    "NUTS": lambda f: blackjax.nuts(f, 0.3, jnp.ones(3)),
    "MCLMC": lambda f: blackjax.mclmc(f, jnp.asarray(np.sqrt(3), jnp.float32), 0.3),
    "AdjustedMCLMC": lambda f: of_random_length(lambda n: blackjax.adjusted_mclmc(f, 0.3, num_integration_steps=n), 3),
    "GeneralizedHMC": lambda f: blackjax.ghmc(f, 0.3, jnp.ones(3), ALPHA, ALPHA / 2),
}


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if name(kernel) in REFERENCES], ids=name)
def test_equal_to_blackjax(kernel, key):
    ours, info = trajectory(kernel.build(log_density), jnp.zeros(3), key)
    with jax.numpy_dtype_promotion("standard"):  # BlackJAX multiplies integers, bools and floats
        theirs, their_info = trajectory(REFERENCES[name(kernel)](log_density), jnp.zeros(3), key)
    # rounding only: XLA fuses the two programs differently
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=256 * EPSILON)
    if hasattr(info, "acceptance_rate"):
        np.testing.assert_allclose(info.acceptance_rate, their_info.acceptance_rate, rtol=256 * EPSILON)
    else:
        np.testing.assert_allclose(info.energy_change, their_info.energy_change, atol=256 * EPSILON)


def test_ula_is_the_langevin_step(key):
    x, h = jnp.array([0.5, -1.0]), 0.1
    state, _ = ebm.ULA(h).build(log_density).step(key, ebm.ULA(h).build(log_density).init(x))
    noise = jax.random.normal(key, (2,))
    expected = x + h * jax.grad(log_density)(x) + jnp.sqrt(2 * h) * noise
    np.testing.assert_allclose(state.position, expected, rtol=4 * EPSILON)


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


def langevin_proposal(key, state, log_density):
    return overdamped_langevin(jax.value_and_grad(log_density))(jax.random.split(key)[0], state, 0.5).position


def random_walk_proposal(key, state, log_density):
    return state.position + 0.5 * jax.random.normal(jax.random.split(key)[0], state.position.shape)


def barker_proposal(key, state, log_density):
    noise_key, sign_key = jax.random.split(jax.random.split(key)[0])
    noise = 0.5 * jax.random.normal(noise_key, state.position.shape)
    probability = 1 / (1 + jnp.exp(-jax.grad(log_density)(state.position) * noise))
    up = jax.random.uniform(jax.random.split(sign_key, 1)[0], state.position.shape) < probability
    return state.position + jnp.where(up, noise, -noise)


def underdamped_proposal(key, state, log_density):
    alpha = 1 - jnp.exp(-2 * jnp.asarray(0.5))
    noise = jax.random.normal(jax.random.split(key)[0], state.position.shape)
    velocity = jnp.sqrt(1 - alpha) * state.momentum + jnp.sqrt(alpha) * noise
    return state.position + 0.5 * (velocity + 0.25 * jax.grad(log_density)(state.position))


ONE_PROPOSAL = [
    (ebm.MALA(0.5), langevin_proposal),
    (ebm.RandomWalk(0.5), random_walk_proposal),
    (ebm.Barker(0.5), barker_proposal),
    (ebm.kernels.GeneralizedHMC(0.5), underdamped_proposal),
]


@pytest.mark.parametrize(("kernel", "propose"), ONE_PROPOSAL, ids=[name(kernel) for kernel, _ in ONE_PROPOSAL])
@pytest.mark.parametrize("beyond", [jnp.nan, jnp.inf])
def test_nonfinite_proposals_are_exact_to_the_step(kernel, propose, beyond, key):
    """Oracle: the proposals, replayed from the recorded states with the kernel's own keys. Energy NaN or -inf."""

    def barrier(x):
        return jnp.where(jnp.sum(x) < 0, beyond, -jnp.sum(x) + 0.5 * jnp.sum(jnp.log(jnp.maximum(x, 1e-30))))

    algorithm = kernel.build(barrier)

    def step(state, key):
        proposal = propose(key, state, barrier)
        new_state, info = algorithm.step(key, state)
        return new_state, (kernel.stats(new_state, info), proposal, new_state.position)

    keys = jax.random.split(key, 400)
    _, (stats, proposals, positions) = jax.lax.scan(step, algorithm.init(jnp.ones(1), key), keys)
    expected = np.asarray(proposals[:, 0]) < 0
    assert np.array_equal(stats["nonfinite_proposal"], expected)
    assert 0 < expected.sum() < 400
    assert (positions > 0).all()
    assert (stats["acceptance_rate"][expected] == 0).all()
    assert np.isfinite(stats["acceptance_rate"]).all()  # NaN would stop the tuning of the step size


@pytest.mark.parametrize("kernel", ADJUSTED, ids=name)
def test_a_wall_is_not_a_fault(kernel, key):
    """An energy of +inf is density zero: never entered, not counted."""
    algorithm = kernel.build(lambda x: jnp.where(x[0] < 0.5, log_density(x), -jnp.inf))

    def step(state, key):
        state, info = algorithm.step(key, state)
        return state, (state.position, kernel.stats(state, info))

    _, (positions, stats) = jax.lax.scan(step, algorithm.init(jnp.zeros(3), key), jax.random.split(key, 200))
    assert (positions[:, 0] < 0.5).all()
    assert len(np.unique(positions[:, 0])) > 50
    assert not stats["nonfinite_proposal"].any()
    if "acceptance_rate" in stats:
        assert (stats["acceptance_rate"] == 0).any() or name(kernel) == "NUTS"
    if name(kernel) not in ("HMC", "NUTS", "AdjustedMCLMC"):  # a trajectory's infinite energy may also be an overflow
        assert not stats["diverging"].any()


@pytest.mark.parametrize("kernel", KERNELS, ids=name)
def test_every_kernel_reports_the_same_statistics(kernel, key):
    algorithm = kernel.build(log_density)
    state, info = algorithm.step(key, algorithm.init(jnp.zeros(3), key))
    stats = kernel.stats(state, info)
    assert {"diverging", "nonfinite_proposal", "n_steps"} <= set(stats)
    assert ("acceptance_rate" in stats) == (kernel.adjusted and name(kernel) != "EllipticalSlice")
    assert all(jnp.shape(value) == () for value in stats.values())
    assert stats["diverging"].dtype == stats["nonfinite_proposal"].dtype == bool
    assert stats["n_steps"].dtype == jnp.int32
    one = {"ULA", "MALA", "Barker", "RandomWalk", "GeneralizedHMC"}
    assert (stats["n_steps"] == 1) == (name(kernel) in one) or name(kernel) in ("EllipticalSlice", "NUTS")
    assert {"HMC": 3 <= stats["n_steps"] <= 7, "MCLMC": stats["n_steps"] == 2}.get(name(kernel), True)


@pytest.mark.parametrize("kernel", KERNELS, ids=name)
def test_float64_is_kept(kernel, key):
    with jax.enable_x64():
        algorithm = kernel.build(lambda x: -jnp.sum(jnp.cosh(x)))
        start = algorithm.init(jnp.zeros(3, jnp.float64), key)
        state, _ = algorithm.step(key, start)
    assert state.position.dtype == state.logdensity.dtype == np.float64
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, start)
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(lambda leaf: leaf.dtype, start)


@pytest.mark.parametrize("kernel", KERNELS, ids=name)
@pytest.mark.parametrize("step_size", [0.0, -1.0, np.nan, np.inf, "big", None])
def test_bad_step_sizes_are_refused(kernel, step_size):
    others = {"base": BASE} if name(kernel) == "EllipticalSlice" else {}
    with pytest.raises((ValueError, TypeError), match="step_size"):
        type(kernel)(step_size=step_size, **others)


@pytest.mark.parametrize("count", [0, -1, 2.5, True])
def test_bad_counts_are_refused(count):
    for kernel_class in (ebm.HMC, ebm.kernels.AdjustedMCLMC):
        with pytest.raises((ValueError, TypeError), match="num_integration_steps"):
            kernel_class(0.1, count)
    with pytest.raises((ValueError, TypeError), match="max_num_doublings"):
        ebm.NUTS(0.1, count)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, "big", [1.0, 2.0]])
def test_bad_hyperparameters_are_refused(value):
    with pytest.raises((ValueError, TypeError), match="damping"):
        ebm.kernels.GeneralizedHMC(damping=value)
    with pytest.raises((ValueError, TypeError), match="decoherence_length"):
        ebm.MCLMC(decoherence_length=value)


@pytest.mark.parametrize("mean", [1, 2, 3, 10])
def test_random_lengths(mean, key):
    lengths = np.asarray(jax.vmap(lambda k: random_length(k, mean))(jax.random.split(key, 2000)))
    expected = np.arange((mean + 1) // 2, mean + mean // 2 + 1)
    assert expected.mean() == mean
    assert np.array_equal(np.unique(lengths), expected)


@pytest.mark.parametrize("make", [ebm.MALA, ebm.Barker, ebm.RandomWalk, ebm.HMC, ebm.NUTS, ebm.kernels.GeneralizedHMC])
def test_the_target_acceptance_rate_is_a_field(make):
    assert make(target_acceptance_rate=0.9).target_acceptance_rate == 0.9
    for wrong in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match="`target_acceptance_rate` must be between 0 and 1"):
            make(target_acceptance_rate=wrong)


def test_warmup_tunes_to_the_target_acceptance_rate(key):
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    settings = {"num_warmup": 300, "num_samples": 200, "progress_bar": False}
    rates = [
        ebm.sample(energy, ebm.HMC(target_acceptance_rate=rate), key=key, **settings).stats["acceptance_rate"].mean()
        for rate in (0.6, 0.95)
    ]
    assert rates[1] - rates[0] > 0.15
