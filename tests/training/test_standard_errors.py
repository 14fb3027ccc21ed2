"""Standard errors against the closed forms of the estimators' variances (TRUTHS B10, B11, C3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.energies import Gaussian
from ebm_ppl.objectives import DenoisingScoreMatching, ExactScoreMatching, NoiseContrastive
from tests.objectives.estimation import isotropic_energy
from tests.statistics import StatisticalError, assert_iid_mean_close

NUM_ROWS = 4000


def scaled_variances(model, objective, key, read, **settings):
    """n times the squared standard error on each of 24 samples of standard normal rows."""
    event_shape = ebm.objectives.energy_of(model).event_shape
    values = []
    for replicate in jax.random.split(key, 24):
        data_key, noise_key = jax.random.split(replicate)
        data = jax.random.normal(data_key, (NUM_ROWS, *event_shape))
        result = ebm.standard_errors(model, data, objective, key=noise_key, **settings)
        values.append(NUM_ROWS * np.square(read(result.errors)))
    return np.array(values)


def normal(variance):
    return Gaussian(jnp.zeros(1), variance * jnp.eye(1))


@pytest.mark.parametrize(("deviation", "expected"), [(1.0, (4.0, 1.0)), (2.0, (2.995315984466407, 1.8152933747542637))])
def test_noise_contrast_is_truth_c3(deviation, expected, key):
    model = ebm.ShiftedEnergy(isotropic_energy(1.0), np.log(2 * np.pi) / 2)
    values = scaled_variances(
        model, NoiseContrastive(normal(deviation**2)), key, lambda errors: [errors.energy.params, errors.log_normalizer]
    )
    assert_iid_mean_close(values, expected)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(1.1 * values, expected)


def test_a_known_energy_leaves_log_z_its_own_error(key):
    """Energy fixed: n Var(log Z) = 1/I - 2 with I = E P(noise); noise N(1, 1): .5127 (TRUTHS C4)."""
    model = ebm.ShiftedEnergy(isotropic_energy(1.0), np.log(2 * np.pi) / 2)
    noise = Gaussian(jnp.ones(1), jnp.eye(1))
    values = scaled_variances(
        model,
        NoiseContrastive(noise),
        key,
        lambda errors: errors.log_normalizer,
        trainable=lambda leaf: leaf is model.log_normalizer,
    )
    assert_iid_mean_close(values, 0.5127341144579634)


@pytest.mark.parametrize(
    ("objective", "precision", "num_draws", "expected"),
    [
        (ExactScoreMatching(), 1.0, 1, 2.0),
        (DenoisingScoreMatching(0.5), 0.8, 1, 2.56),
        (DenoisingScoreMatching(0.5), 0.8, 400, 2 * 0.8**4 + (2.56 - 2 * 0.8**4) / 400),
    ],
)
def test_score_matching_is_truth_b10_and_b11(objective, precision, num_draws, expected, key):
    """With many draws of the noise per datum only the data's own error is left, 2 a^4."""
    model = isotropic_energy(precision)
    values = scaled_variances(model, objective, key, lambda errors: errors.params, num_draws=num_draws)
    assert_iid_mean_close(values, expected)


def test_distance_tells_whether_the_model_is_at_the_minimum(key):
    data = jax.random.normal(key, (NUM_ROWS, 1))
    settings = {"data": data, "objective": ExactScoreMatching(), "key": key}
    best = 1 / float(jnp.mean(data**2))
    assert ebm.standard_errors(isotropic_energy(best), **settings).distance < 0.01
    off = ebm.standard_errors(isotropic_energy(1.5 * best), **settings)
    step, error = 0.5 * best, np.sqrt(off.errors.params**2)
    np.testing.assert_allclose(off.distance, step / error, rtol=1e-3)


def test_what_is_not_identified_is_refused(key):
    data = jax.random.normal(key, (50, 2))
    network = ebm.MLPEnergy((2,), width=4, depth=1, key=key)
    with pytest.raises(ValueError, match="not positive definite"):
        ebm.standard_errors(network, data, DenoisingScoreMatching(0.5), key=key)
    with pytest.raises(ValueError, match="the limit is 2000"):
        ebm.standard_errors(ebm.MLPEnergy((2,), key=key), data, DenoisingScoreMatching(0.5), key=key)
    with pytest.raises(ValueError, match="`num_draws` must be an integer >= 1"):
        ebm.standard_errors(network, data, DenoisingScoreMatching(0.5), key=key, num_draws=0)
