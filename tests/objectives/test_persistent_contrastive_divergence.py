"""Persistent contrastive divergence: its gradient, its buffer, chains that follow the model, tempered chains."""

from typing import Any, ClassVar

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.energies import Gaussian, GaussianMixture
from ebm_ppl.errors import EnergyShapeError
from ebm_ppl.objectives import AbstractObjective, PersistentContrastiveDivergence, ReplayBuffer
from ebm_ppl.objectives._persistent_contrastive_divergence import exchange_order
from tests.objectives.chains import OrnsteinUhlenbeck, ScaledLoss, batch_gradients, half_trace
from tests.objectives.estimation import isotropic_energy
from tests.statistics import StatisticalError, assert_iid_mean_close

EXACT = OrnsteinUhlenbeck(jnp.asarray(50.0))


@eqx.filter_jit
def run(objective, model, state, batch, key, num_calls):
    """The state after some calls with one model, and the metrics of each."""

    def call(state, key):
        _, (state, metrics) = objective(model, state, batch, key=key)
        return state, metrics

    return jax.lax.scan(call, state, jax.random.split(key, num_calls))


def check_gradient(key, *, shape=(3,), factor=1.0):
    objective = ScaledLoss(PersistentContrastiveDivergence(EXACT, 1, num_particles=50), jnp.asarray(factor))
    assert_iid_mean_close(batch_gradients(objective, jnp.asarray(0.7), key, shape), half_trace(shape, 1 / 0.7))


@pytest.mark.parametrize("shape", [(), (3,), (3, 8, 8)], ids=str)
def test_with_an_exact_kernel_the_gradient_is_that_of_the_likelihood(shape, key):
    check_gradient(key, shape=shape)


@pytest.mark.parametrize("factor", [-1.0, 1 / 3], ids=["flipped", "scaled"])
def test_broken_twins_fail_the_gradient(factor, key):
    with pytest.raises(StatisticalError):
        check_gradient(key, factor=factor)


def check_persistence(num_calls, key, *, calls_that_count):
    """Every slot moves at every call, by a slow exact kernel from N(0, 1) towards N(0, 1/a): a closed form in time."""
    objective = PersistentContrastiveDivergence(OrnsteinUhlenbeck(jnp.asarray(0.1)), 1, num_particles=4000)
    data = jax.random.normal(key, (4000, 1))
    model = isotropic_energy(jnp.asarray(0.3))
    state, _ = run(objective, model, objective.init(model, data, key=key), data, key, num_calls)
    forgotten = 1 - np.exp(-2 * 0.1 * 0.3 * calls_that_count)
    assert_iid_mean_close(np.asarray(state.positions) ** 2, 1 - forgotten + forgotten / 0.3)
    assert np.all(np.asarray(state.age) == num_calls)


def test_chains_go_on_from_call_to_call(key):
    check_persistence(20, key, calls_that_count=20)
    with pytest.raises(StatisticalError):  # what they would be if each call began at the data
        check_persistence(20, key, calls_that_count=1)


class Stale(AbstractObjective[Any]):
    """Keeps BlackJAX's states from call to call: with the log density and gradient of another energy."""

    comparable: ClassVar[bool] = False

    def init(self, model, batch, *, key):
        return jax.vmap(lambda x: blackjax.mala.init(x, ebm.log_density(model)))(batch)

    def __call__(self, model, state, batch, *, key):
        step = ebm.MALA(0.3).build(ebm.log_density(model)).step
        state, _ = jax.vmap(step)(jax.random.split(key, len(batch)), state)
        return jnp.zeros(()), (state, {})


def check_chains_follow(objective, key):
    """One call at N(0, 1), then the model becomes N(3, 1/2), with an energy 50 nats higher."""
    data = jax.random.normal(key, (2000, 1))
    before = ebm.ShiftedEnergy(Gaussian(jnp.zeros(1), jnp.eye(1)), 0.0)
    after = ebm.ShiftedEnergy(Gaussian(3 * jnp.ones(1), jnp.eye(1) / 2), 50.0)
    state, _ = run(objective, before, objective.init(before, data, key=key), data, key, 1)
    state, _ = run(objective, after, state, data, jax.random.fold_in(key, 1), 30)
    x = getattr(state, "positions", None)
    x = np.asarray(state.position if x is None else x)[:, 0]
    assert_iid_mean_close(np.stack([x, (x - 3) ** 2], 1), [3.0, 0.5], what="(mean, variance)")


def test_chains_follow_an_energy_that_changed(key):
    check_chains_follow(PersistentContrastiveDivergence(ebm.MALA(0.3), 1, num_particles=2000), key)


def test_a_kernel_state_kept_over_a_change_fails(key):
    """Every proposal is compared with the old energy at the old place, and rejected."""
    with pytest.raises(StatisticalError):
        check_chains_follow(Stale(), key)


# --- the buffer


def check_draws(draw, key):
    """Each of 40 slots is among the 10 drawn with probability 1/4."""
    slots = np.asarray(jax.vmap(draw)(jax.random.split(key, 4000)))
    included = np.stack([np.bincount(row, minlength=40) for row in slots])
    assert_iid_mean_close(included, 0.25)


def test_every_slot_is_drawn_as_often(key):
    buffer = ReplayBuffer.start(jnp.zeros(40))
    check_draws(lambda key: buffer.draw(10, key=key), key)
    with pytest.raises(StatisticalError):  # a stretch that begins at random: the ends come up rarely
        check_draws(lambda key: jax.random.randint(key, (), 0, 31) + jnp.arange(10), key)


def test_drawn_chains_return_to_their_slots_and_fresh_ones_are_fresh(key):
    """refresh_rate 1, starts near 100: drawn slots are there, the others as they were."""
    objective = PersistentContrastiveDivergence(
        ebm.ULA(1e-9), 3, num_particles=40, refresh_rate=1.0, num_negatives=10, initial=Gaussian(100.0, 1e-4)
    )
    model, data = ebm.FunctionEnergy(lambda x: x**2 / 2, ()), jnp.zeros(16)
    buffer = ReplayBuffer.start(jnp.arange(40.0))
    state, metrics = run(objective, model, buffer, data, key, 1)
    drawn = np.asarray(state.visits) == 1
    assert drawn.sum() == 10
    np.testing.assert_allclose(state.positions[drawn], 100, atol=0.1)
    np.testing.assert_array_equal(state.positions[~drawn], np.arange(40.0)[~drawn])
    np.testing.assert_array_equal(state.age, np.where(drawn, 3, 0))
    assert metrics["buffer_coverage"][0] == 0.25
    assert metrics["buffer_age"][0] == 0.75


def test_age_tells_the_refresh_rate(key):
    """Draws since a chain's start are geometric: 1/refresh_rate in the mean."""
    objective = PersistentContrastiveDivergence(ebm.ULA(0.1), 2, num_particles=3000, refresh_rate=0.25)
    model, data = isotropic_energy(jnp.asarray(1.0)), jax.random.normal(key, (2000, 1))
    state, metrics = run(objective, model, objective.init(model, data, key=key), data, key, 60)
    assert_iid_mean_close(np.asarray(state.age) / 2, 4.0)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(np.asarray(state.age) / 2, 1 / 0.3)
    assert metrics["buffer_coverage"][-1] == 1
    np.testing.assert_array_equal(np.sum(state.visits), 60 * 2000)


def scaled_by_condition(slope, x, condition):
    return x**2 * jnp.exp(-slope * condition) / 2


def check_conditional(key, *, mixed_up):
    """Data N(0, e^y), y ~ U(0, 1), model N(0, e^(b y)), b = .4: gradient (E y - E y e^(.6 y)) / 2."""

    def gradient(key):
        condition = jax.random.uniform(key, (50,))
        data = jnp.exp(condition / 2) * jax.random.normal(jax.random.fold_in(key, 1), (50,))
        objective = PersistentContrastiveDivergence(ebm.MALA(0.5), 10, num_particles=50)

        def loss(slope):
            energy = ebm.FunctionEnergy(scaled_by_condition, (), slope, condition_shape=())
            state = objective.init(energy, (data, condition), key=key)
            if mixed_up:
                state = eqx.tree_at(lambda s: s.condition, state, jnp.zeros_like(state.condition))
            return objective(energy, state, (data, condition), key=jax.random.fold_in(key, 2))[0]

        return jax.grad(loss)(jnp.asarray(0.4))

    expected = (0.5 - (1 - 0.4 * np.exp(0.6)) / 0.6**2) / 2
    assert_iid_mean_close(jax.jit(jax.vmap(gradient))(jax.random.split(key, 500)), expected)


def test_every_chain_keeps_the_condition_of_its_datum(key):
    check_conditional(key, mixed_up=False)
    with pytest.raises(StatisticalError):
        check_conditional(key, mixed_up=True)


# --- tempered chains


def check_exchange(exchange, key):
    """Replicas of N(0, 1/b), drawn exactly, are so after exchanges: E x^2 = 1/b, and the same of |x|."""
    ladder = jnp.array([1.0, 0.6, 0.3])
    draw_key, swap_key = jax.random.split(key)
    x = jax.random.normal(draw_key, (40_000, 3)) / jnp.sqrt(ladder)[None]
    order = jax.vmap(lambda x, key: exchange(ladder, x**2 / 2, key)[0])(x, jax.random.split(swap_key, 40_000))
    x = np.take_along_axis(np.asarray(x), np.asarray(order), 1)
    assert_iid_mean_close(x**2, 1 / np.asarray(ladder))
    assert np.any(np.asarray(order) != np.arange(3))


def test_exchanges_leave_every_level_as_it_is(key):
    check_exchange(exchange_order, key)
    with pytest.raises(StatisticalError):
        check_exchange(lambda ladder, energies, key: exchange_order(-ladder, energies, key), key)


MODES = GaussianMixture(jnp.array([0.3, 0.7]), jnp.array([[-4.0], [4.0]]), jnp.ones((2, 1, 1)))


def check_modes(key, *, inverse_temperatures):
    """Chains that all start in the heavier of two modes 8 standard deviations apart visit them as their weights say."""
    objective = PersistentContrastiveDivergence(
        ebm.MALA(1.0),
        2,
        num_particles=400,
        initial=Gaussian(4 * jnp.ones(1), jnp.eye(1)),
        inverse_temperatures=inverse_temperatures,
    )
    data = jnp.ones((400, 1))
    state, metrics = run(objective, MODES, objective.init(MODES, data, key=key), data, key, 120)
    positions = state.positions if inverse_temperatures is None else state.positions[:, 0]
    assert_iid_mean_close(np.asarray(positions)[:, 0] < 0, 0.3)
    return metrics


def test_tempered_chains_cross_between_modes(key):
    metrics = check_modes(key, inverse_temperatures=[1.0, 0.4, 0.15, 0.05])
    assert 0.2 < np.mean(metrics["swap_rate"]) < 1
    with pytest.raises(StatisticalError):
        check_modes(key, inverse_temperatures=None)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kernel": None}, "`kernel` must be a kernel such as"),
        ({"num_particles": 0}, "`num_particles` must be an integer >= 1; got 0"),
        ({"num_negatives": 2000}, "`num_negatives` must be at most 1000; got 2000"),
        ({"refresh_rate": 1.5}, r"`refresh_rate` must lie in \[0, 1\]; got 1.5"),
        ({"inverse_temperatures": [0.5, 1.0]}, "`inverse_temperatures` must descend strictly, the first being 1"),
        ({"initial": 3.0}, "`initial` must have log_prob"),
    ],
)
def test_settings_are_checked_by_name(settings, match):
    with pytest.raises((ValueError, TypeError), match=match):
        PersistentContrastiveDivergence(**({"kernel": ebm.MALA()} | settings))


def test_where_chains_start_must_have_the_shape_of_the_events(key):
    objective = PersistentContrastiveDivergence(ebm.MALA(), initial=Gaussian(jnp.zeros(3), jnp.eye(3)))
    with pytest.raises(EnergyShapeError, match="`initial` must have event shape"):
        objective.init(isotropic_energy(1.0, (2,)), jnp.ones((4, 2)), key=key)


def test_float32_data_keep_their_precision_under_x64():
    """BlackJAX draws float64 noise then; the chains move in it, energy, gradient and buffer stay float32."""
    with jax.enable_x64(True):
        data = jnp.ones((8, 2), jnp.float32)
        model = isotropic_energy(jnp.asarray(0.7, jnp.float32), (2,))
        objective = PersistentContrastiveDivergence(ebm.MALA(0.3), 2, 10, inverse_temperatures=[1.0, 0.5])
        state = objective.init(model, data, key=jax.random.key(0))
        call = eqx.filter_value_and_grad(
            lambda model: objective(model, state, data, key=jax.random.key(1)), has_aux=True
        )
        (loss, (state, metrics)), gradient = eqx.filter_eval_shape(call, model)
        dtypes = {leaf.dtype for leaf in (loss, state.positions, gradient.params, *metrics.values())}
    assert dtypes == {jnp.dtype("float32")}
