"""The energy of what is left free, against conditional distributions in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints

import ebm_ppl as ebm
from ebm_ppl.energies import ClampedEnergy
from ebm_ppl.training._inputs import partition
from tests.statistics import StatisticalError, assert_mean_close

PAIR = ebm.energies.Gaussian(jnp.zeros(2), jnp.array([[1.0, 0.8], [0.8, 1.0]]))
NAMED = ebm.FunctionEnergy(
    lambda x: jnp.sum((x["w"] - x["tau"]) ** 2) / 2 + x["tau"],
    {"w": (2,), "tau": ()},
    support={"tau": constraints.positive},
)


@pytest.mark.optimized
def test_a_clamped_gaussian_is_the_conditional_one(key):
    rest = ClampedEnergy(PAIR, jnp.array([9.0, 2.0]), np.array([False, True]))
    draws = ebm.sample(rest, key=key, num_samples=1000, progress_bar=False)
    assert_mean_close(draws.positions, [1.6])
    assert_mean_close((draws.positions - 1.6) ** 2, [1 - 0.64])
    with pytest.raises(StatisticalError):
        assert_mean_close(draws.positions, [0.0])


def test_named_parts_are_clamped_as_a_whole():
    rest = ClampedEnergy(NAMED, {"tau": 2.0})
    assert rest.event_shape == {"w": (2,)}
    assert rest.support is None
    x = {"w": jnp.array([1.0, 4.0])}
    np.testing.assert_allclose(rest(x), 0.5 + 2 + 2, rtol=1e-6)
    assert list(rest.complete(x)) == ["w", "tau"]
    other = ClampedEnergy(NAMED, {"w": jnp.zeros(2), "tau": 1.0}, ["w"])
    assert other.event_shape == {"tau": ()}
    assert other.support == {"tau": constraints.positive}


def test_supports_of_single_coordinates_are_kept_and_others_refused():
    bounds = constraints.greater_than(jnp.array([0.0, 1.0, 2.0]))
    energy = ebm.FunctionEnergy(jnp.sum, (3,), support=bounds)
    rest = ClampedEnergy(energy, jnp.full(3, 5.0), np.array([False, True, False]))
    np.testing.assert_array_equal(rest.support.lower_bound, [0.0, 2.0])
    assert ebm.Target(rest).shape == (2,)
    simplex = ebm.FunctionEnergy(jnp.sum, (3,), support=constraints.simplex)
    with pytest.raises(NotImplementedError, match="binds the coordinates"):
        ClampedEnergy(simplex, jnp.full(3, 1 / 3), np.array([False, True, False]))


def test_known_values_are_not_trained():
    params, _ = partition(ClampedEnergy(PAIR, jnp.array([9.0, 2.0]), np.array([False, True])), None)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(params)) == [(2,), (2, 2)]  # mean and whitening


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: ClampedEnergy(PAIR, jnp.zeros(2), np.array([True, True])), ValueError, "nothing is free"),
        (lambda: ClampedEnergy(PAIR, jnp.zeros(2), np.array([False, False])), ValueError, "nothing is known"),
        (lambda: ClampedEnergy(PAIR, jnp.zeros(2), np.array([0, 1])), TypeError, "boolean"),
        (lambda: ClampedEnergy(PAIR, jnp.zeros(2)), TypeError, "`mask` must be"),
        (lambda: ClampedEnergy(PAIR, jnp.zeros(3), np.zeros(3, bool)), ebm.EnergyShapeError, "`values`"),
        (lambda: ClampedEnergy(NAMED, {"sigma": 1.0}), ebm.EnergyShapeError, "'sigma' is no part"),
        (lambda: ClampedEnergy(NAMED, {"tau": jnp.ones(2)}), ebm.EnergyShapeError, "shape"),
        (lambda: ClampedEnergy(NAMED, {"tau": 1.0}, "tau"), TypeError, "collection of names"),
        (lambda: ClampedEnergy(NAMED, jnp.ones(3)), ebm.EnergyShapeError, "dictionary of known parts"),
    ],
)
def test_misuse_is_named(make, error, match):
    with pytest.raises(error, match=match):
        make()
