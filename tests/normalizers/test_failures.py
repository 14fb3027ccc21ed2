"""Where a method must fail it says so; annealing is unbiased on Z and its two ways enclose the truth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl import energies, normalizers
from ebm_ppl.energies._coordinate_energy import coordinate_energy
from ebm_ppl.normalizers import _annealed_importance, _importance, _thermodynamic_integration
from ebm_ppl.normalizers._inputs import check_base, draws_and_log_weights
from ebm_ppl.normalizers._log_normalizer import compared
from ebm_ppl.normalizers._path import check_mover
from ebm_ppl.sampling._tempering_report import Tempering
from tests.statistics import StatisticalError, assert_iid_mean_close

FAR = energies.Gaussian(jnp.array([2.0, -2.0]), 0.25 * jnp.eye(2))
START = energies.Gaussian(jnp.zeros(2), jnp.eye(2))


def flagged(estimate, code, count):
    """In how many of the rows."""
    return sum(any(problem.code == code for problem in estimate[row].problems) for row in range(count))


def annealed(key, count, num_temperatures, num_samples=64, *, reverse=True):
    return _annealed_importance.annealed_runs(
        coordinate_energy(FAR),
        check_base("reference", START, coordinate_energy(FAR)),
        check_mover(None, 1),
        jax.random.split(key, count),
        None,
        None,
        num_temperatures=num_temperatures,
        num_samples=num_samples,
        num_pilot=64,
        reverse=reverse,
        exact=FAR,
    )


@pytest.fixture(scope="module")
def short():
    return annealed(jax.random.key(5), 400, 8)


def relative_normalizers(log_weights):
    """Estimates of Z over Z, one per row."""
    return np.exp(np.asarray(log_weights, np.float64) - float(FAR.log_normalizer)).mean(axis=1)


def test_annealed_importance_is_unbiased_on_the_normalizer(short):
    assert_iid_mean_close(relative_normalizers(short.forward), 1.0)
    assert_iid_mean_close(np.exp(np.asarray(short.reverse, np.float64) + float(FAR.log_normalizer)).mean(axis=1), 1.0)
    with pytest.raises(StatisticalError):  # the mean of logs instead of the log of the mean
        assert_iid_mean_close(np.asarray(short.forward).mean(axis=1), float(FAR.log_normalizer))


def test_forward_and_reverse_enclose_the_truth(short):
    """Jensen: with few temperatures and eight weights to a run both gaps are many standard errors wide."""
    runs = short._replace(
        forward=short.forward.reshape(-1, 8),
        reverse=short.reverse.reshape(-1, 8),
        inside=jnp.ones(short.forward.size // 8),
        pilot_reached=jnp.ones(short.forward.size // 8),
    )
    estimate = _annealed_importance.estimate_from_annealing(runs, independent=True)
    forward, reverse = (np.asarray(bound) - float(FAR.log_normalizer) for bound in estimate.bounds)

    def standard_errors(values):
        return values.mean() / (values.std(ddof=1) / np.sqrt(len(values)))

    assert standard_errors(forward) < -5
    assert standard_errors(reverse) > 5


def test_too_narrow_a_proposal_is_noticed(key):
    """Of 20 runs with half the standard deviation in 5 dimensions at least 19 must say so; with the right one, none."""
    energy = coordinate_energy(energies.Gaussian(jnp.zeros(5), jnp.eye(5)))
    counts = []
    for scale in (0.5, 1.2):
        base = check_base("proposal", energies.Gaussian(jnp.zeros(5), scale**2 * jnp.eye(5)), energy)
        _, log_weights = draws_and_log_weights(energy, base, jax.random.split(key, 20), None, num_samples=4000)
        counts.append(flagged(_importance.estimate_from_weights(np.asarray(log_weights)), "HIGH_PARETO_K", 20))
    assert counts[0] >= 19
    assert counts[1] == 0


def test_too_short_a_ladder_is_noticed(key):
    """Two temperatures to a law four standard deviations away: at least 19 of 20 runs are flagged; with 64, few."""
    estimates = [
        _annealed_importance.estimate_from_annealing(annealed(key, 20, levels, 256), independent=True)
        for levels in (2, 64)
    ]
    bad, good = ([not one[row].ok for row in range(20)] for one in estimates)
    assert sum(bad) >= 19
    assert sum(good) <= 2


def test_too_coarse_a_ladder_is_noticed_by_integration(key):
    """Three levels between two normals: the integral is biased, the value is not, and the difference is named."""
    reference = energies.Gaussian(jnp.zeros(2), 4 * jnp.eye(2))
    draws = ebm.parallel_tempering(
        FAR,
        key=key,
        reference=reference,
        inverse_temperatures=[0.0, 0.5, 1.0],
        num_chains=20,
        num_warmup=0,
        num_samples=400,
        progress_bar=False,
    )
    ladders = [
        dataclasses.replace(draws.tempering, potentials=draws.tempering.potentials[chain : chain + 1])
        for chain in range(20)
    ]
    found = [_thermodynamic_integration.estimate_from_tempering(ladder) for ladder in ladders]
    assert sum("LADDER_TOO_COARSE" in {problem.code for problem in one.problems} for one in found) >= 19
    # What is missing is real, and the value has made up for it.
    assert_iid_mean_close([one.value for one in found], float(FAR.log_normalizer))
    with pytest.raises(StatisticalError):
        assert_iid_mean_close([ladder.thermodynamic_integral[0] for ladder in ladders], float(FAR.log_normalizer))


def test_replicas_beyond_a_wall_are_noticed():
    """One draw of a level above the reference that is not where the energy is finite: warm-up was too short."""
    potentials = np.random.default_rng(0).normal(size=(2, 100, 3))
    potentials[0, 0, 1:] = np.inf
    tempering = Tempering(np.array([0.0, 0.5, 1.0]), np.zeros(2), np.full(2, 40), 100, potentials, 0.0)
    estimate = _thermodynamic_integration.estimate_from_tempering(tempering)
    assert [(problem.code, problem.value) for problem in estimate.problems] == [("REPLICAS_OUTSIDE", 0.005)]


def test_a_missed_mode_is_a_disagreement(key):
    """A proposal at one of two modes has healthy weights; the other method is what tells."""
    energy = energies.GaussianMixture([0.5, 0.5], [-6.0, 6.0], [1.0, 1.0])
    blind = energies.Gaussian(6.0, 1.5)
    with pytest.warns(ebm.SamplingWarning, match="DISAGREEMENT"):
        estimate = ebm.log_normalizer(
            energy, key=key, methods=("quadrature", "importance"), options={"importance": {"proposal": blind}}
        )
    assert [problem.code for problem in estimate.problems] == ["DISAGREEMENT"]
    assert all(part.ok for part in estimate.parts)
    assert estimate.problems[0].value == pytest.approx(np.log(0.5), abs=0.1)


def test_agreement_is_called_disagreement_as_often_as_it_should(key):
    """Independent normal estimates of one truth: a rate of one in a thousand."""
    values = np.asarray(jax.random.normal(key, (2, 4000)), np.float64)
    ones, none = np.ones(4000), np.full(4000, np.nan)
    parts = [ebm.LogNormalizerEstimate(row, ones, none, none, name) for row, name in zip(values, "ab", strict=True)]
    assert len(compared(parts).problems) <= 14  # 4 expected; above 14 with probability 3e-5
    parts[1] = ebm.LogNormalizerEstimate(values[1] + 10, ones, none, none, "b")
    assert len(compared(parts).problems) > 3900


def test_chains_in_different_modes_are_noticed(key):
    energy = energies.GaussianMixture([0.5, 0.5], [-6.0, 6.0], [1.0, 1.0])
    draws = jnp.array([-6.0, -6.0, 6.0, 6.0])[:, None] + jax.random.normal(key, (4, 200))
    with pytest.warns(ebm.SamplingWarning, match="CHAINS_DISAGREE"):
        estimate = normalizers.bridge(energy, draws, key=key)
    assert "CHAINS_DISAGREE" in {problem.code for problem in estimate.problems}


def test_nan_is_no_wall(key):
    """A cloud that meets NaN where it starts says so; it does not integrate over the rest."""
    energy = ebm.FunctionEnergy(lambda x: jnp.where(x > 4, jnp.nan, x**2), ())
    settings = {"key": key, "num_particles": 64, "num_runs": 2, "num_steps": 1}
    with pytest.warns(ebm.SamplingWarning, match="NaN somewhere"):
        assert np.isnan(normalizers.sequential_monte_carlo(energy, **settings).value)
