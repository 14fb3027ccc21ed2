"""The demo as a user runs it, and the parts of it that could be wrong without anyone seeing it."""

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from tests.statistics import StatisticalError, assert_iid_mean_close, assert_mean_close

ROOT = pathlib.Path(__file__).parent.parent
DEMO = ROOT / "examples" / "01_digits_inpainting.py"
FAST = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # nearly all of a short run is compilation
}


@functools.cache
def demo():
    spec = importlib.util.spec_from_file_location("digits_inpainting", DEMO)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# --- the whole


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "results"  # does not exist yet
    command = [sys.executable, "-W", "error", str(DEMO), "--short", "--output", str(output)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT, env=os.environ | FAST
    )
    return run, output


def test_the_short_run_succeeds_and_prints_table_verdict_and_comparison(short_run):
    run, _ = short_run
    assert run.returncode == 0, run.stderr
    for text in ("ess_bulk", "x[36]", "verdict: ", "R-hat of the worst hidden pixel", "RMSE", "CRPS", "best Gaussian"):
        assert text in run.stdout
    assert "short mode" in run.stdout
    assert "verdict: ok" not in run.stdout  # far too few draws, and it is said


def test_the_short_run_leaves_a_figure_and_readable_draws(short_run):
    run, output = short_run
    assert run.returncode == 0, run.stderr
    assert (output / "digits_inpainting.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    tree = ebm.diagnostics.load_datatree(output / "digits_inpainting.nc")
    settings = demo().SHORT
    assert tree["posterior"]["x"].shape == (8, settings.num_samples, 64)
    assert {"lp", "acceptance_rate", "swap_rate", "step_size"} <= set(tree["sample_stats"].data_vars)
    assert tree["observed_data"]["y"].shape == (32,)


def test_many_devices_as_two_processes_on_loopback(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "02_many_devices.py"), "--launch", "2"]
    settings = FAST | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    run = subprocess.run(
        [*command, "--num-samples", "400", "--output", str(tmp_path / "draws.nc")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=ROOT,
        env=os.environ | settings,
    )
    assert run.returncode == 0, run.stderr
    assert "2 process(es), 2 cpu device(s)" in run.stdout
    assert "8 chains x 400 draws of shape (2,), MALA, ok" in run.stdout
    assert run.stdout.count("verdict: ") == 1  # process 0 speaks
    tree = ebm.diagnostics.load_datatree(tmp_path / "draws.nc")
    assert_mean_close(tree["posterior"]["x"].values[..., 0] ** 2, 4.0)
    assert_mean_close(tree["posterior"]["x"].values[..., 1], 0.0)


# --- the parts


class Ladder(eqx.Module):
    """A lopsided mixture of N(-5, 1) and N(5, 1), widened."""

    def __call__(self, x, log_scale):
        variance = 1 + jnp.exp(2 * log_scale)
        return jnp.logaddexp(
            jnp.log(0.2) - jnp.sum((x + 5) ** 2) / 2 / variance, jnp.log(0.8) - jnp.sum((x - 5) ** 2) / 2 / variance
        )


class NeverSwaps(eqx.Module):
    """Rungs so unlike the target that no swap is accepted: what is left is MALA."""

    def __call__(self, x, log_scale):
        return -jnp.sum((x - 1e3) ** 2) / 2


def replica_draws(ladder, key, num_chains=32, num_draws=600):
    """Positions `(chain, draw)`; all chains start in the minor mode."""
    log_scales = jnp.log(jnp.array([1.5, 3.0, 5.0]))
    kernel = demo().ReplicaExchange(ladder, log_scales, jnp.array([1.0, 3.0, 10.0, 25.0]), 0.5, num_coordinates=1)
    algorithm = kernel.build(lambda x: Ladder()(x, -jnp.inf))

    def advance(state, key):
        state, _ = jax.vmap(algorithm.step)(jax.random.split(key, num_chains), state)
        return state, state.position[:, 0]

    @jax.jit
    def run(starts, key):
        return jax.lax.scan(advance, jax.vmap(algorithm.init)(starts), jax.random.split(key, num_draws))[1]

    return np.asarray(run(jnp.full((num_chains, 1), -5.0), key))[num_draws // 4 :].T


def test_replica_exchange_finds_both_modes_in_their_proportion(key):
    x = replica_draws(Ladder(), key)
    assert_mean_close((x > 0).astype(float), 0.8)
    assert_mean_close(x, 3.0)
    assert_mean_close(x**2, 26.0)
    with pytest.raises(StatisticalError):
        assert_mean_close((x > 0).astype(float), 0.7)


def test_without_swaps_the_chains_stay_where_they_start(key):
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(replica_draws(NeverSwaps(), key).mean(1), 3.0)


class WidenedGaussian(ebm.AbstractEnergy):
    """-log density of N(0, variance I) under added noise, up to a constant where `count` is 1/2 per dimension."""

    variance: jax.Array
    count: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,))
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=(), kw_only=True)

    def __call__(self, x, condition=None):
        total = self.variance + jnp.exp(2 * condition)
        return jnp.sum(x**2) / 2 / total + self.count * len(x) * jnp.log(total)


def slopes_at_the_truth(count, key):
    """Gradient of the loss of each datum in (variance, count), at the true variance."""
    objective = demo().DualScoreMatching(
        ebm.objectives.MultiscaleDenoisingScoreMatching(jnp.array([0.3, 1.0, 2.0])), weight=0.5
    )
    x = jax.random.normal(key, (4000, 2))

    def losses(parameters):
        return objective.evaluate(WidenedGaussian(*parameters), x, key=jax.random.fold_in(key, 1))[0]

    return np.stack(jax.jacobian(losses)((jnp.asarray(1.0), jnp.asarray(count))), axis=1)


def test_dual_score_matching_is_minimal_at_the_normalised_truth(key):
    slopes = slopes_at_the_truth(0.5, key)
    assert_iid_mean_close(slopes[:, 0], 0.0)
    assert_iid_mean_close(slopes[:, 1], 0.0)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(slopes_at_the_truth(0.6, key)[:, 1], 0.0)


def test_scores_of_draws_agree_with_the_closed_form():
    generator = np.random.default_rng(0)
    mean, sd, truth = np.array([[0.2, 0.9, 0.5]]), np.array([0.1, 0.3, 0.2]), np.array([[0.1, 0.5, 1.0]])
    rmse, crps = demo().score_gaussian(mean, sd, truth)
    assert rmse == pytest.approx(np.sqrt([(0.1**2 + 0.4**2 + 0.5**2) / 3]))
    batches = mean + sd * generator.normal(size=(200, 1000, 1, 3))
    scores = np.array([demo().score_draws(batch, truth)[1, 0] for batch in batches])
    assert_iid_mean_close(scores, crps[0])
    with pytest.raises(StatisticalError):  # the absolute error is not the CRPS
        assert_iid_mean_close(np.abs(batches - truth).mean((1, 2, 3)), crps[0])


def test_the_gaussian_posterior_is_that_of_the_information_form():
    module, generator = demo(), np.random.default_rng(0)
    train = generator.normal(size=(500, 64)) @ generator.normal(size=(64, 64))
    y = generator.normal(size=(2, 32))
    mean, sd = module.gaussian_posterior(train, y)
    prior = np.linalg.inv(np.cov(train.T, bias=True))
    seen = np.zeros(64)
    seen[module.VISIBLE] = 1 / module.NOISE**2
    covariance = np.linalg.inv(prior + np.diag(seen))
    evidence = np.zeros((2, 64))
    evidence[:, module.VISIBLE] = y / module.NOISE**2
    np.testing.assert_allclose(mean, (prior @ train.mean(0) + evidence) @ covariance, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sd, np.sqrt(np.diag(covariance)), rtol=1e-6)
