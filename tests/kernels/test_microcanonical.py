"""MCLMC: unbiased as the step shrinks, biased otherwise, and never stuck; both variants need two dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.kernels import AdjustedMCLMC
from tests.kernels.targets import log_gamma
from tests.statistics import StatisticalError, assert_mean_close


def draw(energy, kernel, key, **settings):
    settings = {"num_chains": 20, "num_warmup": 500, "num_samples": 1000, "thinning": 5} | settings
    return ebm.sample(energy, kernel, key=key, progress_bar=False, **settings)


def test_small_steps_give_the_law_and_large_ones_do_not(key):
    target = log_gamma()
    draws = draw(target.energy, ebm.MCLMC(0.2), key)
    assert_mean_close(target.functions(draws.positions), target.truth)
    assert draws.ok
    assert draws.kernel.step_size == pytest.approx(0.2)  # nothing tunes it
    assert (draws.stats["n_steps"] == 10).all()
    coarse = draw(target.energy, ebm.MCLMC(6.0), key)
    with pytest.raises(StatisticalError):
        assert_mean_close(target.functions(coarse.positions), target.truth)
    assert (coarse.stats["energy_change"] ** 2).mean() > 100 * (draws.stats["energy_change"] ** 2).mean()


def test_the_direction_must_be_forgotten(key):
    """Twin: on a normal target, without decoherence the distance from the centre hardly changes."""
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    settings = {"initial_positions": jnp.full((20, 2), 0.1), "thinning": 1}
    assert_mean_close(draw(energy, ebm.MCLMC(0.3), key, **settings).positions ** 2, [1.0, 1.0])
    straight = draw(energy, ebm.MCLMC(0.3, decoherence_length=1e6), key, **settings)
    with pytest.raises(StatisticalError):
        assert_mean_close(straight.positions**2, [1.0, 1.0])


@pytest.mark.parametrize("fault", ["energy", "gradient"])
def test_a_nan_turns_the_particle_round_and_is_counted(fault, key):
    """Energy or gradient NaN beyond a wall: the particle goes on on its side of it."""

    def log_density(x):
        beyond = x[0] > 0.5
        if fault == "energy":
            return -jnp.sum(x**2) / 2 + jnp.where(beyond, jnp.nan, 0.0)
        return -jnp.sum(x**2) / 2 - jnp.sqrt(jnp.where(beyond, 0.0 * x[0], 1.0))

    kernel = ebm.MCLMC(0.4)
    algorithm = kernel.build(log_density)

    def step(state, key):
        state, info = algorithm.step(key, state)
        return state, (state.position, kernel.stats(state, info))

    start = algorithm.init(jnp.zeros(2), key)
    _, (positions, stats) = jax.jit(lambda: jax.lax.scan(step, start, jax.random.split(key, 2000)))()
    counted = np.asarray(stats["nonfinite_proposal"])
    assert (positions[:, 0] <= 0.5).all()
    assert 20 < counted.sum() < 1000
    stayed = np.all(np.diff(positions, axis=0) == 0, axis=1)
    assert np.array_equal(stayed, counted[1:])
    assert np.isfinite(stats["energy_change"]).all()
    assert (stats["energy_change"][counted] == 0).all()


@pytest.mark.parametrize("kernel", [ebm.MCLMC(), AdjustedMCLMC()], ids=lambda kernel: type(kernel).__name__)
def test_one_dimension_is_refused(kernel, key):
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        ebm.sample(ebm.energies.DoubleWell(), kernel, key=key, progress_bar=False)
