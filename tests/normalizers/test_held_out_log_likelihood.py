"""`held_out_log_likelihood` against the entropy of the normal law, and its two sources of error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ebm_ppl as ebm
from ebm_ppl.normalizers import held_out_log_likelihood
from tests.compilation import count_lowerings
from tests.statistics import StatisticalError, assert_close


def shifted_square(x, condition):
    return (x - condition) ** 2 / 2 + 40


LOG_Z = 0.5 * np.log(2 * np.pi) - 40
ENERGY = ebm.FunctionEnergy(lambda x: x**2 / 2 + 40, ())
DATA = np.random.default_rng(0).normal(size=5000).astype(np.float32)  # more than one batch
ENTROPY = 0.5 * np.log(2 * np.pi * np.e)


def estimate(value, error, problems=()):
    return ebm.LogNormalizerEstimate(value, error, np.nan, np.nan, "test", problems)


def test_is_the_entropy_within_its_error():
    found = held_out_log_likelihood(ENERGY, DATA, LOG_Z)
    np.testing.assert_allclose(found.pointwise, stats.norm.logpdf(DATA), atol=2e-5)
    assert_close(found.value, -ENTROPY, found.standard_error)
    assert found.standard_error == found.standard_error_data == pytest.approx(np.sqrt(0.5 / 5000), rel=0.1)
    with pytest.raises(StatisticalError):  # the twin: log Z forgotten
        assert_close(held_out_log_likelihood(ENERGY, DATA, 0.0).value, -ENTROPY, found.standard_error)


def test_the_error_of_log_z_does_not_shrink_with_the_data():
    found = held_out_log_likelihood(ENERGY, DATA, estimate(LOG_Z, 0.3))
    assert found.standard_error_log_normalizer == 0.3
    assert found.standard_error == pytest.approx(np.hypot(0.3, found.standard_error_data))


def test_one_condition_and_one_log_z_per_event():
    energy = ebm.FunctionEnergy(shifted_square, (), condition_shape=())
    data, conditions = DATA[:100], np.linspace(-1, 1, 100, dtype=np.float32)
    several = estimate(np.full(100, LOG_Z), np.full(100, 0.2))
    found = held_out_log_likelihood(energy, data, several, condition=conditions)
    np.testing.assert_allclose(found.pointwise, stats.norm.logpdf(data, conditions), atol=2e-5)
    assert found.standard_error_log_normalizer == pytest.approx(0.02)
    one = held_out_log_likelihood(energy, data, LOG_Z, condition=jnp.asarray(0.5))
    np.testing.assert_allclose(one.pointwise, stats.norm.logpdf(data, 0.5), atol=2e-5)
    with pytest.raises(ebm.EnergyShapeError, match="for one condition"):  # that of another condition is another number
        held_out_log_likelihood(energy, data, estimate(LOG_Z, 0.2), condition=conditions)
    held_out_log_likelihood(energy, data, estimate(LOG_Z, 0.2), condition=np.full_like(conditions, 0.5))


def test_problems_travel_along():
    problem = ebm.Problem("DISAGREEMENT", "two methods differ.")
    assert held_out_log_likelihood(ENERGY, DATA[:5], estimate(LOG_Z, 0.1, (problem,))).problems == (problem,)
    wall = ebm.FunctionEnergy(lambda x: jnp.where(x < 0, jnp.inf, x), ())
    found = held_out_log_likelihood(wall, jnp.array([1.0, -1.0, 2.0]), 0.0)
    assert found.value == -np.inf
    assert [entry.code for entry in found.problems] == ["OUTSIDE_SUPPORT"]
    assert not found.ok


@pytest.mark.parametrize(
    ("log_normalizer", "error"),
    [(np.zeros(3), ebm.EnergyShapeError), (np.nan, ValueError), (estimate(np.inf, 0.1), ValueError)],
)
def test_what_does_not_fit_is_refused(log_normalizer, error):
    with pytest.raises(error, match="`log_normalizer`"):
        held_out_log_likelihood(ENERGY, DATA[:5], log_normalizer)
    with pytest.raises(ebm.InvalidDataError):
        held_out_log_likelihood(ENERGY, jnp.array([jnp.nan]), 0.0)


def test_equal_shapes_compile_once():
    first = jax.random.normal(jax.random.key(0), (10,))
    held_out_log_likelihood(ENERGY, first, 0.0)
    second = first + 1
    with count_lowerings() as lowered:
        held_out_log_likelihood(ENERGY, second, 1.0)
    assert not lowered
