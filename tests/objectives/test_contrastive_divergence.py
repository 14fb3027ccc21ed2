"""Contrastive divergence against closed forms of short chains (TRUTHS D1 to D3) and of maximum likelihood."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.objectives import AbstractMeanObjective, AbstractObjective, ContrastiveDivergence
from tests.objectives.chains import (
    OrnsteinUhlenbeck,
    ScaledLoss,
    batch_gradients,
    half_trace,
    ula_variance,
)
from tests.statistics import StatisticalError, assert_iid_mean_close


def check_gradient(objective, key, *, shape=(3,), factor=1.0, a=0.7):
    """CD-3 with ULA at a wrong parameter: d/2 (1 - variance after three steps)."""
    gradients = batch_gradients(ScaledLoss(objective, jnp.asarray(factor)), jnp.asarray(a), key, shape)
    assert_iid_mean_close(gradients, half_trace(shape, ula_variance(a, 0.3, 3)))


@pytest.mark.parametrize("shape", [(), (3,), (3, 8, 8)], ids=str)
def test_gradient_of_short_chains_is_their_closed_form(shape, key):
    check_gradient(ContrastiveDivergence(ebm.ULA(0.3), 3), key, shape=shape)


class Undetached(AbstractObjective[None]):
    """Three steps of ULA with the gradient flowing through the negatives."""

    comparable: ClassVar[bool] = False

    def init(self, model, batch, *, key):
        return None

    def __call__(self, model, state, batch, *, key):
        x = batch
        for noise_key in jax.random.split(key, 3):
            x = x + 0.3 * jax.vmap(lambda x: ebm.score(model, x))(x) + 0.6**0.5 * jax.random.normal(noise_key, x.shape)
        return jnp.mean(jax.vmap(model)(batch)) - jnp.mean(jax.vmap(model)(x)), (None, {})


@pytest.mark.parametrize(
    ("objective", "factor"),
    [
        (ContrastiveDivergence(ebm.ULA(0.3), 3), -1.0),
        (ContrastiveDivergence(ebm.ULA(0.3), 3), 1 / 3),
        (Undetached(), 1.0),
    ],
    ids=["flipped", "scaled", "undetached"],
)
def test_broken_twins_fail_the_gradient(objective, factor, key):
    with pytest.raises(StatisticalError):
        check_gradient(objective, key, factor=factor)


@pytest.mark.parametrize(("num_steps", "ratio"), [(1, 0.18126924692201818), (5, 0.6321205588285577)])
def test_gradient_falls_short_of_likelihood_as_truth_d2_says(num_steps, ratio, key):
    """Exact Langevin dynamics of a total time k h on N(0, 1/P): 1 - exp(-2 h P k) of the likelihood's gradient."""
    time = jnp.asarray(0.1 / 0.7)  # h P = .1
    gradients = batch_gradients(ContrastiveDivergence(OrnsteinUhlenbeck(time), num_steps), jnp.asarray(0.7), key)
    likelihood = half_trace((1,), 1 / 0.7)
    assert_iid_mean_close(gradients, ratio * likelihood)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(gradients, likelihood)


def test_with_an_exact_kernel_it_is_maximum_likelihood(key):
    objective = ContrastiveDivergence(OrnsteinUhlenbeck(jnp.asarray(50.0)), 1)
    for a in [0.5, 1.0, 2.0]:
        assert_iid_mean_close(batch_gradients(objective, jnp.asarray(a), key), half_trace((1,), 1 / a))


@pytest.mark.parametrize("num_steps", [1, 5])
def test_fixed_point_with_ula_is_truth_d1_for_every_number_of_steps(num_steps, key):
    """(1 - sqrt(1 - 2h))/h, not 1."""
    objective = ContrastiveDivergence(ebm.ULA(0.3), num_steps)
    assert_iid_mean_close(batch_gradients(objective, jnp.asarray((1 - np.sqrt(0.4)) / 0.3), key), 0.0)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(batch_gradients(objective, jnp.asarray(1.0), key), 0.0)


def test_fixed_point_with_mala_is_the_truth(key):
    objective = ContrastiveDivergence(ebm.MALA(0.6), 2)
    assert_iid_mean_close(batch_gradients(objective, jnp.asarray(1.0), key, (3,)), 0.0)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(batch_gradients(objective, jnp.asarray(1.3), key, (3,)), 0.0)


def test_chains_start_at_the_data_and_keep_their_condition(key):
    """With a step that hardly moves the gap is 0, far from where the model is; E depends strongly on the condition."""
    energy = ebm.FunctionEnergy(lambda x, y: jnp.sum((x - y) ** 2), (2,), condition_shape=(2,))
    condition = 10 * jax.random.normal(key, (8, 2))
    objective = ContrastiveDivergence(ebm.ULA(1e-9), 3)
    loss, (_, metrics) = eqx.filter_jit(objective)(energy, None, (condition + 10, condition), key=key)
    assert abs(loss) < 0.05
    np.testing.assert_array_equal(metrics["energy_gap"], loss)


def wall(x):
    return jnp.where(x > 1, jnp.nan, x**2 / 2)


def test_metrics_count_what_went_wrong(key):
    """From the data at 1 half the proposals cross into NaN: rejected, counted by chain, acceptance below 1."""
    objective = ContrastiveDivergence(ebm.MALA(1e-4), 1)
    data = jnp.ones((4000,))
    loss, (_, metrics) = eqx.filter_jit(objective)(ebm.FunctionEnergy(wall, ()), None, data, key=key)
    assert np.isfinite(loss)
    rate = metrics["nonfinite_negatives"] / 4000
    assert_iid_mean_close(np.arange(4000) < float(metrics["nonfinite_negatives"]), 0.4972)  # drift h |x| / sqrt(2h)
    np.testing.assert_allclose(metrics["acceptance_rate"], 1 - rate, atol=0.01)


def test_another_step_size_compiles_nothing():
    counted = eqx.filter_jit(
        eqx.debug.assert_max_traces(lambda objective: 2 * objective.kernel.step_size, max_traces=1)
    )
    counted(ContrastiveDivergence(ebm.ULA(0.1)))
    counted(ContrastiveDivergence(ebm.ULA(0.2)))


def test_it_is_no_mean_over_rows():
    """Its gradient is that of no function: `standard_errors`, which takes means over rows, must refuse it."""
    assert not isinstance(ContrastiveDivergence(ebm.MALA()), AbstractMeanObjective)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ContrastiveDivergence("MALA"), "`kernel` must be a kernel such as"),
        (lambda: ContrastiveDivergence(ebm.MALA(), 0), "`num_steps` must be an integer >= 1; got 0"),
    ],
)
def test_settings_are_checked_by_name(make, match):
    with pytest.raises((ValueError, TypeError), match=match):
        make()
