"""Denoising score matching against closed forms: value, minimiser, variance, slope, shapes, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.objectives import AbstractStatelessObjective, DenoisingScoreMatching
from tests.objectives.estimation import (
    COVARIANCE,
    DATA_VARIANCES,
    MEAN,
    evaluate,
    isotropic_energy,
    quadratic_energy,
    row_gradients,
    slope_at_zero,
    solve,
)
from tests.statistics import StatisticalError, assert_close, assert_iid_mean_close


class BrokenDenoising(AbstractStatelessObjective):
    """1/2 |s|^2 + factor * s.e/sigma + 1/2 |e/sigma|^2: right for factor 1, sign-flipped for -1, d-scaled for 1/d."""

    factor: float
    comparable = True

    def evaluate(self, model, batch, *, key):
        x, _ = self.split_batch(model, batch)
        noise = jax.random.normal(key, x.shape)
        score = jax.vmap(lambda x: ebm.score(model, x))(x + 0.5 * noise)
        terms = score**2 / 2 + self.factor * score * noise / 0.5 + (noise / 0.5) ** 2 / 2
        return jnp.sum(terms.reshape(len(x), -1), 1), {}


OBJECTIVE = DenoisingScoreMatching(0.5)
FLIPPED, SCALED = BrokenDenoising(-1.0), BrokenDenoising(1 / 3)


def check_value(objective, key):
    """TRUTHS B6: N(m3, C3) on N(0, diag(1, 2, .5)), noise .5."""
    data = jnp.sqrt(jnp.asarray(DATA_VARIANCES))[None] * jax.random.normal(key, (40_000, 3))
    losses, _ = evaluate(objective, ebm.energies.Gaussian(MEAN, COVARIANCE), data, jax.random.fold_in(key, 1))
    assert_iid_mean_close(losses, 10.99725341796875)


def check_minimiser(objective, key):
    """TRUTHS B6: the precision of the smoothed data, (.8, .4444, 1.3333) on the diagonal."""
    data = jnp.sqrt(jnp.asarray(DATA_VARIANCES))[None] * jax.random.normal(key, (40_000, 3))
    estimate, covariance = solve(objective, quadratic_energy(np.eye(3)), data, jax.random.fold_in(key, 1))
    expected = [0.8, 0, 0.4444444444444444, 0, 0, 1.3333333333333333]
    assert_close(estimate, expected, np.sqrt(np.diag(covariance)))


@pytest.mark.parametrize("check", [check_value, check_minimiser])
@pytest.mark.parametrize("antithetic", [False, True])
def test_truth_b6(check, antithetic, key):
    check(DenoisingScoreMatching(0.5, antithetic=antithetic), key)


@pytest.mark.parametrize("check", [check_value, check_minimiser])
@pytest.mark.parametrize("broken", [FLIPPED, SCALED], ids=["flipped", "scaled"])
def test_broken_twins_fail_truth_b6(check, broken, key):
    with pytest.raises(StatisticalError):
        check(broken, key)


def test_the_twins_are_right_where_they_are_not_broken(key):
    check_value(BrokenDenoising(1.0), key)
    check_minimiser(BrokenDenoising(1.0), key)


def check_isotropic_minimiser(objective, key, *, scale=0.5):
    data = jax.random.normal(key, (20_000, 1))
    estimate, covariance = solve(objective, isotropic_energy(0.1), data, jax.random.fold_in(key, 1))
    assert_close(estimate, [1 / (1 + scale**2)], np.sqrt(np.diag(covariance)))


@pytest.mark.parametrize(("scale", "antithetic"), [(0.5, False), (0.5, True), (1.0, False), (0.1, True)])
def test_minimiser_on_a_standard_normal_is_the_smoothed_precision(scale, antithetic, key):
    """.8 for noise .5."""
    check_isotropic_minimiser(DenoisingScoreMatching(scale, antithetic=antithetic), key, scale=scale)


@pytest.mark.parametrize("broken", [FLIPPED, SCALED], ids=["flipped", "scaled"])
def test_broken_twins_fail_the_minimiser(broken, key):
    with pytest.raises(StatisticalError):
        check_isotropic_minimiser(broken, key)


@pytest.mark.parametrize(
    ("scale", "antithetic", "variance"),
    [(0.1, False, 98.02960494), (0.5, False, 2.56), (1.0, False, 0.25), (0.1, True, 3.84392138), (0.5, True, 1.6384)],
)
def test_variance_of_the_minimiser_is_truth_b11(scale, antithetic, variance, key):
    """n Var(a) = 1/(s^2 (1+s^2)^2), antithetic 4/(1+s^2)^4: the squared influence of one row."""
    data = jax.random.normal(key, (100_000, 1))
    objective = DenoisingScoreMatching(scale, antithetic=antithetic)
    precision = 1 / (1 + scale**2)
    influence = (
        precision * row_gradients(objective, isotropic_energy(precision), data, jax.random.fold_in(key, 1))[:, 0]
    )
    assert_iid_mean_close(influence**2, variance)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(influence**2, 1.2 * variance)


@pytest.mark.parametrize("shape", [(2,), (10,), (3, 8, 8)])
@pytest.mark.parametrize("antithetic", [False, True])
def test_slope_at_zero_energy_is_minus_the_dimension(shape, antithetic, key):
    """The sign that torchebm had wrong from 0.4.0 to 0.8.8."""
    data = jax.random.normal(key, (2000, *shape))
    objective = DenoisingScoreMatching(0.5, antithetic=antithetic)
    assert_iid_mean_close(slope_at_zero(objective, shape, data, jax.random.fold_in(key, 1)), -np.prod(shape))


@pytest.mark.parametrize("broken", [FLIPPED, SCALED], ids=["flipped", "scaled"])
def test_broken_twins_fail_the_slope(broken, key):
    data = jax.random.normal(key, (2000, 10))
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(slope_at_zero(broken, (10,), data, jax.random.fold_in(key, 1)), -10)


@pytest.mark.parametrize("shape", [(), (192,), (3, 8, 8)])
def test_loss_does_not_depend_on_how_the_event_is_arranged(shape, key):
    data = jax.random.normal(key, (7, int(np.prod(shape)) if shape else 1))
    energy, flat = isotropic_energy(0.7, shape), isotropic_energy(0.7, data.shape[1:])
    arranged = OBJECTIVE.loss(energy, data.reshape(7, *shape), key=key)
    assert arranged.shape == ()
    np.testing.assert_allclose(arranged, OBJECTIVE.loss(flat, data, key=key), rtol=1e-6)


def check_splits(reduce, key):
    """A loss on 200 rows, against 80 and 120 rows weighted: equal in expectation, over 400 draws of the noise."""
    data = jax.random.normal(key, (200, 2)) * jnp.linspace(0.1, 3, 200)[:, None]
    energy = isotropic_energy(0.7, (2,))

    def difference(key):
        whole, first, second = (
            reduce(evaluate(OBJECTIVE, energy, rows, jax.random.fold_in(key, i))[0])
            for i, rows in enumerate([data, data[:80], data[80:]])
        )
        return whole - (80 * first + 120 * second) / 200

    assert_iid_mean_close(jax.jit(jax.vmap(difference))(jax.random.split(key, 400)), 0)


def test_200_rows_are_80_and_120_rows_weighted(key):
    check_splits(jnp.mean, key)
    with pytest.raises(StatisticalError):
        check_splits(jnp.sum, key)


@pytest.mark.parametrize("batch_size", [1, 16, 256])
def test_optimum_does_not_depend_on_the_batch_size(batch_size, key):
    """The expected gradient vanishes at the precision .8 whatever the batch; elsewhere it does not."""

    def gradients(a):
        def gradient(key):
            data_key, noise_key = jax.random.split(key)
            data = jax.random.normal(data_key, (batch_size, 1))
            return jax.grad(lambda a: OBJECTIVE.loss(isotropic_energy(a), data, key=noise_key))(a)

        return jax.jit(jax.vmap(gradient))(jax.random.split(key, 20_000 // batch_size + 200))

    assert_iid_mean_close(gradients(jnp.asarray(0.8)), 0)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(gradients(jnp.asarray(1.6)), 0)


def test_conditional_energy_gets_the_condition_of_its_own_row(key):
    """Data N(y, 1), E = (x - b y)^2 / (2 * 1.25): the slope b is 1."""
    energy = ebm.FunctionEnergy(_conditional, (), 0.3, condition_shape=())
    condition = jax.random.normal(key, (20_000,))
    data = condition + jax.random.normal(jax.random.fold_in(key, 1), (20_000,))
    estimate, covariance = solve(OBJECTIVE, energy, (data, condition), jax.random.fold_in(key, 2))
    assert_close(estimate, [1.0], np.sqrt(np.diag(covariance)))
    estimate, covariance = solve(OBJECTIVE, energy, (data, condition[::-1]), jax.random.fold_in(key, 2))
    with pytest.raises(StatisticalError):
        assert_close(estimate, [1.0], np.sqrt(np.diag(covariance)))


def _conditional(slope, x, condition):
    return (x - slope * condition) ** 2 / 2.5


def test_float64_stays_float64():
    with jax.enable_x64(True):
        data = jnp.ones((4, 2), jnp.float64)
        loss = OBJECTIVE.loss(isotropic_energy(jnp.asarray(0.7, jnp.float64), (2,)), data, key=jax.random.key(0))
        assert loss.dtype == jnp.float64


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, None, "wide", [0.1, 0.2]])
def test_noise_scale_is_checked_by_name(value):
    with pytest.raises(ValueError, match="`noise_scale` must be"):
        DenoisingScoreMatching(value)
