"""Elliptical slice sampling: exact for any base, blind to nothing, never stuck."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.kernels import AbstractKernel, EllipticalSlice
from tests.statistics import StatisticalError, assert_mean_close

PRIOR = ebm.energies.Gaussian(jnp.array([1.0, -2.0]), jnp.array([[2.0, 0.9], [0.9, 1.0]]))
NOISE = 0.5  # variance of one observation y = 3 of x_1
SETTINGS = {"num_chains": 20, "num_warmup": 50, "num_samples": 2000, "progress_bar": False}


def misfit(x):
    return (3.0 - x[0]) ** 2 / (2 * NOISE)


POSTERIOR = ebm.SumEnergy(PRIOR, ebm.FunctionEnergy(misfit, (2,)))


def exact_moments():
    covariance = np.array([[2.0, 0.9], [0.9, 1.0]])
    gain = covariance[:, 0] / (covariance[0, 0] + NOISE)
    mean = np.array([1.0, -2.0]) + gain * (3.0 - 1.0)
    return mean, covariance - np.outer(gain, covariance[0])


def assert_posterior(draws):
    mean, covariance = exact_moments()
    x = draws.positions.astype(float) - mean
    assert_mean_close(x, [0.0, 0.0])
    assert_mean_close(x[..., :, None] * x[..., None, :], covariance)


@pytest.mark.parametrize("step_size", [2 * np.pi, 0.7])
def test_posterior_of_a_normal_model(step_size, key):
    draws = ebm.sample(POSTERIOR, EllipticalSlice(PRIOR, step_size), key=key, **SETTINGS)
    assert_posterior(draws)
    assert draws.ok
    assert (draws.scale == 1).all()  # the base is given in the user's coordinates
    assert draws.stats["n_steps"].mean() > 1


def test_any_base_leaves_any_target_invariant(key):
    base = ebm.energies.Gaussian(jnp.array([0.0, 1.0]), jnp.array([[3.0, -1.0], [-1.0, 4.0]]))
    assert_posterior(ebm.sample(POSTERIOR, EllipticalSlice(base), key=key, **SETTINGS))


class BaseCountedTwice(AbstractKernel):
    """The mistake to make: the whole density taken for the likelihood."""

    step_size: float = 1.0
    target_acceptance_rate: ClassVar[float | None] = None

    def build(self, logdensity_fn):
        return EllipticalSlice(PRIOR).build(lambda x: logdensity_fn(x) - PRIOR(x))

    def stats(self, state, info):
        return EllipticalSlice(PRIOR).stats(state, info)


def test_a_base_counted_twice_is_noticed(key):
    with pytest.raises(StatisticalError):
        assert_posterior(ebm.sample(POSTERIOR, BaseCountedTwice(), key=key, **SETTINGS))


def transitions(kernel, log_density, start, key, length=300):
    algorithm = kernel.build(log_density)

    def step(state, key):
        state, info = algorithm.step(key, state)
        return state, (state.position, info)

    return jax.jit(lambda: jax.lax.scan(step, algorithm.init(start), jax.random.split(key, length))[1])()


@pytest.mark.parametrize("beyond", [jnp.nan, jnp.inf])
def test_nan_and_minus_infinity_are_outside_the_slice_and_counted(beyond, key):
    base = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1))
    positions, info = transitions(
        EllipticalSlice(base), lambda x: jnp.where(x[0] < 0.5, -base(x), beyond), jnp.zeros(1), key, 2000
    )
    assert (positions < 0.5).all()
    # The likelihood is flat, so only the wall makes the search go on.
    assert np.array_equal(info.nonfinite_proposal, info.num_evaluations > 1)
    assert 0.1 < info.nonfinite_proposal.mean() < 0.5


def test_the_search_ends_where_rounding_leaves_nothing_to_find(key):
    """At the top of a likelihood known to 1e-2 nats only, a strict inequality would shrink the bracket for ever."""
    base = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    start = jnp.array([0.3, -0.7])
    positions, info = transitions(
        EllipticalSlice(base), lambda x: 1e5 - 1e9 * jnp.sum((x - start) ** 2) - base(x), start, key, 1000
    )
    assert np.abs(np.asarray(positions) - np.asarray(start)).max() < 1e-2
    assert 10 < info.num_evaluations.max() < 200


def test_refusals(key):
    with pytest.raises(TypeError, match="base"):
        EllipticalSlice(ebm.energies.DoubleWell())
    with pytest.raises(ValueError, match="2 pi"):
        EllipticalSlice(PRIOR, step_size=7.0)
    with pytest.raises(ebm.EnergyShapeError, match=r"\(1,\).*\(2,\)"):
        ebm.sample(ebm.energies.DoubleWell(), EllipticalSlice(PRIOR), key=key, progress_bar=False)


def test_events_without_an_axis(key):
    base = ebm.energies.Gaussian(0.0, 4.0)
    energy = ebm.FunctionEnergy(lambda x: jnp.exp(x) - 2 * x, ())  # exp(x) ~ Gamma(2): mean digamma(2)
    draws = ebm.sample(energy, EllipticalSlice(base), key=key, **SETTINGS)
    assert_mean_close(draws.positions, 0.42278433509846714)
