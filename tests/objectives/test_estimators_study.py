"""benchmarks/estimators.py in small, benchmarks/blind_spots.py against closed forms, and the data of the former."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ebm_ppl as ebm
from benchmarks import blind_spots
from benchmarks.estimators import cells, study
from benchmarks.real_data import LOADERS, load
from ebm_ppl import objectives


@pytest.mark.parametrize("name", LOADERS)
def test_rows_are_white_and_their_density_is_that_of_standardised_columns(name):
    rows = load(name)
    dim = LOADERS[name]().data.shape[1]
    assert sum(len(part) for part in rows[:3]) == len(LOADERS[name]().data)
    np.testing.assert_allclose(rows.train.mean(0), np.zeros(dim), atol=1e-5)
    np.testing.assert_allclose(np.cov(rows.train.T, bias=True), np.eye(dim), atol=1e-4)
    assert not {tuple(row) for row in rows.train} & {tuple(row) for row in rows.test}
    again = load(name)
    np.testing.assert_array_equal(rows.test, again.test)


def test_log_determinant():
    """Wine, by hand: the Gaussian's log density of standardised columns is that of white rows plus the constant."""
    rows = load("wine")
    rng = np.random.default_rng(0)
    x = LOADERS["wine"]().data
    order = rng.permutation(len(x))
    train, _, test = np.split(order, [106, 142])
    x = (x - x[train].mean(0)) / x[train].std(0) + 0.05 * rng.standard_normal(x.shape)
    law = stats.multivariate_normal(x[train].mean(0), np.cov(x[train].T, bias=True))
    white = stats.multivariate_normal(np.zeros(13)).logpdf(rows.test) + rows.log_determinant
    np.testing.assert_allclose(white, law.logpdf(x[test]), rtol=1e-4)


@pytest.mark.filterwarnings("ignore::ebm_ppl.errors.SamplingWarning")
def test_the_table_in_small():
    """Both baselines and one estimator; the Gaussian's row by closed form; the flow's score by finite differences."""
    found = dict(study("wine", steps=50, methods=["NCE, noise the Gaussian"], quick=True))
    assert list(found) == ["full-covariance Gaussian", "flow by maximum likelihood", "NCE, noise the Gaussian"]
    gaussian, test = found["full-covariance Gaussian"], load("wine").test.astype(float)
    squares = (test**2).sum(1)
    np.testing.assert_allclose(gaussian["scores"], squares / 2 - 13, rtol=1e-4)
    np.testing.assert_allclose(gaussian["likelihood"].value, -squares.mean() / 2 - 6.5 * np.log(2 * np.pi), rtol=1e-5)
    rows = [cells(row, gaussian) for row in found.values()]
    assert rows[0][1] == rows[0][4] == "+0.00 ± 0.00"
    assert all(len(row) == 7 for row in rows)
    tilted = found["NCE, noise the Gaussian"]
    assert abs(tilted["learned"] - tilted["log_normalizer"].value) < 1  # few steps, and few draws for log Z


@pytest.mark.parametrize(
    ("distance", "fisher", "divergence"),
    [(1, 0.061625151, 0.104227786), (2, 0.031853831, 0.179116253), (3, 0.004056724, 0.191917460),
     (5, 2.310336e-6, 0.192744579)],
)  # fmt: skip
def test_losses_of_a_wrong_weight(distance, fisher, divergence):
    """.5/.5 for .2/.8 (Wenliang & Kanagawa 2020), by independent quadrature."""
    found = blind_spots.weight_losses(distance, [0.5])[0]
    np.testing.assert_allclose(found[[0, 2]], [fisher, divergence], rtol=1e-6)


class WeightedPair(ebm.AbstractEnergy):
    """Two normal laws at -2 and 2, and the weight of the left one."""

    weight: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(1,))
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, x, condition=None):
        return (x[0] ** 2 + 4) / 2 - jnp.log(self.weight * jnp.exp(-2 * x[0]) + (1 - self.weight) * jnp.exp(2 * x[0]))


def test_variance_of_a_weight_is_that_of_standard_errors(key):
    """Score matching, D = 2: the sandwich by quadrature against the one from data (its own error is some percent)."""
    side_key, key = jax.random.split(key)
    sides = jax.random.bernoulli(side_key, 0.8, (40_000, 1)).astype(float)
    data = jax.random.normal(key, (40_000, 1)) + 4 * sides - 2
    model = WeightedPair(jnp.asarray(blind_spots.WEIGHT))
    found = ebm.standard_errors(model, data, objectives.ExactScoreMatching(), key=key)
    measured = 40_000 * float(found.errors.weight) ** 2
    matching, _, likelihood = blind_spots.weight_variances(2)
    np.testing.assert_allclose(measured, matching, rtol=0.1)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(measured, likelihood, rtol=0.1)


def test_variance_under_far_noise():
    """Gutmann & Hyvärinen's covariance, by independent quadrature."""
    distances = {1: 0.512734114, 2: 2.448403432, 4: 27.155620238, 6: 479.802356}
    np.testing.assert_allclose(
        [blind_spots.constant_variance(d) for d in distances], list(distances.values()), rtol=1e-6
    )
    np.testing.assert_allclose(blind_spots.precision_variance(1.0), [4, 1], rtol=1e-6)
    np.testing.assert_allclose(blind_spots.precision_variance(2.0), [2.995315984, 1.815293375], rtol=1e-6)
    np.testing.assert_allclose(blind_spots.precision_variance(0.7), [12.489091080, 1.273381046], rtol=1e-5)


def test_short_chains(monkeypatch):
    """The chain leaves the model's law as it is; long chains find maximum likelihood; a right model is found by all."""
    law = blind_spots.softmax(-blind_spots.well(2.0, 0.5))
    np.testing.assert_allclose(law @ blind_spots.mala_matrix(2.0, 0.5), law, atol=1e-12)
    likelihood = blind_spots.fitted_tilt(1.0, None)
    assert (
        abs(blind_spots.fitted_tilt(1.0, 300) - likelihood) < 1e-2 < abs(blind_spots.fitted_tilt(1.0, 3) - likelihood)
    )
    monkeypatch.setattr(blind_spots, "data_law", lambda: law)
    np.testing.assert_allclose([blind_spots.fitted_tilt(2.0, k) for k in (None, 1, 10)], 0.5, atol=1e-6)
