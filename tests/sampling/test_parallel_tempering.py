"""Parallel tempering: mode weights and log Z against exact values, the swap rule's broken twins, fair attempts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import ebm_ppl as ebm
from ebm_ppl.sampling import _tempering_core
from ebm_ppl.sampling._parallel_tempering import respaced
from tests.statistics import StatisticalError, assert_close, assert_mean_close

MIXTURE = ebm.energies.GaussianMixture(jnp.array([0.3, 0.7]), jnp.array([[-4.0], [4.0]]), jnp.ones((2, 1, 1)))
FOUR_SIGMA = 2 * stats.norm.sf(4)
SETTINGS = {"inverse_temperatures": 6, "num_chains": 8, "num_warmup": 300, "num_samples": 2000, "progress_bar": False}


@pytest.fixture(scope="module")
def draws():
    return ebm.parallel_tempering(MIXTURE, key=jax.random.key(11), **SETTINGS)


def assert_tempered_correctly(draws):
    assert_mean_close((draws.positions > 0).astype(float), [0.7])
    assert_mean_close(draws.positions**2, [17.0])
    assert_close(draws.tempering.log_normalizer[0], 0.0, draws.tempering.log_normalizer[1])


def test_modes_are_visited_in_the_right_proportions(draws):
    assert_tempered_correctly(draws)
    assert draws.ok


def test_log_normalizer_is_that_of_a_normalised_mixture(draws):
    for value, error in (draws.tempering.log_normalizer, draws.tempering.thermodynamic_integral):
        assert_close(value, 0.0, error)
        assert error < 0.05
    assert_close(np.subtract(*[x[0] for x in estimates(draws)]), 0.0, estimates(draws)[0][1])


def estimates(draws):
    return draws.tempering.log_normalizer, draws.tempering.thermodynamic_integral


def test_the_ladder_is_tuned_to_equal_rejection_and_communicates(draws):
    tempering = draws.tempering
    assert np.ptp(tempering.rejection_rates) < 0.1
    assert (tempering.round_trips > 100).all()
    assert 0.5 < tempering.round_trip_efficiency < 1.2
    assert tempering.inverse_temperatures[0] == 0
    assert tempering.inverse_temperatures[-1] == 1


@pytest.mark.parametrize(("fault", "num_chains"), [("wrong_sign", 9), ("always_accept", 10)])
def test_broken_swaps_fail(fault, num_chains, monkeypatch):
    """The same assertions, with a fault in the swap; another number of chains forces a fresh trace."""
    swap = _tempering_core._swap

    def broken_swap(betas, potentials, key, parity):
        return swap(betas, -potentials if fault == "wrong_sign" else 0 * potentials, key, parity)

    monkeypatch.setattr(_tempering_core, "_swap", broken_swap)
    broken = ebm.parallel_tempering(MIXTURE, key=jax.random.key(11), **SETTINGS | {"num_chains": num_chains})
    with pytest.raises(StatisticalError):
        assert_tempered_correctly(broken)


def test_even_and_odd_pairs_are_attempted_in_turn():
    """Swaps whose parity follows the wrong clock never attempt some pairs."""
    betas, potentials = jnp.linspace(0, 1, 5), jnp.zeros(5)
    for parity in (0, 1):
        order, rates = _tempering_core._swap(betas, potentials, jax.random.key(0), jnp.asarray(parity))
        assert np.array_equal(np.isfinite(rates), np.arange(4) % 2 == parity)
        expected = [1, 0, 3, 2, 4] if parity == 0 else [0, 2, 1, 4, 3]
        assert np.array_equal(order, expected)  # equal potentials always swap


def test_walls_and_nan_potentials_are_refused_in_swaps():
    betas = jnp.array([0.0, 0.5, 1.0])
    for bad in (jnp.inf, jnp.nan):
        order, _ = _tempering_core._swap(betas, jnp.array([bad, 0.0, 0.0]), jax.random.key(0), jnp.asarray(0))
        assert np.array_equal(order, [0, 1, 2])


def test_a_hard_wall_is_respected(key):
    """Exponential on the half line: E = x for x > 0, +inf below; log Z = 0."""
    energy = ebm.FunctionEnergy(lambda x: jnp.where(x[0] > 0, x[0], jnp.inf), (1,))
    draws = ebm.parallel_tempering(energy, key=key, **SETTINGS | {"num_samples": 1000})
    assert (draws.positions > 0).all()
    assert_mean_close(draws.positions, [1.0])
    assert_close(draws.tempering.log_normalizer[0], 0.0, draws.tempering.log_normalizer[1])


def test_respacing_equalises_the_cumulative_rejection():
    ladder = np.array([0.0, 0.1, 0.5, 1.0])
    new = respaced(ladder, np.array([0.3, 0.3, 0.3]))
    np.testing.assert_allclose(new, ladder)
    new = respaced(ladder, np.array([0.6, 0.0, 0.0]))
    assert (new[1:-1] < 0.1).all()
    assert np.all(np.diff(new) > 0)


def test_round_trips_count_whole_journeys():
    heading, label = jnp.zeros(3, bool), jnp.arange(3)
    journeys = [[0, 1, 2], [2, 1, 0], [0, 1, 2], [1, 0, 2], [2, 0, 1]]  # replica 0 up and down; replica 2 down
    trips = []
    for label in journeys:
        heading, completed = _tempering_core._round_trips(heading, jnp.asarray(label))
        trips.append(int(completed))
    assert trips == [0, 1, 1, 0, 1]


def test_bad_arguments():
    with pytest.raises(ValueError, match="inverse_temperatures"):
        ebm.parallel_tempering(MIXTURE, key=jax.random.key(0), inverse_temperatures=[0.1, 1.0])
    with pytest.raises(ValueError, match="inverse_temperatures"):
        ebm.parallel_tempering(MIXTURE, key=jax.random.key(0), inverse_temperatures=1)
    with pytest.raises(ValueError, match="num_steps"):
        ebm.parallel_tempering(MIXTURE, key=jax.random.key(0), num_steps=0)
    with pytest.raises(ebm.KeyArgumentError):
        ebm.parallel_tempering(MIXTURE, key=0)
    reference = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    with pytest.raises(ebm.EnergyShapeError, match="reference"):
        ebm.parallel_tempering(MIXTURE, key=jax.random.key(0), reference=reference)
    with pytest.raises(TypeError, match="reference"):
        ebm.parallel_tempering(MIXTURE, key=jax.random.key(0), reference=ebm.FunctionEnergy(jnp.sum, (1,)))


def test_save_and_load_keep_the_tempering(draws, tmp_path):
    loaded = ebm.Draws.load(draws.save(tmp_path / "draws.npz"))
    assert repr(loaded) == repr(draws)
    for name, value in vars(draws.tempering).items():
        assert np.array_equal(getattr(loaded.tempering, name), value)


def test_no_round_trip_is_a_named_problem(draws, key):
    narrow = ebm.energies.Gaussian(jnp.array([50.0]), 0.01 * jnp.eye(1))
    with pytest.warns(ebm.SamplingWarning, match="NO_ROUND_TRIPS"):
        bad = ebm.parallel_tempering(MIXTURE, key=key, reference=narrow, **SETTINGS | {"num_samples": 50})
    assert not bad.ok
    assert dataclasses.asdict(bad.problems[-1])["code"] == "NO_ROUND_TRIPS"


def assert_diagnose_sees_that_one_kernel_alone_does_not_mix(energy, key):
    """Whether it runs one chain, which cannot know what it missed, or four, which disagree."""
    for num_chains, codes in ((1, {"TOO_SHORT"}), (4, {"R_HAT", "ESS_BULK"})):
        alone = ebm.sample(energy, ebm.MALA(), key=key, num_chains=num_chains, progress_bar=False)
        report = ebm.diagnose(alone, energy)
        assert not report.ok
        assert codes <= {problem.code for problem in report.problems}


@pytest.mark.slow
def test_two_even_modes_eight_standard_deviations_apart(key):
    even = ebm.energies.GaussianMixture(jnp.array([0.5, 0.5]), jnp.array([[-4.0], [4.0]]), jnp.ones((2, 1, 1)))
    draws = ebm.parallel_tempering(even, key=key, **SETTINGS | {"num_samples": 4000})
    assert_mean_close((draws.positions > 0).astype(float), [0.5], alpha=FOUR_SIGMA)
    for value, error in estimates(draws):
        assert_close(value, 0.0, error, alpha=FOUR_SIGMA)
    assert ebm.diagnose(draws, even).ok
    assert_diagnose_sees_that_one_kernel_alone_does_not_mix(even, key)


@pytest.mark.slow
def test_many_wells(key):
    energy = ebm.energies.ManyWell(32)
    draws = ebm.parallel_tempering(
        energy, key=key, inverse_temperatures=30, num_chains=4, num_warmup=1000, num_samples=4000, progress_bar=False
    )
    density = lambda a: np.exp(-(a**4) + 6 * a**2 + a / 2)  # noqa: E731
    right, left = integrate.quad(density, 0, 6)[0], integrate.quad(density, -6, 0)[0]
    share = right / (right + left)
    assert_mean_close((draws.positions[..., 0::2] > 0).astype(float), np.full(16, share), alpha=16 * FOUR_SIGMA)
    for value, error in estimates(draws):
        assert_close(value, float(energy.log_normalizer), error, alpha=FOUR_SIGMA)
    assert_diagnose_sees_that_one_kernel_alone_does_not_mix(energy, key)
