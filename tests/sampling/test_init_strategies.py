"""Where chains start: uniform, at the foot of the landscape, or drawn from Pathfinder's approximation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.energies._coordinate_energy import coordinate_energy
from ebm_ppl.sampling import _init_strategies as strategies
from ebm_ppl.sampling._init_strategies import improve_starts
from tests.statistics import StatisticalError, assert_iid_mean_close

MEAN, SCALE = np.array([30.0, -50.0, 1.0]), np.array([1.0, 5.0, 0.2])
FAR = ebm.energies.Gaussian(jnp.asarray(MEAN, jnp.float32), jnp.diag(jnp.asarray(SCALE**2, jnp.float32)))
SHORT = {"num_chains": 3, "num_warmup": 0, "num_samples": 2, "progress_bar": False}


def starts(name, key, num_chains=200, energy=FAR, condition=None):
    positions = jax.random.uniform(key, (num_chains, *energy.event_shape), minval=-2, maxval=2)
    keys = jax.random.split(key, num_chains)
    return improve_starts(name, coordinate_energy(energy), positions, condition, keys)


def test_optimisation_ends_at_the_optimum_jittered(key, monkeypatch):
    found, unfinished = starts("optimize", key)
    jitter = np.asarray(found) - MEAN
    assert unfinished == 0
    # the documented gradient norm bounds the distance: |x - mean| < sigma^2 |grad|
    bound = SCALE**2 * strategies.GRADIENT_NORM * np.sqrt(3)
    assert np.all(np.abs(jitter.mean(0)) < bound + 5 * strategies.JITTER / np.sqrt(200))
    assert_iid_mean_close(jitter[:, ::2] ** 2, strategies.JITTER**2 * np.ones(2))
    assert len(np.unique(jitter[:, 0])) == 200


def test_pathfinder_draws_from_the_normal_approximation(key):
    """On a normal target the approximation is the target, up to what L-BFGS has seen of its curvature."""
    found, _ = starts("pathfinder", key, 40)
    assert_iid_mean_close((np.asarray(found) - MEAN) / SCALE, np.zeros(3))
    spread = ((np.asarray(found) - MEAN) / SCALE).std(0)
    assert np.all((spread > 0.3) & (spread < 3))
    with pytest.raises(StatisticalError):
        assert_iid_mean_close((np.asarray(found) - MEAN) / SCALE, np.ones(3))


@pytest.mark.parametrize("name", ["optimize", pytest.param("pathfinder", marks=pytest.mark.slow)])
def test_a_chain_starts_where_it_does_whatever_the_others(name):
    def first(num_chains):
        settings = SHORT | {"num_chains": num_chains}
        return ebm.sample(FAR, ebm.MALA(1e-3), key=jax.random.key(3), init_strategy=name, **settings)

    draws = first(3)
    np.testing.assert_array_equal(draws.positions[:2], first(2).positions)
    assert np.all(np.abs(draws.positions[:, 0] - MEAN) < 8 * SCALE)
    assert draws.settings["init_strategy"] == name
    assert draws.settings["unfinished_searches"] == 0


def test_conditions_and_given_positions(key):
    energy = ebm.FunctionEnergy(lambda x, y: jnp.sum((x - y) ** 2) / 2, (2,), condition_shape=(2,))
    each = jnp.array([[10.0, 0.0], [0.0, 10.0], [-10.0, 0.0]])
    found, _ = starts("optimize", key, 3, energy, each)
    np.testing.assert_allclose(found, each, atol=0.5)
    wells = ebm.energies.DoubleWell(5.0, 1)
    given = jnp.array([[-1.5], [1.5], [1.5]])
    draws = ebm.sample(wells, ebm.MALA(1e-4), key=key, initial_positions=given, init_strategy="optimize", **SHORT)
    np.testing.assert_array_equal(np.sign(draws.positions[:, 0]), np.sign(given))  # the nearest mode, each


def test_what_cannot_be_searched_is_refused_by_name(key):
    with pytest.raises(ValueError, match=r"`init_strategy` must be one of .*; got 'map'"):
        ebm.sample(FAR, key=key, init_strategy="map", **SHORT)
    stairs = ebm.FunctionEnergy(lambda x: jnp.floor(jnp.sum(jnp.abs(x))), (1,))
    with pytest.raises(ebm.NonDifferentiableEnergyError):
        ebm.sample(stairs, ebm.RandomWalk(), key=key, init_strategy="optimize", **SHORT)
    bottomless = ebm.FunctionEnergy(lambda x: -jnp.exp(jnp.sum(x**2)), (1,))
    with pytest.raises(ebm.NonFiniteEnergyError, match=r"'optimize'.*3 of 3 chains.*unbounded below"):
        starts("optimize", key, 3, bottomless)


def test_a_search_that_did_not_end_is_counted(key, monkeypatch):
    monkeypatch.setattr(strategies, "MAX_ITERATIONS", 1)
    _, unfinished = starts("optimize", key, 5, ebm.energies.Rosenbrock(1.0, 5.0, dim=4))
    assert unfinished == 5
