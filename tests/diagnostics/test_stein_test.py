"""The Stein identities hold for right draws at the stated rate and fail for wrong ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ebm_ppl as ebm
from ebm_ppl.diagnostics import Verdict, stein_test
from tests.diagnostics import chains
from tests.statistics import StatisticalError, assert_close

SKEWED = ebm.energies.GaussianMixture(jnp.array([0.7, 0.3]), jnp.array([[0.0], [2.0]]), jnp.array([[[0.3]], [[1.0]]]))
HEAVY = ebm.energies.StudentT(3.0)
CORRELATED = ebm.energies.Gaussian(jnp.zeros(2), jnp.array([[1.0, 0.8], [0.8, 1.0]]))


def most_rejections(runs, rate):
    """Rejections that a test of size `rate` exceeds with probability 1e-3."""
    return int(stats.binom.isf(1e-3, runs, rate))


@pytest.mark.parametrize("energy", [SKEWED, HEAVY, CORRELATED], ids=["skewed", "heavy tails", "correlated"])
@pytest.mark.parametrize("shape", [(4, 300), (40, 20)])
def test_right_draws_are_rejected_at_the_stated_rate_at_most(energy, shape, key):
    runs = np.asarray(energy.sample(key, (50, *shape)))
    rejected = sum(not stein_test(draws, energy, level=0.05).ok for draws in runs)
    assert rejected <= most_rejections(50, 0.05)


@pytest.mark.parametrize(
    ("energy", "change"),
    [
        (SKEWED, lambda x: x + 0.2),
        (SKEWED, lambda x: 1.15 * x),
        (SKEWED, lambda x: 1.5 - x),
        (HEAVY, lambda x: 1.2 * x),
        (CORRELATED, lambda x: x * np.array([1.0, -1.0])),
        (CORRELATED, lambda x: x @ np.array([[1.0, 0.15], [0.0, 1.0]])),
    ],
    ids=["shift", "scale", "mirror", "scale of heavy tails", "sign of correlation", "correlation"],
)
def test_wrong_draws_are_rejected(energy, change, key):
    draws = np.asarray(energy.sample(key, (4, 1000)))
    assert stein_test(draws, energy, level=1e-4).ok
    assert not stein_test(change(draws), energy, level=1e-4).ok


def test_the_random_directions_see_what_coordinates_cannot(key):
    """Independent normals of the right variances in place of correlated ones; every coordinate's law is right."""
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    draws = np.asarray(CORRELATED.sample(key, (4, 1000)))
    marginal = stein_test(draws, energy, num_directions=0)
    assert marginal.ok
    assert not stein_test(draws, energy, num_directions=4).ok


def test_dependent_chains_of_the_stationary_ula_law():
    """ULA with step h = .5 on N(0, 1) is an AR(1) with coefficient .5 and variance 4/3; MALA's law is N(0, 1)."""
    energy = ebm.energies.Gaussian(jnp.zeros(()), jnp.ones(()))
    right = [chains.autoregressive(np.random.default_rng(seed), 0.5) for seed in range(40)]
    assert sum(not stein_test(draws, energy, level=0.05).ok for draws in right) <= most_rejections(40, 0.05)
    assert all(not stein_test(np.sqrt(4 / 3) * draws, energy).ok for draws in right[:10])


def test_estimates_have_closed_forms():
    """Draws of N(0, s²) against E = x²/2: E[g(y) (-x) spread + g'(y)], y = (x - centre) / spread, by quadrature."""
    draws = 1.3 * np.random.default_rng(0).normal(size=(4, 20_000))
    energy = ebm.energies.Gaussian(jnp.zeros(()), jnp.ones(()))
    table = stein_test(draws, energy).table
    centre = np.median(draws)
    spread = np.median(np.abs(draws - centre)) / stats.norm.ppf(0.75)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    x = 1.3 * nodes
    y, weights = (x - centre) / spread, weights / weights.sum()
    bump = np.exp(-0.5 * y**2)
    expected = {
        "constant": weights @ -x * spread,
        "tanh": weights @ (np.tanh(y) * -x * spread + 1 - np.tanh(y) ** 2),
        "bump": weights @ (bump * -x * spread - y * bump),
    }
    rows = [table.sel(identity=f"{name}, coordinate 0") for name in expected]
    errors = [float(one["standard_error"]) for one in rows]
    assert_close([float(one["estimate"]) for one in rows], list(expected.values()), errors)
    with pytest.raises(StatisticalError):
        assert_close([float(one["estimate"]) for one in rows], [0.0, 0.0, 0.0], errors)


def test_blind_to_the_weights_of_separated_modes(key):
    """Documented, and true of every function of the score: 50:50 and 90:10 have the same score in each mode."""
    means, covariances = jnp.array([[-8.0], [8.0]]), jnp.ones((2, 1, 1))
    right = ebm.energies.GaussianMixture(jnp.array([0.5, 0.5]), means, covariances)
    wrong = ebm.energies.GaussianMixture(jnp.array([0.9, 0.1]), means, covariances)
    assert stein_test(np.asarray(wrong.sample(key, (4, 1000))), right).ok


def test_draws_that_cannot_be_judged_do_not_pass():
    energy = ebm.energies.Gaussian(jnp.zeros(()), jnp.ones(()))
    rng = np.random.default_rng(0)
    cases = {
        "NONFINITE_DRAW": chains.one_nan(rng),
        "STUCK_CHAIN": chains.frozen_apart(rng),
        "TOO_SHORT": rng.normal(size=(4, 5)),
        "ESS_BULK": np.cumsum(rng.normal(size=(4, 500)), axis=1),
    }
    for code, draws in cases.items():
        verdict = stein_test(draws, energy)
        assert not verdict.ok
        assert verdict.problems[0].code == code
    walled = ebm.FunctionEnergy(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.5 * x**2), ())
    assert not stein_test(np.abs(rng.normal(size=(4, 200))) * (np.arange(200) > 0), walled).ok


def test_events_of_any_shape_and_conditional_energies(key):
    image = ebm.FunctionEnergy(lambda x: 0.5 * jnp.sum(x**2), (3, 2))
    assert stein_test(jax.random.normal(key, (4, 500, 3, 2)), image).ok
    shifted = ebm.FunctionEnergy(lambda x, condition: 0.5 * jnp.sum((x - condition) ** 2), (2,), condition_shape=(2,))
    draws = jax.random.normal(key, (4, 500, 2)) + 1.0
    assert stein_test(draws, shifted, condition=jnp.ones(2)).ok
    assert not stein_test(draws, shifted, condition=jnp.zeros(2)).ok


def test_options_are_checked():
    energy = ebm.energies.Gaussian(jnp.zeros(()), jnp.ones(()))
    with pytest.raises(ValueError, match="`level` must be between 0 and 1"):
        stein_test(np.zeros((4, 20)), energy, level=1.5)
    with pytest.raises(ValueError, match="`num_directions` must be an integer >= 0"):
        stein_test(np.zeros((4, 20)), energy, num_directions=-1)


def test_verdict_prints(key):
    energy = ebm.energies.Gaussian(jnp.zeros(()), jnp.ones(()))
    verdict = stein_test(energy.sample(key, (4, 500)), energy)
    assert isinstance(verdict, Verdict)
    assert repr(verdict).endswith("(level 0.01): ok")
    assert "NOT ok\n  STUCK_CHAIN (chain 0)" in repr(stein_test(np.ones((4, 100)), energy))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("energy", "step_size"),
    [(SKEWED, 0.4), (HEAVY, 0.8), (CORRELATED, 0.25)],
    ids=["skewed", "heavy tails", "correlated"],
)
def test_size_and_power_on_chains(energy, step_size, key):
    """400 runs of 4 MALA chains: rejected at the nominal rate at most; 20 of ULA with the same step: all but one."""
    start = energy.sample(key, (1600,))
    options = {"num_warmup": 0, "num_samples": 1000, "thinning": 2, "precondition": "none", "progress_bar": False}
    rejected = {}
    for kernel, runs in ((ebm.MALA(step_size), 400), (ebm.ULA(step_size), 20)):
        used = start[: 4 * runs]
        draws = ebm.sample(energy, kernel, key=key, num_chains=4 * runs, initial_positions=used, **options)
        positions = draws.positions.reshape(runs, 4, 1000, *energy.event_shape)
        rejected[runs] = sum(not stein_test(one, energy, level=0.01).ok for one in positions)
    assert rejected[400] <= most_rejections(400, 0.01)
    assert rejected[20] >= 19
