"""Random-walk Metropolis: its acceptance in closed form, and life without a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ebm_ppl as ebm
from tests.statistics import StatisticalError, assert_mean_close


def exact_acceptance(dim, s):
    """TRUTHS D8: 2 P(F_{d,d} > (q + s^2) / (q - s^2)), q = sqrt(s^4 + 4 s^2); for d = 1 it is (2 / pi) atan(2 / s)."""
    q = np.sqrt(s**4 + 4 * s**2)
    return 2 * stats.f.sf((q + s**2) / (q - s**2), dim, dim)


def draw(dim, step_size, key):
    energy = ebm.energies.Gaussian(jnp.zeros(dim), jnp.eye(dim))
    starts = jax.random.normal(jax.random.fold_in(key, 1), (100, dim))  # in equilibrium already
    return ebm.sample(
        energy, ebm.RandomWalk(step_size), key=key, initial_positions=starts, num_chains=100, num_warmup=0,
        num_samples=1000, progress_bar=False,
    )  # fmt: skip


@pytest.mark.parametrize(("dim", "step_size"), [(1, 2.4), (10, 2.38 / np.sqrt(10))])
def test_acceptance_and_variance(dim, step_size, key):
    draws = draw(dim, step_size, key)
    assert_mean_close(draws.stats["acceptance_rate"], exact_acceptance(dim, step_size))
    assert_mean_close(draws.positions**2, np.ones(dim))
    with pytest.raises(StatisticalError):  # the gradient's share of MALA's proposal is absent
        assert_mean_close(draws.stats["acceptance_rate"], exact_acceptance(dim, 1.1 * step_size))


def test_the_closed_form():
    assert exact_acceptance(1, 2.4) == pytest.approx(2 / np.pi * np.arctan(2 / 2.4), rel=1e-12)
    assert exact_acceptance(1, 2.4) == pytest.approx(0.442284123, abs=1e-9)
    assert exact_acceptance(10, 2.38 / np.sqrt(10)) == pytest.approx(0.261531039, abs=1e-9)


def stairs(x):
    """No derivative: flat almost everywhere."""
    return jnp.floor(jnp.sum(jnp.abs(x)))


def cone(x):
    """Its gradient is NaN at 0."""
    return jnp.sqrt(jnp.sum(x**2))


def test_energies_without_a_gradient(key):
    energy = ebm.FunctionEnergy(stairs, (1,))
    draws = ebm.sample(energy, ebm.RandomWalk(), key=key, num_chains=20, num_samples=2000, progress_bar=False)
    steps = np.exp(-np.arange(3.0)) * (1 - np.exp(-1))
    distance = np.abs(draws.positions)
    inside = np.concatenate([(distance >= i) & (distance < i + 1) for i in range(3)], axis=-1)
    assert_mean_close(inside, steps)
    assert draws.ok
    with pytest.raises(ebm.NonDifferentiableEnergyError):
        ebm.sample(energy, ebm.MALA(), key=key, progress_bar=False)


def test_a_nan_gradient_at_the_start_is_no_matter(key):
    energy, starts = ebm.FunctionEnergy(cone, (2,)), np.zeros((4, 2), np.float32)
    settings = {"initial_positions": starts, "num_warmup": 0, "num_samples": 50, "progress_bar": False}
    assert ebm.sample(energy, ebm.RandomWalk(), key=key, **settings).ok
    with pytest.raises(ebm.NonFiniteEnergyError, match="gradient"):
        ebm.sample(energy, ebm.MALA(), key=key, **settings)
    with pytest.raises(ebm.NonFiniteEnergyError):  # the energy itself is still looked at
        ebm.sample(ebm.FunctionEnergy(lambda x: jnp.sum(jnp.log(x)), (2,)), ebm.RandomWalk(), key=key, **settings)
