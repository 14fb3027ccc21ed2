"""The comparison of benchmarks/flow_contrastive.py in small, and the densities that it rests on."""

import math

import numpy as np
import pytest

from benchmarks.densities import DENSITIES
from benchmarks.flow_contrastive import box, energies_of, log_normalizer_of, study
from tests.statistics import StatisticalError, assert_iid_mean_close


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_are_normalised_and_those_of_their_draws(name, key):
    """The integral over the box is 1; the draws' mean log density is minus the entropy, by quadrature."""
    truth = DENSITIES[name]()
    np.testing.assert_allclose(log_normalizer_of(truth), 0, atol=1e-3)
    points, log_area = box()
    log_density = -np.asarray(energies_of(truth, points), float)
    weights = np.exp(log_density + log_area)
    draws = truth.sample(key, (20_000,))
    found = -np.asarray(energies_of(truth, draws), float)
    expected = np.sum(weights * np.where(weights > 0, log_density, 0))
    if name == "checkerboard":  # constant, so that there is no scatter
        np.testing.assert_allclose(found, -math.log(32), rtol=1e-6)
    else:
        assert_iid_mean_close(found, expected)
        with pytest.raises(StatisticalError):
            assert_iid_mean_close(found, expected + 0.05)
    moments = [np.sum(weights * np.asarray(points[:, 0] * points[:, axis])) for axis in (0, 1)]
    assert_iid_mean_close(np.asarray(draws[:, :1] * draws), moments)


@pytest.mark.slow
def test_the_game_beats_fixed_noise_between_many_modes():
    """25 Gaussians: log density closer to the truth at equal steps; the learned log Z is that of quadrature."""
    game, _ = study("25 Gaussians", "FCE", 5000)
    noise, _ = study("25 Gaussians", "NCE, noise N(0, 4I)", 5000)
    assert game["error"] < noise["error"]
    assert abs(game["log Z"]) < 0.05
