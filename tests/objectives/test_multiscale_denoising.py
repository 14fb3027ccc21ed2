"""Multiscale denoising against closed forms: value, minimiser, the scales drawn, what the energy is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.errors import EnergyShapeError
from ebm_ppl.objectives import DenoisingScoreMatching, MultiscaleDenoisingScoreMatching, noise_condition
from tests.objectives.estimation import evaluate, solve
from tests.statistics import StatisticalError, assert_close, assert_iid_mean_close

SCALES = jnp.asarray([2.0, 0.5, 0.1])


def smoothed(variance, x, condition):
    """The smoothed energy of N(0, variance): exact for variance 1 on standard normal data."""
    return jnp.sum(x**2) / (variance + jnp.exp(2 * condition)) / 2


def per_scale(precisions, x, condition):
    """One precision for each of SCALES."""
    return precisions[jnp.argmin(jnp.abs(jnp.log(SCALES) - condition))] * jnp.sum(x**2) / 2


def misinformed(variance, x, condition):
    """Takes the condition for the scale itself, not for its logarithm."""
    return jnp.sum(x**2) / (variance + condition**2) / 2


def shifted(slope, x, condition):
    """The smoothed energy of N(y, 1), condition [log s, y]."""
    return (x - slope * condition[1]) ** 2 / (1 + jnp.exp(2 * condition[0])) / 2


def noise_conditioned(fn, params, event_shape=(1,), condition_shape=()):
    return ebm.FunctionEnergy(fn, event_shape, params, condition_shape=condition_shape)


def check_value(fn, objective, expected, key):
    """At the truth the loss is E_s 1/2 d/(1 + s^2)."""
    data = jax.random.normal(key, (60_000, 2))
    losses, _ = evaluate(objective, noise_conditioned(fn, 1.0, (2,)), data, jax.random.fold_in(key, 1))
    assert_iid_mean_close(losses, expected)


@pytest.mark.parametrize("antithetic", [False, True])
def test_value_at_the_truth(antithetic, key):
    objective = MultiscaleDenoisingScoreMatching(SCALES, antithetic=antithetic)
    check_value(smoothed, objective, np.mean(1 / (1 + np.asarray(SCALES) ** 2)), key)


def test_value_at_the_truth_over_a_continuous_range(key):
    """E over log s uniform on [log .5, log 2] of 1/(1 + s^2) is 1/2, by the symmetry s -> 1/s."""
    check_value(smoothed, MultiscaleDenoisingScoreMatching([0.5, 1.0, 2.0], continuous=True), 0.5, key)


def test_the_condition_is_the_logarithm_of_the_scale(key):
    expected = np.mean(1 / (1 + np.asarray(SCALES) ** 2))
    with pytest.raises(StatisticalError):
        check_value(misinformed, MultiscaleDenoisingScoreMatching(SCALES), expected, key)


def check_minimiser(objective, key):
    data = jax.random.normal(key, (30_000, 1))
    energy = noise_conditioned(per_scale, jnp.ones(3))
    estimate, covariance = solve(objective, energy, data, jax.random.fold_in(key, 1))
    assert_close(estimate, 1 / (1 + np.asarray(SCALES) ** 2), np.sqrt(np.diag(covariance)))


@pytest.mark.parametrize("antithetic", [False, True])
def test_minimiser_at_every_scale(antithetic, key):
    check_minimiser(MultiscaleDenoisingScoreMatching(SCALES, antithetic=antithetic), key)


def test_minimiser_fails_when_the_energy_is_told_other_scales(key):
    with pytest.raises(StatisticalError):
        check_minimiser(MultiscaleDenoisingScoreMatching(SCALES * 1.2), key)


def test_every_scale_is_weighted_by_its_square(key):
    """With equal seeds the row at scale s is s^2 times the single-scale loss, in expectation."""
    scales = jnp.asarray([0.7, 0.7 * (1 + 1e-6)])
    data = jax.random.normal(key, (20_000, 1))
    keys = jax.random.split(jax.random.fold_in(key, 1))
    multiscale, energy = MultiscaleDenoisingScoreMatching(scales), noise_conditioned(smoothed, 1.0)
    losses, _ = evaluate(multiscale, energy, data, keys[0])
    smooth = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1) * 1.49)
    single, _ = evaluate(DenoisingScoreMatching(0.7), smooth, data, keys[1])
    assert_iid_mean_close(losses - 0.49 * single, 0)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(losses - 0.7 * single, 0)


def test_users_condition_follows_the_scale(key):
    """Data N(y, 1): the slope of the mean in y is 1."""
    condition = jax.random.normal(key, (20_000, 1))
    data = condition[:, 0] + jax.random.normal(jax.random.fold_in(key, 1), (20_000,))
    energy = noise_conditioned(shifted, 0.2, (), (2,))
    objective = MultiscaleDenoisingScoreMatching(SCALES)
    estimate, covariance = solve(objective, energy, (data, condition), jax.random.fold_in(key, 2))
    assert_close(estimate, [1.0], np.sqrt(np.diag(covariance)))


def test_scales_of_a_batch_are_stratified(key):
    objective = MultiscaleDenoisingScoreMatching(SCALES)
    scales = np.asarray(jax.vmap(lambda key: objective.draw_scales(10, key=key))(jax.random.split(key, 3000)))
    counts = (scales[:, :, None] == np.asarray(SCALES)).sum(1)
    assert set(np.unique(counts)) <= {3, 4}
    assert_iid_mean_close(scales[:, :, None] == np.asarray(SCALES), 1 / 3)


def test_continuous_scales_are_log_uniform(key):
    objective = MultiscaleDenoisingScoreMatching([0.1, 1.0, 10.0], continuous=True)
    scales = np.asarray(jax.vmap(lambda key: objective.draw_scales(5, key=key))(jax.random.split(key, 3000)))
    assert scales.min() >= 0.1 - 1e-6
    assert scales.max() <= 10 + 1e-4
    logs = np.log10(scales)
    assert_iid_mean_close(logs, 0)
    assert_iid_mean_close(logs**2, 1 / 3)


def test_noise_condition():
    assert noise_condition(np.e).shape == ()
    np.testing.assert_allclose(noise_condition(jnp.asarray(2.0), jnp.asarray([5.0, 6.0])), [np.log(2), 5, 6], rtol=1e-6)


@pytest.mark.parametrize("shape", [None, (1,), (2, 3)])
def test_energies_without_room_for_the_scale_are_refused(shape):
    energy = ebm.MLPEnergy((2,), width=4, depth=1, condition_shape=shape, key=jax.random.key(0))
    with pytest.raises(EnergyShapeError, match="`condition_shape` must be"):
        MultiscaleDenoisingScoreMatching(SCALES).loss(energy, jnp.ones((4, 2)), key=jax.random.key(0))


@pytest.mark.parametrize("value", [0.5, [0.5], [0.5, -1.0], [0.5, np.nan], [1.0, 1.0], [1.0, 3.0, 2.0], None])
def test_noise_scales_are_checked_by_name(value):
    with pytest.raises(ValueError, match="`noise_scales` must be"):
        MultiscaleDenoisingScoreMatching(value)
