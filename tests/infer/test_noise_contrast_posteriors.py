"""Noise contrasts in the place of a likelihood: which of them are likelihoods, and at what temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density
from scipy import linalg, special

import ebm_ppl as ebm
from ebm_ppl.objectives import ConditionalNoiseContrastive, NoiseContrastive, RankingNoiseContrastive
from tests.infer.models import half_square
from tests.statistics import StatisticalError, assert_close


def contrast(y, noise_ratio=1, temperature=1.0):
    precision = numpyro.sample("precision", dist.Gamma(2.0, 1.0))
    log_z = numpyro.sample("log_normalizer", dist.ImproperUniform(dist.constraints.real, (), ()))
    energy = ebm.ShiftedEnergy(ebm.FunctionEnergy(half_square, (), precision), log_z)
    objective = NoiseContrastive(dist.Normal(0.0, 2.0), noise_ratio)
    ebm.objective_factor("y", energy, y, objective, key=jax.random.key(5), temperature=temperature)


def contrast_information(noise_ratio):
    """H of binary NCE for N(0, 1) in (log precision, log Z), by quadrature; J = H - (1 + 1/noise_ratio) m m'."""
    x, step = np.linspace(-12, 12, 4001, retstep=True)
    data, noise = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), np.exp(-(x**2) / 8) / np.sqrt(8 * np.pi)
    gradients = np.stack([x**2 / 2, np.ones_like(x)])
    weight = step * data * noise_ratio * noise / (data + noise_ratio * noise)
    hessian = (gradients * weight) @ gradients.T
    mean = gradients @ weight
    return hessian, hessian - (1 + 1 / noise_ratio) * np.outer(mean, mean)


def test_noise_contrast_is_calibrated_as_it_is_for_all_but_log_z():
    """Prentice and Pyke (1979), doi:10.1093/biomet/66.3.403: retrospective sampling costs the intercept alone."""
    hessian, covariance = contrast_information(1)
    values = linalg.eigh(covariance, hessian)[0]
    np.testing.assert_allclose(values, [1 - 2 * hessian[1, 1], 1], rtol=1e-6)
    y = jax.random.normal(jax.random.key(8), (4000,))
    settings = {"key": jax.random.key(0), "model_args": (y,)}
    with pytest.warns(ebm.SamplingWarning, match="UNEVEN_TEMPERATURES"):
        both = ebm.calibrate_temperature(contrast, **settings)
    nuisance = ebm.calibrate_temperature(contrast, sites=["precision"], **settings)
    error = resampled_error(y, nuisance.minimizer)
    assert_close([both.temperature, nuisance.temperature], [values.mean(), 1.0], error)
    with pytest.raises(StatisticalError):
        assert_close(both.temperature, 1.0, error[0])
    sandwich = np.linalg.inv(hessian) @ covariance @ np.linalg.inv(hessian)
    np.testing.assert_allclose(nuisance.standard_errors["precision"], np.sqrt(sandwich[0, 0] / 4000), rtol=0.1)


def resampled_error(y, minimizer):
    """Standard errors of the two temperatures over bootstrap samples of rows, each with its noise."""

    def row_losses(z):
        model = ebm.ShiftedEnergy(ebm.FunctionEnergy(half_square, (), jnp.exp(z[0])), z[1])
        return NoiseContrastive(dist.Normal(0.0, 2.0)).evaluate(model, y, key=jax.random.key(5))[0]

    z = jnp.array([jnp.log(minimizer["precision"]), minimizer["log_normalizer"]])
    temperatures = []
    for inverse, covariance in resampled(row_losses, z):
        sandwich = inverse @ covariance @ inverse
        temperatures.append([np.trace(inverse @ covariance) / 2, sandwich[0, 0] / inverse[0, 0]])
    return np.std(temperatures, axis=0)


def resampled(row_losses, z):
    """H^-1 and J of bootstrap samples of rows."""
    derivatives = jax.jit(lambda z: (jax.jacfwd(row_losses)(z), jax.jacfwd(jax.jacfwd(row_losses))(z)))
    gradients, hessians = (np.asarray(rows) for rows in derivatives(z))
    generator = np.random.default_rng(0)
    for _ in range(100):
        rows = generator.integers(0, len(gradients), len(gradients))
        yield np.linalg.inv(hessians[rows].mean(0)), np.cov(gradients[rows].T, ddof=0).reshape(z.size, z.size)


@pytest.mark.parametrize(
    ("objective", "temperature"),
    [(RankingNoiseContrastive(dist.Normal(0.0, 2.0), 3), 1.0), (ConditionalNoiseContrastive(1.0), 2.0)],
)
def test_contrasts_that_are_conditional_likelihoods(objective, temperature):
    """Which of K + 1 events is the datum: a likelihood, given the unordered events; `Conditional...` has it twice."""
    y = jax.random.normal(jax.random.key(9), (4000,))

    def model(y):
        precision = numpyro.sample("precision", dist.Gamma(2.0, 1.0))
        energy = ebm.FunctionEnergy(half_square, (), precision)
        ebm.objective_factor("y", energy, y, objective, key=jax.random.key(5))

    def row_losses(z):
        return objective.evaluate(ebm.FunctionEnergy(half_square, (), jnp.exp(z[0])), y, key=jax.random.key(5))[0]

    found = ebm.calibrate_temperature(model, key=jax.random.key(0), model_args=(y,))
    z = jnp.log(jnp.asarray(found.minimizer["precision"]))[None]
    error = np.std([(inverse @ covariance).item() for inverse, covariance in resampled(row_losses, z)])
    assert_close(found.temperature, temperature, error)
    with pytest.raises(StatisticalError):
        assert_close(found.temperature, 3 - temperature, error)


def test_noise_contrast_with_much_noise_is_the_ordinary_posterior():
    """Gamma(7, 7.25), log Z integrated out; the noise adds the share 1/noise_ratio to the variance."""
    y = jnp.sqrt(1.25) * jnp.array([1.0, -1.0] * 5)
    precision, log_z = np.linspace(0.05, 3.5, 70), np.linspace(-1.5, 3.5, 81)

    def moments(noise_ratio):
        def log_joint(precision, log_z):
            return log_density(contrast, (y, noise_ratio), {}, {"precision": precision, "log_normalizer": log_z})[0]

        grid = jnp.asarray(log_z, jnp.float32)
        rows = jax.jit(lambda w: jax.lax.map(lambda w: jax.vmap(lambda c: log_joint(w, c))(grid), w))
        table = np.asarray(rows(jnp.asarray(precision, jnp.float32)), float)
        log_p = special.logsumexp(table, axis=1)
        weight = np.exp(log_p - special.logsumexp(log_p))
        mean = (weight * precision).sum()
        return np.array([mean, np.sqrt((weight * (precision - mean) ** 2).sum())])

    mean, sd = 7 / 7.25, np.sqrt(7) / 7.25
    error = sd * np.sqrt(1 / 1000)
    assert_close(moments(1000), [mean, sd], error)
    with pytest.raises(StatisticalError):
        assert_close(moments(1), [mean, sd], error)
