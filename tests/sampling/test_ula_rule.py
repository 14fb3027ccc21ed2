"""The step size that keeps ULA's bias within a budget: exact on Gaussians, stated in the settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from tests.statistics import StatisticalError, assert_mean_close

ROTATION = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
CURVATURES = np.array([0.5, 2.0, 10.0])
COVARIANCE = (ROTATION / CURVATURES) @ ROTATION.T
ENERGY = ebm.energies.Gaussian(jnp.ones(3), jnp.asarray((COVARIANCE + COVARIANCE.T) / 2, jnp.float32))


@pytest.mark.parametrize("bias", [0.02, 0.2])
def test_the_rule_is_the_closed_form(bias, key):
    kernel = ebm.sampling.ula_within_bias(ENERGY, jnp.zeros((2, 3)), key=key, relative_bias=bias)
    assert float(kernel.largest_curvature) == pytest.approx(10.0, rel=1e-4)
    assert float(kernel.step_size) == pytest.approx(2 * bias / ((1 + bias) * 10.0), rel=1e-4)
    assert 1 / (1 - kernel.step_size * 10.0 / 2) == pytest.approx(1 + bias, rel=1e-4)  # TRUTHS: 1 / (1 - h p / 2)
    assert kernel.stated_bias["relative_variance"] == pytest.approx(bias, rel=1e-4)


def test_the_draws_have_the_stated_bias_and_no_more(key):
    bias = 0.2
    kernel = ebm.sampling.ula_within_bias(ENERGY, jnp.zeros((1, 3)), key=key, relative_bias=bias)
    starts = jax.random.normal(key, (200, 3))
    draws = ebm.sample(
        ENERGY, kernel, key=key, initial_positions=starts, num_chains=200, num_warmup=300, num_samples=1000,
        progress_bar=False,
    )  # fmt: skip
    along = (draws.positions - 1) @ ROTATION  # the principal axes
    ratios = along**2 * CURVATURES
    h = float(kernel.step_size)
    assert_mean_close(ratios, 1 / (1 - h * CURVATURES / 2))
    assert_mean_close(ratios[..., 2], 1 + bias)
    with pytest.raises(StatisticalError):
        assert_mean_close(ratios[..., 2], 1.0)
    assert draws.settings["stated_bias"]["relative_variance"] == pytest.approx(bias, rel=1e-3)
    assert draws.settings["adjusted"] is False


def test_the_largest_curvature_of_all_positions_counts(key):
    quartic = ebm.FunctionEnergy(lambda x: jnp.sum(x**4), (1,))  # curvature 12 x^2
    kernel = ebm.sampling.ula_within_bias(quartic, jnp.array([[0.1], [-2.0], [1.0]]), key=key)
    assert float(kernel.largest_curvature) == pytest.approx(48.0, rel=1e-5)
    saddle = ebm.FunctionEnergy(lambda x: x[0] ** 2 - 3 * x[1] ** 2, (2,))  # negative curvature is curvature
    assert float(ebm.sampling.ula_within_bias(saddle, jnp.ones((1, 2)), key=key).largest_curvature) == pytest.approx(
        6.0
    )


def test_nothing_is_stated_where_nothing_is_known(key):
    assert ebm.ULA(0.1).stated_bias is None
    assert ebm.MALA().stated_bias is None
    assert ebm.ULA(0.3, largest_curvature=10.0).stated_bias["relative_variance"] == float("inf")  # unstable: h > 2 / L
    draws = ebm.sample(ENERGY, ebm.ULA(0.01), key=key, num_warmup=0, num_samples=5, progress_bar=False)
    assert "stated_bias" not in draws.settings
    assert dataclasses.replace(draws).ok


def test_misuse_is_refused(key):
    for bias in (0.0, -0.1, np.nan, np.inf, "small"):
        with pytest.raises(ValueError, match="relative_bias"):
            ebm.sampling.ula_within_bias(ENERGY, jnp.zeros((1, 3)), key=key, relative_bias=bias)
    with pytest.raises(ebm.NonFiniteEnergyError, match="curvature"):
        ebm.sampling.ula_within_bias(ebm.FunctionEnergy(jnp.sum, (2,)), jnp.ones((1, 2)), key=key)
    with pytest.raises(ValueError, match="largest_curvature"):
        ebm.ULA(0.1, largest_curvature=-1.0)
