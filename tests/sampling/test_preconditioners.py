"""Changes of variables: exact inverses, what they learn, and what pooling means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.adaptation.mass_matrix import welford_algorithm

import ebm_ppl as ebm
from ebm_ppl.sampling._preconditioners import Dense, Diagonal, initial_preconditioner
from ebm_ppl.sampling._run_chains import pooled_moments
from tests.statistics import assert_mean_close

COVARIANCE = np.array([[4.0, 1.9, 0.0], [1.9, 1.0, 0.03], [0.0, 0.03, 0.01]], np.float32)


@pytest.mark.parametrize("name", ["diagonal", "dense"])
def test_the_maps_are_inverse_and_keep_the_event_shape(name, key):
    x = jax.random.normal(key, (3, 2))
    factor = jax.random.normal(jax.random.fold_in(key, 1), (6, 6))
    covariance = factor @ factor.T + jnp.eye(6)
    learnt = initial_preconditioner(name, x)
    learnt = learnt.learn(covariance if name == "dense" else jnp.diagonal(covariance), jnp.asarray(1e9))
    np.testing.assert_allclose(learnt.to_user(learnt.to_whitened(x)), x, rtol=1e-4, atol=1e-5)
    assert learnt.scale.shape == (3, 2)
    np.testing.assert_allclose(learnt.scale.ravel(), np.sqrt(np.diagonal(covariance)), rtol=1e-5)


def test_dense_learns_the_covariance_from_many_draws():
    learnt = initial_preconditioner("dense", jnp.zeros(3)).learn(jnp.asarray(COVARIANCE), jnp.asarray(1e9))
    image = jax.vmap(learnt.to_user)(jnp.eye(3)).T
    np.testing.assert_allclose(image @ image.T, COVARIANCE, rtol=1e-3, atol=1e-5)


def test_few_draws_are_shrunk_and_stay_invertible():
    """Two draws in three dimensions: the sample covariance is singular, what is learnt is not."""
    singular = jnp.outer(jnp.array([2.0, 1.0, 0.1]), jnp.array([2.0, 1.0, 0.1]))
    learnt = initial_preconditioner("dense", jnp.zeros(3)).learn(singular, jnp.asarray(2.0))
    assert np.linalg.cond(np.asarray(learnt.factor)) < 10
    weight = 2 / 7  # count / (count + 5)
    np.testing.assert_allclose(learnt.scale, np.array([2.0, 1.0, 0.1]) ** weight, rtol=1e-5)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_coordinate_that_did_not_move_keeps_its_scale(bad):
    diagonal = Diagonal(jnp.array([3.0, 5.0])).learn(jnp.array([bad, 4.0]), jnp.asarray(1e9))
    np.testing.assert_allclose(diagonal.scale, [3.0, 2.0], rtol=1e-6)
    dense = Dense(jnp.array([3.0, 5.0]), jnp.eye(2)).learn(jnp.diag(jnp.array([bad, 4.0])), jnp.asarray(1e9))
    np.testing.assert_allclose(dense.scale, [3.0, 2.0], rtol=1e-6)
    assert np.array_equal(dense.factor, np.eye(2))


@pytest.mark.parametrize("diagonal", [True, False])
def test_pooled_moments_are_those_of_all_draws_together(diagonal, key):
    draws = jax.random.normal(key, (4, 30, 3)) + jnp.arange(4.0)[:, None, None]
    init, update, _ = welford_algorithm(is_diagonal_matrix=diagonal)

    def moments(draws):
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), init(3))
        for draw in draws:
            state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), update(state, draw))
        return state

    per_chain = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[moments(chain) for chain in draws])
    pooled = pooled_moments(per_chain)
    covariance = np.cov(np.asarray(draws).reshape(120, 3).T)
    expected = np.diagonal(covariance) if diagonal else covariance
    np.testing.assert_allclose(pooled.m2[0] / (pooled.sample_size[0] - 1), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled.mean[2], np.asarray(draws).mean((0, 1)), rtol=1e-4)


@pytest.mark.parametrize("pool_warmup", [False, True])
def test_dense_sampling_of_a_correlated_normal(pool_warmup, key):
    energy = ebm.energies.Gaussian(jnp.array([1.0, -2.0, 0.5]), jnp.asarray(COVARIANCE))
    draws = ebm.sample(
        energy,
        key=key,
        num_chains=16,
        num_warmup=400,
        precondition="dense",
        pool_warmup=pool_warmup,
        progress_bar=False,
    )
    assert_mean_close(draws.positions, [1.0, -2.0, 0.5])
    centred = draws.positions - np.array([1.0, -2.0, 0.5])
    assert_mean_close(np.einsum("cdi,cdj->cdij", centred, centred), COVARIANCE)
    if pool_warmup:
        assert np.ptp(draws.stats["step_size"]) == 0
        assert np.ptp(draws.scale, axis=0).max() == 0


def integrated_time(energy, precondition, key):
    import arviz_stats

    draws = ebm.sample(energy, key=key, num_chains=4, num_warmup=2000, num_samples=4000, precondition=precondition,
                       pool_warmup=True, progress_bar=False)  # fmt: skip
    ess = [
        arviz_stats.base.array_stats.ess(draws.positions[..., i], method="bulk") for i in range(energy.event_shape[0])
    ]
    return draws, float(np.min(ess)) / (4 * 4000)


@pytest.mark.slow
def test_dense_preconditioning_multiplies_the_effective_sample_size(key):
    """Normal, d = 100, condition number 100, rotated: at least ten times the ESS per gradient of plain MALA."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(100, 100)))[0]
    covariance = jnp.asarray((rotation * np.geomspace(0.1, 10, 100)) @ rotation.T, jnp.float32)
    energy = ebm.energies.Gaussian(jnp.zeros(100), (covariance + covariance.T) / 2)
    _, plain = integrated_time(energy, "none", key)
    _, dense = integrated_time(energy, "dense", key)
    assert dense > 10 * plain
