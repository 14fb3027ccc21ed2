"""The Fisher divergence against closed forms and quadrature (TRUTHS B2, B9)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.energies import Gaussian, GaussianMixture
from tests.objectives.estimation import COVARIANCE, DATA_VARIANCES, MEAN
from tests.statistics import StatisticalError, assert_close

LAW = Gaussian(np.zeros(3, np.float32), np.diag(DATA_VARIANCES))
OTHER = Gaussian(MEAN, COVARIANCE)


def test_gaussians_are_truth_b2(key):
    estimate = ebm.fisher_divergence(LAW, OTHER, LAW.sample(key, (20_000,)))
    assert_close(estimate.value, 5.275543212890625, estimate.standard_error)
    reversed_ = ebm.fisher_divergence(LAW, OTHER, OTHER.sample(key, (20_000,)))
    with pytest.raises(StatisticalError):
        assert_close(reversed_.value, 5.275543212890625, reversed_.standard_error)


def test_standard_error_is_that_of_the_mean(key):
    """Over 200 repetitions the estimates scatter as the standard errors say, within their own error."""
    estimates = [ebm.fisher_divergence(LAW, OTHER, LAW.sample(k, (400,))) for k in jax.random.split(key, 200)]
    z = np.array([(float(e.value) - 5.275543212890625) / float(e.standard_error) for e in estimates])
    assert_close(np.mean(z**2), 1.0, np.std(z**2, ddof=1) / np.sqrt(200))


def mixture(weights, distance):
    means = np.array([[-distance], [distance]], np.float32)
    return GaussianMixture(np.asarray(weights, np.float32), means, np.ones((2, 1, 1), np.float32))


@pytest.mark.parametrize(("distance", "expected"), [(1.0, 0.06162515056368614), (3.0, 0.004056724396133673)])
def test_blindness_to_the_weights_is_truth_b9(distance, expected, key):
    """.2/.8 against .5/.5 at +-D: the divergence vanishes while the Kullback-Leibler divergence grows to .19."""
    law = mixture([0.2, 0.8], distance)
    estimate = ebm.fisher_divergence(law, mixture([0.5, 0.5], distance), law.sample(key, (100_000,)))
    assert_close(estimate.value, expected, estimate.standard_error)


def conditional(x, condition):
    return (x - condition) ** 2 / 2


def shifted(x, condition):
    return (x - condition - 3) ** 2 / 2


def test_conditional_energies(key):
    """Scores that differ by 3 everywhere."""
    law, other = (ebm.FunctionEnergy(fn, (), condition_shape=()) for fn in (conditional, shifted))
    condition = jax.random.normal(key, (50,))
    estimate = ebm.fisher_divergence(law, other, condition + 1, condition)
    np.testing.assert_allclose(estimate.value, 4.5, rtol=1e-5)
    assert estimate.standard_error < 1e-5


def test_bad_draws_are_refused():
    with pytest.raises(ebm.EnergyShapeError, match="one event shape"):
        ebm.fisher_divergence(LAW, mixture([0.5, 0.5], 1.0), jnp.ones((4, 3)))
    with pytest.raises(ebm.EnergyShapeError, match=r"`draws` must have shape \(n, 3\)"):
        ebm.fisher_divergence(LAW, OTHER, jnp.ones((4, 2)))
    with pytest.raises(ebm.InvalidDataError, match="at least 2 events"):
        ebm.fisher_divergence(LAW, OTHER, jnp.ones((1, 3)))
    with pytest.raises(ebm.InvalidDataError, match="`draws` has 1 non-finite"):
        ebm.fisher_divergence(LAW, OTHER, jnp.ones((4, 3)).at[1, 1].set(jnp.nan))
