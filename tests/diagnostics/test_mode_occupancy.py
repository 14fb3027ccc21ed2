"""Modes are found, counted and their crossings seen; what no chain visits has occupancy 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.diagnostics import mode_occupancy
from ebm_ppl.errors import EnergyShapeError, InvalidDataError
from tests.statistics import StatisticalError, assert_close

WEIGHTS, MEANS = np.array([0.6, 0.3, 0.1]), np.array([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
MIXTURE = ebm.energies.GaussianMixture(jnp.asarray(WEIGHTS), jnp.asarray(MEANS), jnp.tile(0.5 * jnp.eye(2), (3, 1, 1)))


def test_finds_the_modes_of_a_mixture_and_their_weights(key):
    table = mode_occupancy(np.asarray(MIXTURE.sample(key, (4, 2000))), MIXTURE)
    np.testing.assert_allclose(table["position"], MEANS, atol=1e-3)  # in ascending energy: heaviest first
    assert list(np.argsort(table["energy"].values)) == [0, 1, 2]
    assert_close(table["pooled_occupancy"], WEIGHTS, table["standard_error"])
    with pytest.raises(StatisticalError):
        assert_close(table["pooled_occupancy"], WEIGHTS[::-1], table["standard_error"])
    np.testing.assert_allclose(table["occupancy"].sum("mode"), 1.0)


def test_transitions_count_consecutive_draws():
    path = np.array([[0, 0, 1, 1, 0, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1, 1]])
    table = mode_occupancy(MEANS[path], modes=MEANS)
    np.testing.assert_array_equal(table["transitions"][0], [[1, 1, 1], [1, 1, 0], [0, 0, 2]])
    np.testing.assert_array_equal(table["transitions"][1], [[0, 0, 0], [0, 7, 0], [0, 0, 0]])
    np.testing.assert_array_equal(table["num_switches"], [3, 0])
    np.testing.assert_array_equal(table["occupancy"], [[3 / 8, 2 / 8, 3 / 8], [0, 1, 0]])
    assert "energy" not in table


def test_chains_that_never_cross_are_seen(key):
    """Barrier 8, all starts on the left: R-hat is content; `starts` on both sides reveal the empty mode."""
    energy = ebm.energies.DoubleWell(barrier=8.0, dim=1)
    draws = ebm.sample(
        energy, ebm.MALA(0.05), key=key, num_samples=500, initial_positions=-jnp.ones((4, 1)), progress_bar=False
    )
    assert float(draws.positions.max()) < 0
    table = mode_occupancy(draws, energy, starts=jnp.array([[-1.5], [1.5]]))
    order = np.argsort(table["position"][:, 0].values)
    np.testing.assert_allclose(table["position"][order, 0], [-1.0, 1.0], atol=1e-3)
    np.testing.assert_array_equal(table["pooled_occupancy"][order], [1.0, 0.0])
    assert int(table["num_switches"].sum()) == 0
    assert np.isnan(table["standard_error"]).all()


def test_conditional_energies_and_events_of_any_shape(key):
    def energy_of(x, condition):
        return jnp.sum((x - condition) ** 2)

    energy = ebm.FunctionEnergy(energy_of, (2, 2), condition_shape=(2, 2))
    centre = jnp.arange(4.0).reshape(2, 2)
    draws = np.asarray(jax.random.normal(key, (2, 50, 2, 2))) + np.asarray(centre)
    table = mode_occupancy(draws, energy, condition=centre)
    np.testing.assert_allclose(table["position"], [[0, 1, 2, 3]], atol=1e-3)


def test_what_cannot_be_counted_is_named(key):
    draws = np.asarray(jax.random.normal(key, (2, 50, 1)))
    with pytest.raises(ValueError, match="`energy` or `modes` must be given"):
        mode_occupancy(draws)
    with pytest.raises(ValueError, match="none of 128 descents"):
        mode_occupancy(draws, ebm.FunctionEnergy(lambda x: jnp.sum(x), (1,)), num_starts=64)
    with pytest.raises(ValueError, match=r"`max_modes` is 3, but .* separate minima"):
        mode_occupancy(draws, ebm.FunctionEnergy(lambda x: jnp.sum(jnp.cos(20 * x)), (1,)), max_modes=3)
    with pytest.raises(ValueError, match="`merge_distance` must be positive"):
        mode_occupancy(draws, ebm.energies.DoubleWell(barrier=2.0, dim=1), merge_distance=0.0)
    with pytest.raises(EnergyShapeError, match="`modes` must have shape"):
        mode_occupancy(draws, ebm.energies.DoubleWell(barrier=2.0, dim=1), modes=np.zeros((2, 3)))
    with pytest.raises(InvalidDataError, match="`draws` has 1 non-finite"):
        mode_occupancy(np.where(np.arange(50)[:, None] == 3, np.nan, draws)[:1], modes=np.zeros((1, 1)))
    with pytest.raises(InvalidDataError, match="no draws"):
        mode_occupancy(draws[:, :0], modes=np.zeros((1, 1)))
