"""Gaussian against SciPy, under transformations, and under misuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ebm_ppl as ebm
from ebm_ppl.energies import Gaussian
from tests.statistics import StatisticalError, assert_iid_mean_close

MEAN = np.array([1.0, -0.5, 0.25])
COVARIANCE = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, 0.3], [0.0, 0.3, 0.5]])


def test_log_normalizer_is_truth_a1():
    np.testing.assert_allclose(Gaussian(MEAN, COVARIANCE).log_normalizer, 2.5336720482998083, rtol=1e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(Gaussian(MEAN, COVARIANCE).log_normalizer, 2.5336720482998083, rtol=1e-14)


def test_density_is_scipys(key):
    with jax.enable_x64(True):
        energy = Gaussian(MEAN, COVARIANCE)
        x = np.asarray(jax.random.normal(key, (5, 3), jnp.float64))
        ours = -jax.vmap(energy)(jnp.asarray(x)) - energy.log_normalizer
        np.testing.assert_allclose(ours, stats.multivariate_normal(MEAN, COVARIANCE).logpdf(x), rtol=1e-12)
        np.testing.assert_allclose(
            jax.vmap(ebm.score, (None, 0))(energy, jnp.asarray(x)), -(x - MEAN) @ np.linalg.inv(COVARIANCE), rtol=1e-10
        )
        np.testing.assert_allclose(energy.covariance, COVARIANCE, rtol=1e-12, atol=1e-15)


def test_scalar_event():
    energy = Gaussian(1.0, 4.0)
    assert energy.event_shape == ()
    assert float(energy(jnp.asarray(3.0))) == 0.5
    assert float(energy.covariance) == 4
    np.testing.assert_allclose(energy.log_normalizer, 0.5 * np.log(8 * np.pi), rtol=1e-6)


def moments(x):
    return np.concatenate([x, (x[:, :, None] * x[:, None, :]).reshape(len(x), -1), x**3], axis=1)


def expected_moments(mean, covariance):
    third = mean**3 + 3 * mean * np.diag(covariance)
    return np.concatenate([mean, (covariance + np.outer(mean, mean)).ravel(), third])


def test_draws_have_the_moments(key):
    draws = Gaussian(MEAN, COVARIANCE).sample(key, (4000,))
    assert_iid_mean_close(moments(np.asarray(draws)), expected_moments(MEAN, COVARIANCE))
    with pytest.raises(StatisticalError):  # the covariance's factor, transposed by mistake
        assert_iid_mean_close(
            moments(MEAN + np.random.default_rng(0).normal(size=(4000, 3)) @ np.linalg.cholesky(COVARIANCE)),
            expected_moments(MEAN, COVARIANCE),
        )


def test_sample_shapes_and_keys(key):
    energy = Gaussian(MEAN, COVARIANCE)
    assert energy.sample(key).shape == (3,)
    assert energy.sample(key, (2, 4)).shape == (2, 4, 3)
    assert energy.sample(key, (0,)).shape == (0, 3)
    legacy = jax.random.PRNGKey(7)
    np.testing.assert_array_equal(energy.sample(legacy, (3,)), energy.sample(jax.random.wrap_key_data(legacy), (3,)))
    assert Gaussian(1.0, 4.0).sample(key, (5,)).shape == (5,)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (np.zeros((2, 2)), np.eye(2), r"`mean` must have shape \(d,\)"),
        (np.zeros(2), np.ones((2, 3)), "square"),
        (np.zeros(2), np.ones(2), "square"),
        (np.zeros(2), np.ones((2, 2)), "positive definite"),
        (np.zeros(2), -np.eye(2), "positive definite"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (np.zeros(2), np.eye(3), "match the mean"),
        (np.array([0.0, np.nan]), np.eye(2), "`mean` must be finite"),
        (np.zeros(2), np.array([[np.inf, 0], [0, 1]]), "`covariance` must be finite"),
        (0.0, -1.0, "`covariance` must be positive"),
        (0.0, np.eye(1), "0 axes"),
    ],
)
def test_construction_errors(mean, covariance, message):
    """PEERS case 3."""
    with pytest.raises(ValueError, match=message):
        Gaussian(mean, covariance)


def test_zero_at_the_mean_and_wrong_dimension():
    """PEERS case 3."""
    energy = Gaussian(MEAN, COVARIANCE)
    assert float(energy(jnp.asarray(MEAN, jnp.float32))) == 0
    with pytest.raises(ebm.EnergyShapeError, match=r"\(3,\); got \(2,\)"):
        energy(jnp.zeros(2))


def test_integer_parameters_become_floats():
    assert float(Gaussian([0, 0], [[1, 0], [0, 4]])(jnp.array([1.0, 2.0]))) == 1


def test_dtype_of_the_event_decides():
    with jax.enable_x64(True):
        for parameter, event in ((jnp.float32, jnp.float64), (jnp.float64, jnp.float32)):
            energy = Gaussian(jnp.zeros(2, parameter), jnp.eye(2, dtype=parameter))
            assert energy(jnp.ones(2, event)).dtype == event
            assert ebm.score(energy, jnp.ones(2, event)).dtype == event


def test_traced_parameters_pass_and_gradients_match_the_closed_form():
    """d log Z / dC = C⁻¹/2, and a stack of Gaussians is built by vmap."""
    gradient = jax.jit(jax.grad(lambda c: Gaussian(jnp.zeros(3), c).log_normalizer))(
        jnp.asarray(COVARIANCE, jnp.float32)
    )
    np.testing.assert_allclose(gradient, np.linalg.inv(COVARIANCE) / 2, rtol=1e-4, atol=1e-6)
    means, covariances = jnp.zeros((4, 2)), jnp.stack([jnp.eye(2) * (i + 1) for i in range(4)])
    stack = eqx.filter_vmap(Gaussian)(means, covariances)
    values = eqx.filter_vmap(lambda energy, x: energy(x), in_axes=(eqx.if_array(0), None))(stack, jnp.ones(2))
    np.testing.assert_allclose(values, 1 / np.arange(1, 5), rtol=1e-6)


def test_upper_triangle_of_the_whitening_is_inert():
    energy = Gaussian(MEAN, COVARIANCE)
    spoiled = eqx.tree_at(lambda e: e.whitening, energy, energy.whitening + jnp.triu(jnp.ones((3, 3)), 1))
    assert float(spoiled(jnp.ones(3))) == float(energy(jnp.ones(3)))
