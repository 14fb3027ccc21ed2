"""Kernels on minibatches against their biased stationary laws in closed form: Ornstein-Uhlenbeck in discrete time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from tests.statistics import StatisticalError, assert_mean_close

DATA = np.random.default_rng(0).gamma(2.0, size=(20, 2)).astype(np.float32)  # skewed, so that a sign error shows
PRIOR = ebm.energies.Gaussian(jnp.zeros(2), 4 * jnp.eye(2))
PRECISION = 20.25  # of the posterior: 1/4 + one per datum
MEAN = DATA.sum(0) / PRECISION


def half_square(x, y):
    return jnp.sum((x - y) ** 2) / 2


TERM = ebm.FunctionEnergy(half_square, (2,), condition_shape=(2,))
POSTERIOR = ebm.energies.DataSumEnergy(PRIOR, TERM, DATA)


def gradient_variance(batch_size):
    """n^2 / b times the variance of one datum's gradient over the data."""
    return len(DATA) ** 2 / batch_size * DATA.var(0)


def langevin_variance(step_size, noise):
    """(1 / p) (1 + h V / 2) / (1 - h p / 2)."""
    return (1 + step_size * noise / 2) / (1 - step_size * PRECISION / 2) / PRECISION


def hamiltonian_variance(kernel, noise):
    """Of x' = a x + (momentum, one gradient noise for all steps, fresh noise): the sum of their shares / (1 - a^2)."""
    h, friction = kernel.step_size, float(kernel.friction)
    move = np.array([[1.0, h], [-h * PRECISION, 1 - friction * h]])
    powers = [np.linalg.matrix_power(move, j) for j in range(kernel.num_integration_steps + 1)]
    kicks = np.array([power[0, 1] for power in powers[:-1]])  # of a unit change of v, j steps before the end
    share = powers[-1][0, 1] ** 2 + (h * kicks.sum()) ** 2 * noise + 2 * friction * h * np.sum(kicks**2)
    return share / (1 - powers[-1][0, 0] ** 2)


def draw(kernel, key, energy=POSTERIOR):
    return ebm.sample(energy, kernel, key=key, num_chains=100, num_warmup=200, num_samples=1000, progress_bar=False)


def test_sgld_has_the_variance_of_its_biased_law(key):
    kernel = ebm.kernels.SGLD(0.015, batch_size=4)
    draws = draw(kernel, key)
    assert draws.ok
    assert draws.settings["adjusted"] is False
    expected = langevin_variance(0.015, gradient_variance(4))
    assert_mean_close(draws.positions, MEAN)
    assert_mean_close((draws.positions - MEAN) ** 2, expected)
    for wrong in (1 / PRECISION, langevin_variance(0.015, 0.0), langevin_variance(0.015, gradient_variance(8))):
        with pytest.raises(StatisticalError):  # no bias; no noise of the gradient; that of twice the batch
            assert_mean_close((draws.positions - MEAN) ** 2, np.broadcast_to(wrong, 2))
    unweighted = eqx.tree_at(lambda energy: energy.weight, POSTERIOR, jnp.asarray(4 / 20))
    with pytest.raises(StatisticalError):  # the factor n / b forgotten
        assert_mean_close(draw(kernel, key, unweighted).positions, MEAN)


def test_sgld_without_gradient_noise_is_ula(key):
    same = ebm.energies.DataSumEnergy(PRIOR, TERM, np.broadcast_to(DATA[:1], DATA.shape))
    draws = draw(ebm.kernels.SGLD(0.04, batch_size=1), key, same)
    mean = len(DATA) * DATA[0] / PRECISION
    assert_mean_close((draws.positions - mean) ** 2, np.full(2, 1 / (PRECISION * (1 - 0.04 * PRECISION / 2))))


def test_sghmc_has_the_variance_of_its_biased_law(key):
    kernel = ebm.kernels.SGHMC(0.04, friction=5.0, num_integration_steps=5, batch_size=4)
    draws = draw(kernel, key)
    expected = hamiltonian_variance(kernel, gradient_variance(4))
    assert draws.ok
    assert (draws.stats["n_steps"] == 5).all()
    assert_mean_close(draws.positions, MEAN)
    assert_mean_close((draws.positions - MEAN) ** 2, expected)
    for wrong in (np.full(2, 1 / PRECISION), hamiltonian_variance(kernel, np.zeros(2))):
        with pytest.raises(StatisticalError):
            assert_mean_close((draws.positions - MEAN) ** 2, wrong)


def test_the_closed_forms_tend_to_the_posterior():
    small = ebm.kernels.SGHMC(1e-4, friction=5.0, num_integration_steps=1000)
    assert hamiltonian_variance(small, 0.0) == pytest.approx(1 / PRECISION, rel=1e-2)
    assert langevin_variance(1e-6, gradient_variance(4)) == pytest.approx(np.full(2, 1 / PRECISION), rel=1e-3)


def test_minibatches_are_unbiased(key):
    x = jnp.array([0.3, 2.0])
    batches = jax.vmap(lambda k: jax.value_and_grad(POSTERIOR.minibatch(k, 3))(x))(jax.random.split(key, 4000))
    value, gradient = jax.value_and_grad(POSTERIOR)(x)
    for found, expected in ((batches[0], value), (batches[1], gradient)):
        error = np.asarray(found).std(0, ddof=1) / np.sqrt(4000)
        assert np.all(np.abs(np.asarray(found).mean(0) - np.asarray(expected)) < 5 * error)
    np.testing.assert_allclose(np.asarray(batches[1]).var(0), gradient_variance(3), rtol=0.15)


@pytest.mark.parametrize("kernel", [ebm.kernels.SGLD(), ebm.kernels.SGHMC()], ids=lambda kernel: type(kernel).__name__)
def test_other_energies_are_refused_by_name(kernel, key):
    with pytest.raises(TypeError, match=r"DataSumEnergy.*Gaussian"):
        draw(kernel, key, PRIOR)
    with pytest.raises(TypeError, match="DataSumEnergy"):
        kernel.build(lambda x: -jnp.sum(x**2)).init(jnp.zeros(2), key)


def test_bad_settings_are_refused():
    for settings in ({"step_size": 0.0}, {"batch_size": 0}, {"batch_size": -3}):
        for kernel in (ebm.kernels.SGLD, ebm.kernels.SGHMC):
            with pytest.raises(ValueError, match=next(iter(settings))):
                kernel(**settings)
    with pytest.raises(ValueError, match="friction"):
        ebm.kernels.SGHMC(friction=-1.0)
    with pytest.raises(ebm.EnergyShapeError, match="conditional"):
        ebm.energies.DataSumEnergy(PRIOR, PRIOR, DATA)
    with pytest.raises(ebm.EnergyShapeError, match="`prior` must be unconditional"):
        ebm.energies.DataSumEnergy(TERM, TERM, DATA)
    with pytest.raises(ebm.EnergyShapeError, match="`data`"):
        ebm.energies.DataSumEnergy(PRIOR, TERM, DATA[:, :1])
    with pytest.raises(ebm.InvalidDataError, match="non-finite"):
        ebm.energies.DataSumEnergy(PRIOR, TERM, np.where(DATA > 3, np.nan, DATA))
    with pytest.raises(ebm.InvalidDataError, match="empty"):
        ebm.energies.DataSumEnergy(PRIOR, TERM, DATA[:0])


def test_an_explosion_is_stopped_and_named(key):
    with pytest.warns(ebm.SamplingWarning, match="DIVERGED"):
        draws = ebm.sample(
            POSTERIOR, ebm.kernels.SGLD(10.0), key=key, num_warmup=0, num_samples=300, progress_bar=False
        )
    assert np.isfinite(draws.positions).all()
    assert not draws.ok
