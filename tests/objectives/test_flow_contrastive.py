"""Flow-contrastive estimation against quadrature: value, both players' gradients, turns, conditions, refusals."""

import itertools

import equinox as eqx
import flowjax.bijections
import flowjax.distributions
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flowjax.distributions import Normal
from scipy import stats

import ebm_ppl as ebm
from ebm_ppl.energies import Gaussian
from ebm_ppl.errors import EnergyShapeError, MissingLogNormalizerError
from ebm_ppl.objectives import FlowContrastive
from ebm_ppl.training import two_player_optimizer
from tests.statistics import StatisticalError, assert_iid_mean_close

MEAN, DEVIATION = 0.5, 1.2  # of the data
THETA = np.array([0.8, -0.3, 1.1, -0.4, 0.7])  # precision, slope and constant of the energy; location and scale of flow
GRID = np.linspace(-14, 14, 14_001)


def tilted(params, x):
    return params[0] * x[0] ** 2 / 2 - params[1] * x[0]


class DetachedDraws(flowjax.distributions.AbstractDistribution):
    """The broken twin: its draws do not pass gradients on."""

    flow: Normal
    shape: tuple[int, ...] = eqx.field(static=True, default=(1,))
    cond_shape: None = eqx.field(static=True, default=None)

    def _log_prob(self, x, condition=None):
        return self.flow._log_prob(x)

    def _sample(self, key, condition=None):
        return jax.lax.stop_gradient(self.flow._sample(key))


def players(wrap=lambda flow: flow):
    energy = ebm.FunctionEnergy(tilted, (1,), jnp.asarray(THETA[:2], jnp.float32))
    return ebm.ShiftedEnergy(energy, float(THETA[2])), wrap(Normal(jnp.full(1, THETA[3]), float(THETA[4])))


def value(theta, ratio):
    """V by quadrature over x."""
    precision, slope, constant, location, scale = theta
    noise = stats.norm.logpdf(GRID, location, scale)
    odds = -(precision * GRID**2 / 2 - slope * GRID) - constant - noise - np.log(ratio)
    density = stats.norm.pdf(GRID, MEAN, DEVIATION) * np.logaddexp(0, -odds)
    density += ratio * np.exp(noise) * np.logaddexp(0, odds)
    return np.trapezoid(density, GRID)


def derivative(ratio):
    """Of V in theta: no reparametrisation in it, the density of the flow is differentiated."""
    return np.array([(value(THETA + e, ratio) - value(THETA - e, ratio)) / 2e-5 for e in 1e-5 * np.eye(5)])


@eqx.filter_jit
def rows(objective, model, data, key):
    """Loss of each datum alone and its gradient in (precision, slope, constant, location, scale)."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, x, key):
        return objective(eqx.combine(params, static), jnp.zeros((), jnp.int32), x[None], key=key)[0]

    losses, gradients = jax.vmap(jax.value_and_grad(loss), (None, 0, 0))(params, data, jax.random.split(key, len(data)))
    columns = jnp.concatenate([leaf.reshape(len(data), -1) for leaf in jax.tree.leaves(gradients)], axis=1)
    return losses, columns


def check(ratio, key, signs=(1, 1, 1, -1, -1), wrap=lambda flow: flow):
    """The energy's gradient is that of V, the flow's that of -V."""
    data = MEAN + DEVIATION * jax.random.normal(key, (20_000, 1))
    losses, gradients = rows(FlowContrastive(ratio), players(wrap), data, jax.random.fold_in(key, 1))
    assert_iid_mean_close(losses, value(THETA, ratio), what="V")
    unconstrained = np.log(np.expm1(THETA[4]))  # FlowJAX's scale is the softplus of what it stores
    chain = np.array([1, 1, 1, 1, 1 / (1 + np.exp(-unconstrained))])
    assert_iid_mean_close(gradients, np.array(signs) * derivative(ratio) * chain, what="gradient")


@pytest.mark.parametrize("ratio", [1, 3])
def test_value_and_gradients_of_both_players_are_those_of_quadrature(ratio, key):
    check(ratio, key)


def test_broken_twins_fail_the_gradients(key):
    with pytest.raises(StatisticalError, match="gradient"):
        check(1, key, signs=(1, 1, 1, 1, 1))
    with pytest.raises(StatisticalError, match="gradient"):
        check(1, key, wrap=DetachedDraws)


def test_value_where_all_agree_and_metrics(key):
    model = (
        ebm.ShiftedEnergy(Gaussian(np.zeros(1, "f"), np.eye(1, dtype="f")), np.log(2 * np.pi) / 2),
        Normal(jnp.zeros(1)),
    )
    data = jax.random.normal(key, (64, 1))
    objective = FlowContrastive()
    state = objective.init(model, data, key=key)
    loss, (state, metrics) = eqx.filter_jit(objective)(model, state, data, key=key)
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=1e-6)
    assert int(state) == 1
    np.testing.assert_allclose(metrics["log_normalizer"], np.log(2 * np.pi) / 2, rtol=1e-6)
    surprise = -stats.norm.logpdf(np.asarray(data, float)).mean()
    np.testing.assert_allclose(metrics["flow_negative_log_likelihood"], surprise, rtol=1e-5)


ENERGY_STEPS, FLOW_STEPS = 2, 1


def trained(num_steps, optimizer, key):
    objective = FlowContrastive(alternation=(ENERGY_STEPS, FLOW_STEPS))
    data = MEAN + DEVIATION * jax.random.normal(key, (32, 1))
    result = ebm.fit(
        players(), data, objective, key=key, optimizer=optimizer, num_steps=num_steps, batch_size=16, progress_bar=False
    )
    return result.model


def moved(one, other):
    """Whether energy and flow differ."""
    return [not eqx.tree_equal(before, after) for before, after in zip(one, other, strict=True)]


def test_players_learn_in_turn_and_rest_completely(key):
    optimizer = two_player_optimizer(optax.adam(1e-2), optax.adam(1e-3))
    after = [players(), *(trained(steps, optimizer, key) for steps in (1, 2, 3, 4))]
    turns = [moved(one, other) for one, other in itertools.pairwise(after)]
    assert turns == [[True, False], [True, False], [False, True], [True, False]]
    locations = [float(flow.bijection.loc[0]) for _, flow in after]
    np.testing.assert_allclose(abs(locations[3] - locations[2]), 1e-3, rtol=1e-3)  # Adam's first step is its rate
    shifts = [float(energy.log_normalizer) for energy, _ in after]
    np.testing.assert_allclose(abs(shifts[1] - shifts[0]), 1e-2, rtol=1e-3)


def test_adam_alone_does_not_let_a_player_rest(key):
    optimizer = optax.adam(1e-2)
    assert moved(trained(2, optimizer, key), trained(3, optimizer, key)) == [True, True]


def test_a_player_without_parameters_rests():
    optimizer, params = two_player_optimizer(optax.sgd(0.1), optax.sgd(0.1)), (jnp.ones(1), None)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates[0], -0.1, rtol=1e-6)


def shifted_normal(condition_shape):
    """N(condition, 1)."""
    shift = flowjax.bijections.AdditiveCondition(jnp.sum, (), condition_shape)
    return flowjax.distributions.Transformed(flowjax.distributions.StandardNormal(()), shift)


def conditional(x, condition):
    return (x - jnp.sum(condition)) ** 2 / 2


def test_a_conditional_flow_gets_the_condition_of_its_own_row(key):
    energy = ebm.ShiftedEnergy(ebm.FunctionEnergy(conditional, (), condition_shape=(2,)), np.log(2 * np.pi) / 2)
    x, condition = jax.random.normal(key, (8,)), 5 * jax.random.normal(key, (8, 2))
    loss = FlowContrastive().loss((energy, shifted_normal((2,))), (x, condition), key=key)
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=1e-5)
    with pytest.raises(EnergyShapeError, match=r"condition must have shape \(2,\), the energy's; got \(3,\)"):
        FlowContrastive().loss((energy, shifted_normal((3,))), (x, condition), key=key)


def test_models_that_are_no_such_pair_are_refused():
    energy, flow = players()
    data, key = jnp.zeros((4, 1)), jax.random.key(0)
    mixture = flowjax.distributions.VmapMixture(eqx.filter_vmap(Normal)(jnp.zeros((2, 1))), jnp.ones(2))
    for model, error, message in [
        (energy, TypeError, r"pair \(energy, flow\); got ShiftedEnergy"),
        ((flow, energy), TypeError, r"pair \(energy, flow\); got \(Normal, ShiftedEnergy\)"),
        ((energy, energy), TypeError, "must be a FlowJAX distribution"),
        ((energy.energy, flow), MissingLogNormalizerError, "`FlowContrastive` learns log Z"),
        ((energy, Normal(jnp.zeros(2))), EnergyShapeError, r"events must have shape \(1,\), the energy's; got \(2,\)"),
        ((energy, mixture), NotImplementedError, "VmapMixture have no derivative"),
    ]:
        with pytest.raises(error, match=message):
            FlowContrastive().loss(model, data, key=key)


def test_settings_are_checked_by_name():
    with pytest.raises(ValueError, match="`noise_ratio` must be an integer >= 1; got 0"):
        FlowContrastive(0)
    with pytest.raises(ValueError, match="`flow_steps` of `alternation` must be an integer >= 1; got 0"):
        FlowContrastive(alternation=(1, 0))
