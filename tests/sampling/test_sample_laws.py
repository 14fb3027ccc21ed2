"""The laws of what `sample` draws, against closed forms, each with broken twins that must fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ebm_ppl as ebm
from tests.broken_kernels import BrokenMALA
from tests.statistics import StatisticalError, assert_mean_close

NORMAL = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1))
PUBLISHED = {0.1: 0.9929, 0.5: 0.9209, 1.0: 0.7841}  # by simulation, four digits; the closed form is below
# exp(x) ~ Gamma(2): asymmetric, so that a sign error shows. Mean digamma(2), variance trigamma(2).
LOG_GAMMA = ebm.FunctionEnergy(lambda x: jnp.sum(jnp.exp(x) - 2.0 * x), (1,))
LOG_GAMMA_MEAN, LOG_GAMMA_VARIANCE = 0.42278433509846714, 0.6449340668482264


def fixed_step(energy, kernel, key, *, start=0.0, num_chains=100, num_samples=1000, burn_in=100):
    """Draws with the step size as given: no warm-up, the first `burn_in` draws thrown away."""
    starts = start + jax.random.normal(jax.random.fold_in(key, 1), (num_chains, *energy.event_shape))
    draws = ebm.sample(
        energy, kernel, key=key, initial_positions=starts, num_chains=num_chains, num_warmup=0,
        num_samples=burn_in + num_samples, progress_bar=False,
    )  # fmt: skip
    stats = {name: values[:, burn_in:] for name, values in draws.stats.items()}
    return dataclasses.replace(draws, positions=draws.positions[:, burn_in:], stats=stats)


@pytest.mark.parametrize("step_size", [0.1, 0.5, 1.0])
def test_mala_acceptance_and_variance(step_size, key):
    draws = fixed_step(NORMAL, ebm.MALA(step_size), key)
    assert_mean_close(draws.stats["acceptance_rate"], exact_acceptance(1, step_size), what="acceptance")
    assert_mean_close(draws.positions**2, [1.0], what="variance")
    assert abs(exact_acceptance(1, step_size) - PUBLISHED[step_size]) < 5e-4


def exact_acceptance(dim, h):
    """TRUTHS D7: 2 P(F_{d,d} > (q + h^2) / (q - h^2)), q = sqrt(h^4 + 8 h)."""
    q = np.sqrt(h**4 + 8 * h)
    return 2 * stats.f.sf((q + h**2) / (q - h**2), dim, dim)


@pytest.mark.parametrize("step_size", [0.1, 0.5, 1.0])
def test_ula_variance_is_that_of_its_biased_law(step_size, key):
    draws = fixed_step(NORMAL, ebm.ULA(step_size), key)
    assert_mean_close(draws.positions**2, [1 / (1 - step_size / 2)])
    with pytest.raises(StatisticalError):
        assert_mean_close(draws.positions**2, [1.0])


@pytest.mark.parametrize("fault", ["no_correction", "wrong_sign", "no_proposal_ratio", "half_noise"])
def test_broken_mala_fails_on_the_normal(fault, key):
    draws = fixed_step(NORMAL, BrokenMALA(0.5, fault), key)
    with pytest.raises(StatisticalError):
        assert_mean_close(draws.positions**2, [1.0])


def test_the_twin_without_a_fault_passes(key):
    assert_mean_close(fixed_step(NORMAL, BrokenMALA(0.5), key).positions ** 2, [1.0])


@pytest.mark.parametrize("kernel", [ebm.MALA(), ebm.HMC(), ebm.NUTS()], ids=lambda kernel: type(kernel).__name__)
def test_tuned_kernels_on_an_asymmetric_target(kernel, key):
    draws = ebm.sample(LOG_GAMMA, kernel, key=key, num_chains=20, num_warmup=500, num_samples=1000, progress_bar=False)
    assert_mean_close(draws.positions, [LOG_GAMMA_MEAN])
    assert_mean_close((draws.positions - LOG_GAMMA_MEAN) ** 2, [LOG_GAMMA_VARIANCE])
    assert draws.ok


@pytest.mark.parametrize("fault", ["no_correction", "wrong_sign"])
def test_broken_mala_fails_on_the_asymmetric_target(fault, key):
    draws = fixed_step(LOG_GAMMA, BrokenMALA(0.5, fault), key)
    with pytest.raises(StatisticalError):
        assert_mean_close(draws.positions, [LOG_GAMMA_MEAN])


def test_warm_up_reaches_the_target_acceptance_and_the_scales(key):
    scales = jnp.array([1.0, 10.0, 0.01])
    energy = ebm.energies.Gaussian(jnp.zeros(3), jnp.diag(scales**2))
    draws = ebm.sample(energy, key=key, num_chains=16, progress_bar=False)
    assert abs(draws.stats["acceptance_rate"].mean() - 0.574) < 0.05  # dual averaging's own precision at 50 steps
    assert np.all(np.abs(np.log(np.median(draws.scale, axis=0) / scales)) < np.log(1.5))
    assert_mean_close(draws.positions**2, scales**2)


def test_truncated_normal_with_a_nan_gradient_outside(key):
    """N(-2, 1) on x < 1: beyond the wall energy and gradient are NaN; proposals there are rejected and counted."""
    energy = ebm.FunctionEnergy(lambda x: jnp.sum((x + 2.0) ** 2) / 2 + jnp.where(jnp.sum(x) < 1, 0.0, jnp.nan), (1,))
    settings = {"num_chains": 50, "num_warmup": 0, "num_samples": 2000, "progress_bar": False}
    with pytest.warns(ebm.SamplingWarning, match="NONFINITE_PROPOSAL"):
        draws = ebm.sample(energy, ebm.MALA(1.0), key=key, initial_positions=jnp.full((50, 1), -2.0), **settings)
    truth = stats.truncnorm(-np.inf, 3, loc=-2)
    assert_mean_close(draws.positions[:, 100:], [truth.mean()])
    assert_mean_close((draws.positions[:, 100:] - truth.mean()) ** 2, [truth.var()])
    assert draws.stats["nonfinite_proposal"].sum() == sum(int(p.value) for p in draws.problems)
    assert (draws.positions < 1).all()
