"""The example of the learned noise as a user runs it, and the parts of it that could be wrong unseen."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy.stats import norm

import ebm_ppl as ebm
from tests.example_files import is_png, load, run_short

geyser = load("03_learned_noise")


@pytest.fixture(autouse=True)
def as_a_user_runs_it():
    """Examples broadcast, as NumPy does; the package's own tests forbid it."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_the_short_run_compares_refuses_and_concludes_nothing(tmp_path):
    output = run_short("03_learned_noise", tmp_path / "new")
    for text in ("refused: MissingLogNormalizerError", "Learned noise minus rival", "Pareto k", "verdict: "):
        assert text in output
    assert "Against" not in output  # no verdict on the rivals
    assert is_png(tmp_path / "new" / "learned_noise.png")
    tree = ebm.diagnostics.load_datatree(tmp_path / "new" / "learned_noise.nc")
    assert tree["log_likelihood"]["wait"].shape == (4, geyser.SHORT.num_samples, 148)


def test_small_and_uncertain_differences_say_nothing():
    assert geyser.verdict(30.0, 8.0).endswith("better")
    assert geyser.verdict(-30.0, 8.0).endswith("worse")
    assert geyser.verdict(30.0, 16.0) == geyser.verdict(-3.9, 0.1) == "no difference"


def test_every_noise_integrates_to_one_after_every_wait(key):
    """And not with the log Z that belongs to another wait before."""
    network = eqx.nn.MLP(2, "scalar", width_size=16, depth=2, activation=jnp.tanh, key=key)
    energy = geyser.NoiseEnergy(jax.tree.map(lambda x: 3 * x if eqx.is_array(x) else x, network))
    log_z = ebm.normalizers.quadrature(energy, condition=np.float32(geyser.standardize(geyser.MINUTES))).value
    e = np.random.default_rng(0).normal(size=20).astype(np.float32)
    kernels = geyser.KernelNoise(jnp.asarray(e), jnp.asarray(70 + 10 * e), (0.3, 0.4))
    with numpyro.handlers.seed(rng_seed=0):
        noises = [geyser.LearnedNoise(energy, jnp.asarray(log_z)), kernels, geyser.student(), geyser.two_kinds()]
    before = np.array([43.0, 72.0, 108.0], np.float32)
    for noise in noises:
        np.testing.assert_allclose(integrals(noise(before)), 1, atol=1e-3)
    wrong = geyser.LearnedNoise(energy, jnp.asarray(log_z[::-1]))
    assert np.abs(integrals(wrong(before)) - 1).max() > 0.01


def integrals(distribution):
    e = np.linspace(-80, 80, 16_001, dtype=np.float32)
    return np.exp(distribution.log_prob(e[:, None])).sum(0) * 0.01


def test_a_wait_is_predicted_from_all_others():
    """Normal noise of known scale, no slope: the posterior of the level without a wait is known."""
    wait, scale = np.array([60.0, 70.0, 72.0, 75.0, 85.0], np.float32), 8.0
    rows = np.vstack([np.ones((1, 5)), 1 - np.eye(5)])  # all, and all but one
    variance = 1 / (1 / 20**2 + rows.sum(1) / scale**2)
    mean = variance * (geyser.CENTRE / 20**2 + rows @ wait / scale**2)
    levels = norm.ppf((np.arange(4000) + 0.5) / 4000, mean[0], np.sqrt(variance[0]))
    draws = {"level": levels, "slope": np.zeros(4000), "scale": np.full(4000, scale)}

    class Posterior:
        def get_samples(self):
            return {name: jnp.asarray(values, jnp.float32) for name, values in draws.items()}

    week = geyser.Week(np.full(5, 72.0, np.float32), wait)
    found = geyser.predictive_density(Posterior(), geyser.normal, week, 4000)
    laws = norm(mean[:, None], np.sqrt(variance + scale**2)[:, None])
    np.testing.assert_allclose(found, laws.pdf(geyser.GRID)[1:], atol=3e-4)
    assert np.abs(found - laws.pdf(geyser.GRID)[0]).max() > 2e-3


def test_the_transform_is_the_distribution_function_at_the_middle_of_a_minute():
    density = np.tile(np.where(geyser.GRID < 60.5, 1.0, 0.0), (2, 1))  # uniform on the minutes 20.5 to 59.5
    assert geyser.probability_integral_transform(density, np.array([40.0, 200.0])) == pytest.approx([20 / 40, 1.0])
