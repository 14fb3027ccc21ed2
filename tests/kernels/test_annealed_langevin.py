"""Annealed Langevin dynamics against the exact mean and variance of every step of its ladder, on normal laws."""

import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from tests.statistics import StatisticalError, assert_iid_mean_close

CENTRE, STEP, NUM_STEPS, CHAINS = 2.0, 0.1, 3, 4000


def smoothed(x, log_scale):
    """N(2, 1) smoothed by noise of scale s: variance 1 + s^2."""
    return jnp.sum((x - CENTRE) ** 2) / (2 * (1 + jnp.exp(2 * log_scale)))


def normal(x):
    return jnp.sum((x - CENTRE) ** 2)  # precision 2


SMOOTHED = ebm.FunctionEnergy(smoothed, (1,), condition_shape=())
LADDERS = {
    "noise_scale": (np.array([5.0, 2.0, 0.5]), SMOOTHED, lambda s: 1 / (1 + s**2), lambda s: s**2),
    "inverse_temperature": (
        np.array([0.05, 0.3, 1.0]),
        ebm.FunctionEnergy(normal, (1,)),
        lambda b: 2 * b,
        lambda b: 1 / b,
    ),
}


def exact_moments(over, widths=None):
    """Mean and variance after all levels, from x = 0: m <- m - h p (m - 2), v <- (1 - h p)^2 v + 2 h."""
    levels, _, precision, schedule = LADDERS[over]
    steps = (
        STEP * (schedule if widths is None else widths)(levels) / (schedule if widths is None else widths)(levels[-1])
    )
    mean, variance = 0.0, 0.0
    for level, step in zip(levels, steps, strict=True):
        for _ in range(NUM_STEPS):
            keep = 1 - step * precision(level)
            mean, variance = CENTRE + keep * (mean - CENTRE), keep**2 * variance + 2 * step
    return mean, variance


def draw(over, key, num_warmup=3 * NUM_STEPS - 1, **settings):
    levels, energy, _, _ = LADDERS[over]
    condition = np.log(np.float32(levels[-1])) if over == "noise_scale" else None
    kernel = ebm.kernels.AnnealedLangevin(levels, STEP, over=over, num_steps=NUM_STEPS)
    settings = {"num_chains": CHAINS, "num_samples": 1, "initial_positions": np.zeros((CHAINS, 1))} | settings
    return ebm.sample(
        energy, kernel, key=key, num_warmup=num_warmup, condition=condition, progress_bar=False, **settings
    )


@pytest.mark.parametrize("over", LADDERS)
def test_every_step_has_its_level_and_its_size(over, key):
    draws = draw(over, key)
    x = draws.positions[:, 0, 0]
    mean, variance = exact_moments(over)
    assert draws.ok
    assert_iid_mean_close(x, mean)
    assert_iid_mean_close((x - mean) ** 2, variance)
    square_root = {"noise_scale": lambda s: s, "inverse_temperature": lambda b: b**-0.5}[over]
    for wrong in (square_root, np.ones_like):  # not squared; the same step at all levels
        twin_mean, twin_variance = exact_moments(over, wrong)
        with pytest.raises(StatisticalError):
            assert_iid_mean_close((x - twin_mean) ** 2, twin_variance)


def test_at_the_last_level_it_is_ula(key):
    x = draw("noise_scale", key, num_warmup=3 * NUM_STEPS + 100).positions[:, 0, 0]
    precision = 1 / 1.25
    assert_iid_mean_close((x - CENTRE) ** 2, 1 / (precision * (1 - STEP * precision / 2)))
    with pytest.raises(StatisticalError):
        assert_iid_mean_close((x - CENTRE) ** 2, 1.2 / precision)


def test_draws_made_on_the_way_are_flagged(key):
    few = {"num_chains": 2, "num_samples": 20, "initial_positions": np.zeros((2, 1))}
    with pytest.warns(ebm.SamplingWarning, match="STILL_ANNEALING.*first 6 of 20"):
        draws = draw("inverse_temperature", key, num_warmup=0, **few)
    assert draws.stats["annealing"].sum(1).tolist() == [6, 6]
    assert draw("inverse_temperature", key, num_warmup=6, **few).ok


def test_a_condition_beside_the_noise_scale_stays(key):
    def energy(x, condition):
        return jnp.sum((x - condition[1]) ** 2) / (2 * (1 + jnp.exp(2 * condition[0])))

    kernel = ebm.kernels.AnnealedLangevin([2.0, 0.5], 0.05, num_steps=50)
    conditions = jnp.array([[-0.7, 40.0], [-0.7, -40.0]])
    settings = {"num_chains": 2, "num_warmup": 100, "num_samples": 200, "progress_bar": False}
    energy = ebm.FunctionEnergy(energy, (1,), condition_shape=(2,))
    draws = ebm.sample(energy, kernel, key=key, condition=conditions, **settings)
    np.testing.assert_allclose(draws.positions.mean((1, 2)), [40.0, -40.0], atol=2.0)


def test_save_and_load(key, tmp_path):
    draws = draw("noise_scale", key)
    again = ebm.Draws.load(draws.save(tmp_path / "draws.npz"))
    assert again.kernel.over == "noise_scale"
    np.testing.assert_array_equal(again.kernel.levels, draws.kernel.levels)


def test_misuse_is_refused(key):
    annealed = ebm.kernels.AnnealedLangevin
    with pytest.raises(ValueError, match="strictly descending"):
        annealed([0.1, 1.0])
    with pytest.raises(ValueError, match="strictly ascending"):
        annealed([1.0, 0.1], over="inverse_temperature")
    with pytest.raises(ValueError, match="at least 2"):
        annealed([1.0])
    with pytest.raises(ValueError, match="`levels` must be positive"):
        annealed([1.0, -1.0])
    with pytest.raises(ValueError, match="`over` must be"):
        annealed([1.0, 0.1], over="noise")
    with pytest.raises(ValueError, match="num_steps"):
        annealed([1.0, 0.1], num_steps=0)
    with pytest.raises(TypeError, match="noise-conditioned"):
        ebm.sample(ebm.FunctionEnergy(normal, (1,)), annealed([1.0, 0.1]), key=key, progress_bar=False)
    with pytest.raises(TypeError, match="noise-conditioned"):
        annealed([1.0, 0.1]).build(lambda x: -normal(x)).init(jnp.zeros(1), key)
