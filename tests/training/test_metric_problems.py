"""Persistent contrastive divergence inside `fit`: what it finds, and what its metrics say when it goes wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ebm_ppl as ebm
from ebm_ppl.objectives import ContrastiveDivergence, PersistentContrastiveDivergence, ReplayBuffer
from ebm_ppl.training._metric_problems import metric_problems
from tests.compilation import count_lowerings
from tests.objectives.estimation import isotropic_energy
from tests.statistics import StatisticalError, assert_close

DECAYING = optax.sgd(optax.cosine_decay_schedule(0.2, 1000))
FAST = optax.sgd(0.1)


def fit(data, objective, **settings):
    settings = {"key": jax.random.key(7), "optimizer": FAST, "num_steps": 30, "progress_bar": False} | settings
    return ebm.fit(isotropic_energy(jnp.asarray(1.0), data.shape[1:]), data, objective, **settings)


def check_precision(kernel, key, *, expected=2.0):
    """Data N(0, 1/2) in two dimensions: 2, within the error of maximum likelihood, 2 / sqrt(n)."""
    data = jax.random.normal(key, (4000, 2)) / np.sqrt(2)
    objective = PersistentContrastiveDivergence(kernel, 2, num_particles=1000)
    result = fit(data, objective, optimizer=DECAYING, num_steps=1000, batch_size=500)
    assert_close(result.model.params, expected, 2 / np.sqrt(4000), what="precision")
    return result


def test_persistent_chains_find_the_precision(key):
    result = check_precision(ebm.MALA(0.4), key)
    assert result.ok
    assert isinstance(result.objective_state, ReplayBuffer)
    assert np.sum(result.objective_state.visits) == 1000 * 500
    assert result.metrics["buffer_coverage"][-1] == 1
    np.testing.assert_allclose(result.metrics["buffer_age"], np.arange(1, 1001), rtol=1e-5)  # half of them, 2 steps
    assert 0.5 < result.metrics["acceptance_rate"][-1] < 1
    assert np.all(result.metrics["nonfinite_negatives"] == 0)


def test_the_bias_of_an_unadjusted_kernel_fails(key):
    """(1 - sqrt(1 - 4h)) / h, where ULA's stationary variance is that of the data (TRUTHS D1, variance 1/2)."""
    with pytest.raises(StatisticalError):
        check_precision(ebm.ULA(0.1), key)
    check_precision(ebm.ULA(0.1), key, expected=(1 - np.sqrt(0.6)) / 0.1)


def test_other_hyperparameters_compile_nothing(key):
    data = jax.random.normal(key, (60, 2))
    fit(data, PersistentContrastiveDivergence(ebm.MALA(0.4), num_particles=50, refresh_rate=0.1))
    with count_lowerings() as lowerings:
        fit(data, PersistentContrastiveDivergence(ebm.MALA(0.3), num_particles=50, refresh_rate=0.2))
    assert lowerings == []


def test_negatives_that_never_move_are_named(key):
    data = jax.random.normal(key, (60, 2))
    objective = ContrastiveDivergence(ebm.MALA(1e4), 1)
    with pytest.warns(ebm.SamplingWarning, match="NEGATIVES_STUCK: the chains of the negatives accepted 0 %"):
        result = fit(data, objective)
    assert [problem.code for problem in result.problems] == ["NEGATIVES_STUCK"]
    assert result.problems[0].value == 0
    assert fit(data, ContrastiveDivergence(ebm.MALA(0.3), 1)).ok


def tilted(slope, x):
    return slope * jnp.sum(x)


def test_energies_that_drift_apart_are_named(key):
    """No lower bound, and a learning rate of the wrong sign: the slope grows, the gap as its square."""
    model = ebm.FunctionEnergy(tilted, (2,), jnp.asarray(-0.1))
    settings = {"key": key, "optimizer": optax.sgd(-0.1), "num_steps": 60, "progress_bar": False}
    with pytest.warns(ebm.SamplingWarning, match="ENERGIES_DRIFTING_APART"):
        result = ebm.fit(model, jax.random.normal(key, (60, 2)), ContrastiveDivergence(ebm.ULA(0.1), 5), **settings)
    assert [problem.code for problem in result.problems] == ["ENERGIES_DRIFTING_APART"]
    assert result.problems[0].value > 10


def codes(**metrics):
    length = len(next(iter(metrics.values())))
    return [problem.code for problem in metric_problems({"loss": np.zeros(length)} | metrics)]


STEPS = np.arange(200.0)
NOISE = np.random.default_rng(0).normal(size=200)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"accuracy": 0 * STEPS}, []),
        ({"acceptance_rate": np.where(STEPS < 150, 0.5, 0.0)}, ["NEGATIVES_STUCK"]),
        ({"acceptance_rate": np.where(STEPS < 150, 0.0, 0.5)}, []),
        ({"acceptance_rate": 0 * STEPS[:10]}, []),  # too short to say
        ({"nonfinite_negatives": STEPS % 3}, ["NEGATIVES_STUCK"]),
        ({"nonfinite_negatives": (STEPS % 10) == 0}, []),
        ({"energy_gap": -np.exp(STEPS / 40)}, ["ENERGIES_DRIFTING_APART"]),
        ({"energy_gap": np.exp(STEPS / 2.26).astype(np.float32)}, ["ENERGIES_DRIFTING_APART"]),  # nearly overflows
        ({"energy_gap": STEPS + 5 * NOISE}, ["ENERGIES_DRIFTING_APART"]),
        ({"energy_gap": np.exp(STEPS / 100)}, []),  # grows, and is small
        ({"energy_gap": 100 + 5 * NOISE}, []),  # large, and stays
        ({"energy_gap": 100 * np.exp(-((STEPS - 60) ** 2) / 800)}, []),  # comes and goes
        ({"energy_gap": 30 * NOISE}, []),
    ],
)
def test_what_metrics_say(metrics, expected):
    assert codes(**metrics) == expected
