"""`examples/05_transfer_prior.py`: the wines, the methods that are compared, and a short run."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy.stats import multivariate_normal

import ebm_ppl as ebm
from tests.example_files import is_png, load, run_short
from tests.statistics import StatisticalError, assert_iid_mean_close

wines = load("05_transfer_prior")
COVARIANCE = np.array([[1.0, 0.3, -0.5], [0.3, 0.8, 0.1], [-0.5, 0.1, 1.2]])


@pytest.fixture(autouse=True)
def as_a_user_runs_it():
    """Examples broadcast, as NumPy does; the package's own tests forbid it."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_the_short_run_compares_says_its_verdict_and_leaves_figure_and_draws(tmp_path):
    output = run_short("05_transfer_prior", tmp_path / "results")
    for text in (*wines.METHODS, "nats per wine", "verdict, 10 known: ", "0 of 2 posteriors ok"):
        assert text in output
    assert is_png(tmp_path / "results" / "transfer_prior.png")
    tree = ebm.diagnostics.load_datatree(tmp_path / "results" / "transfer_prior.nc")
    assert tree["posterior"]["shift"].shape == (4, wines.SHORT.num_samples, 3)


def test_the_data_are_complete_and_in_units_of_the_whites():
    whites, reds = wines.load_wines()
    assert whites.shape == (3961, 3)
    assert reds.shape == (1359, 3)
    np.testing.assert_allclose(whites.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(whites.std(0), 1, atol=1e-4)


def test_the_model_of_a_gaussian_shape_is_a_gaussian():
    """Moved, scaled, with the Jacobian; masked rows do not count."""
    energy = ebm.energies.Gaussian(jnp.zeros(3), jnp.asarray(COVARIANCE, jnp.float32))
    shift, log_scale = np.array([1.0, -2.0, 0.5]), np.array([0.3, -0.4, 0.1])
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    samples = {"shift": jnp.asarray(shift[None], jnp.float32), "log_scale": jnp.asarray(log_scale[None], jnp.float32)}
    known = jnp.array([True, True, False, True])
    args = (energy, energy.log_normalizer, jnp.asarray(x), known)
    found = numpyro.infer.log_likelihood(wines.shifted_and_scaled, samples, *args)["x"][0]
    scale = np.diag(np.exp(log_scale))
    expected = multivariate_normal(shift, scale @ COVARIANCE @ scale).logpdf(x)
    np.testing.assert_allclose(found, np.where(known, expected, 0), rtol=1e-4, atol=1e-4)


def test_the_gaussian_of_the_few_alone_is_coherent():
    """A Bayesian predictive law gives two further wines the same joint density in either order; a plug-in does not."""
    few, (first, second) = np.split(np.random.default_rng(1).normal(size=(8, 3)) @ COVARIANCE + 1, [6])

    def joint(predict, a, b):
        return predict(few, a) + predict(np.vstack([few, a]), b)

    def plug_in(few, x):
        return multivariate_normal(few.mean(0), np.cov(few.T)).logpdf(x)

    def gap(predict):
        return joint(predict, first, second) - joint(predict, second, first)

    assert gap(wines.gaussian_alone) == pytest.approx(0, abs=1e-10)
    assert abs(gap(plug_in)) > 0.01


def test_draws_for_the_figure_have_the_moments_of_the_energy():
    energy = ebm.energies.Gaussian(jnp.array([0.5, 0.0, -0.5]), jnp.asarray(COVARIANCE, jnp.float32))
    x = wines.draw_from(energy, 20_000)
    assert_iid_mean_close(x[:, 0], 0.5)
    assert_iid_mean_close((x[:, 0] - 0.5) * (x[:, 2] + 0.5), -0.5)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close((x[:, 0] - 0.5) * (x[:, 2] + 0.5), -0.4)
