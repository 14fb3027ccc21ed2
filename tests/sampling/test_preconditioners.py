"""Changes of variables: exact inverses, what they learn, and what pooling means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.adaptation.mass_matrix import welford_algorithm

import ebm_ppl as ebm
from ebm_ppl.sampling._low_rank import HISTORY, History, LowRank, initial_preconditioner
from ebm_ppl.sampling._preconditioners import Dense, Diagonal, merge_welford
from tests.statistics import StatisticalError, assert_mean_close

COVARIANCE = np.array([[4.0, 1.9, 0.0], [1.9, 1.0, 0.03], [0.0, 0.03, 0.01]], np.float32)


@pytest.mark.parametrize("name", ["diagonal", "dense"])
def test_the_maps_are_inverse_and_keep_the_event_shape(name, key):
    x = jax.random.normal(key, (3, 2))
    factor = jax.random.normal(jax.random.fold_in(key, 1), (6, 6))
    covariance = factor @ factor.T + jnp.eye(6)
    learnt = initial_preconditioner(name, x, uses_gradient=False)
    learnt = learnt.learn(covariance if name == "dense" else jnp.diagonal(covariance), jnp.asarray(1e9))
    np.testing.assert_allclose(learnt.to_user(learnt.to_whitened(x)), x, rtol=1e-4, atol=1e-5)
    assert learnt.scale.shape == (3, 2)
    np.testing.assert_allclose(learnt.scale.ravel(), np.sqrt(np.diagonal(covariance)), rtol=1e-5)


def test_dense_learns_the_covariance_from_many_draws():
    learnt = initial_preconditioner("dense", jnp.zeros(3), uses_gradient=False).learn(
        jnp.asarray(COVARIANCE), jnp.asarray(1e9)
    )
    image = jax.vmap(learnt.to_user)(jnp.eye(3)).T
    np.testing.assert_allclose(image @ image.T, COVARIANCE, rtol=1e-3, atol=1e-5)


def test_few_draws_are_shrunk_and_stay_invertible():
    """Two draws in three dimensions: the sample covariance is singular, what is learnt is not."""
    singular = jnp.outer(jnp.array([2.0, 1.0, 0.1]), jnp.array([2.0, 1.0, 0.1]))
    learnt = initial_preconditioner("dense", jnp.zeros(3), uses_gradient=False).learn(singular, jnp.asarray(2.0))
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
    pooled = merge_welford(per_chain)
    covariance = np.cov(np.asarray(draws).reshape(120, 3).T)
    expected = np.diagonal(covariance) if diagonal else covariance
    np.testing.assert_allclose(pooled.m2 / (pooled.sample_size - 1), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled.mean, np.asarray(draws).mean((0, 1)), rtol=1e-4)


def spiked(size=30, seed=0):
    """diag(s) (I + U diag(l - 1) U') diag(s): two wide and two narrow directions on top of unequal scales."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(size=size))
    directions, _ = np.linalg.qr(rng.normal(size=(size, 4)))
    inner = np.eye(size) + (directions * (np.array([100.0, 25.0, 0.01, 0.04]) - 1)) @ directions.T
    return scales[:, None] * inner * scales[None, :]


def gathered(covariance, num_draws, key):
    """A window of draws of N(1, covariance) and its scores, as the warm-up gathers them from an identity map."""
    factor = np.linalg.cholesky(covariance)
    draws = 1 + np.asarray(jax.random.normal(key, (num_draws, len(covariance)))) @ factor.T
    scores = -np.linalg.solve(covariance, (draws - 1).T).T
    rank = initial_preconditioner("low_rank", jnp.zeros(len(covariance)))

    def observe(moments, row):
        return rank.observe(moments, *row, jnp.ones((), bool)), None

    rows = jnp.asarray(draws, jnp.float32), jnp.asarray(scores, jnp.float32)
    return rank, jax.jit(lambda rows: jax.lax.scan(observe, rank.start_moments(), rows)[0])(rows)


@jax.jit
def learn(rank, moments):
    return rank.learn_from(moments)


def condition_number(preconditioner, covariance):
    """Of the target in whitened coordinates: 1 is perfect."""
    whitened = jax.vmap(preconditioner.to_whitened)(jnp.asarray(np.linalg.cholesky(covariance).T, jnp.float32))
    return np.linalg.cond(np.asarray(whitened)) ** 2


def test_low_rank_maps_are_inverse_and_transpose(key):
    covariance = spiked(6)[:6, :6]
    rank, moments = gathered(covariance, 100, key)
    learnt = learn(rank, moments)
    x = jax.random.normal(key, (6,))
    np.testing.assert_allclose(learnt.to_user(learnt.to_whitened(x)), x, rtol=1e-3, atol=1e-4)
    matrix = np.asarray(jax.vmap(learnt.to_user)(jnp.eye(6)).T, float)
    np.testing.assert_allclose(learnt.scale, np.sqrt(np.diagonal(matrix @ matrix.T)), rtol=1e-4)
    # what is remembered is the gradient with respect to x, whatever the coordinates it came from
    gradient = jnp.asarray(matrix.T @ np.arange(6.0), jnp.float32)
    seen = learnt.observe(learnt.start_moments(), x, gradient, jnp.ones((), bool))
    np.testing.assert_allclose(seen.gradients[0], np.arange(6.0), rtol=1e-2, atol=1e-2)
    unwanted = learnt.observe(seen, 2 * x, x, jnp.zeros((), bool))
    assert all(np.array_equal(a, b) for a, b in zip(unwanted, seen, strict=True))


def test_low_rank_learns_wide_and_narrow_directions_from_few_draws(key):
    """50 draws in 30 dimensions tell four directions from 0.01 to 100: with gradients, not from a covariance alone."""
    covariance = spiked()
    rank, moments = gathered(covariance, 50, key)
    from_gradients = condition_number(learn(rank, moments), covariance)
    dense = initial_preconditioner("dense", jnp.zeros(30), uses_gradient=False)
    sample_covariance = jnp.asarray(np.cov(np.asarray(moments.positions[:50]).T), jnp.float32)
    assert from_gradients < 20
    assert from_gradients < condition_number(dense.learn(sample_covariance, jnp.asarray(50.0)), covariance) / 10
    assert condition_number(rank, covariance) > 1e3


def test_low_rank_keeps_its_map_where_nothing_moved():
    start = LowRank(jnp.array([3.0, 5.0]), jnp.zeros((2, 10)), jnp.ones(10))
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(HISTORY, 2)), jnp.float32)
    for positions, gradients in [
        (rows.at[:, 0].set(1.0), rows),
        (rows, rows.at[:, 1].set(0.0)),
        (rows * jnp.nan, rows),
    ]:
        learnt = learn(start, History(positions, gradients, jnp.asarray(50, jnp.int32)))
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(learnt), jax.tree.leaves(start), strict=True))


def test_low_rank_learns_in_double_precision_too():
    with jax.enable_x64(True):
        identity = initial_preconditioner("low_rank", jnp.zeros(2))
        learnt = jax.eval_shape(lambda: identity.learn_from(identity.start_moments()))
    assert {leaf.dtype for leaf in jax.tree.leaves(learnt)} == {jnp.dtype("float64")}


def test_pooled_histories_hold_the_draws_of_all_chains():
    rows = jnp.arange(3 * HISTORY * 2, dtype=jnp.float32).reshape(3, HISTORY, 2)
    pooled = initial_preconditioner("low_rank", jnp.zeros(2)).pool(History(rows, -rows, jnp.full(3, 5, jnp.int32)))
    valid = pooled.positions[: int(pooled.seen)]
    assert np.array_equal(np.unique(valid[:, 0]), np.unique(rows[:, :5, 0]))
    assert np.array_equal(pooled.gradients, -pooled.positions)


OTHERS = [ebm.Barker(), ebm.HMC(), ebm.NUTS(), ebm.kernels.AdjustedMCLMC(), ebm.kernels.GeneralizedHMC()]
GRADIENT_KERNELS = [ebm.MALA(), *(pytest.param(kernel, marks=pytest.mark.slow) for kernel in OTHERS)]


@pytest.mark.parametrize("kernel", GRADIENT_KERNELS, ids=lambda kernel: type(kernel).__name__)
def test_low_rank_serves_every_gradient_kernel(kernel, key):
    covariance = spiked(5)[:5, :5]
    covariance = (covariance + covariance.T) / 2
    energy = ebm.energies.Gaussian(jnp.arange(5.0), jnp.asarray(covariance, jnp.float32))
    settings = {"num_chains": 8, "num_warmup": 400, "num_samples": 1000, "progress_bar": False}
    draws = ebm.sample(energy, kernel, key=key, precondition="low_rank", pool_warmup=True, **settings)
    assert draws.ok
    assert_mean_close(draws.positions, np.arange(5.0))
    assert_mean_close((draws.positions - np.arange(5.0)) ** 2, np.diagonal(covariance))
    np.testing.assert_allclose(draws.scale[0], np.sqrt(np.diagonal(covariance)), rtol=0.3)
    with pytest.raises(StatisticalError):  # the Jacobian is constant, the scale is not
        assert_mean_close((draws.positions - np.arange(5.0)) ** 2, 1.2 * np.diagonal(covariance))


def test_low_rank_is_refused_without_gradients(key):
    with pytest.raises(ValueError, match="RandomWalk computes none"):
        ebm.sample(ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2)), ebm.RandomWalk(), key=key, precondition="low_rank")


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


def window_of(preconditioner, covariance, num_draws, key):
    """Draws and scores of N(0, covariance) as a window gathers them."""
    draws = np.asarray(jax.random.normal(key, (num_draws, len(covariance)))) @ np.linalg.cholesky(covariance).T
    rows = jnp.asarray(draws, jnp.float32), jnp.asarray(-np.linalg.solve(covariance, draws.T).T, jnp.float32)
    wanted = jnp.ones((), bool)
    return jax.jit(
        lambda rows: jax.lax.scan(
            lambda moments, row: (preconditioner.observe(moments, *row, wanted), None),
            preconditioner.start_moments(),
            rows,
        )[0]
    )(rows)


def test_dense_with_gradients_is_exact_on_a_normal_law_from_few_draws(key):
    covariance = spiked(10)
    start = initial_preconditioner("dense", jnp.zeros(10))
    learnt = learn(start, window_of(start, covariance, 25, key))
    assert condition_number(learnt, covariance) < 1.2  # 1 but for rounding and the prior's weight
    np.testing.assert_allclose(learnt.scale, np.sqrt(np.diagonal(covariance)), rtol=0.2)
    x = jax.random.normal(key, (10,))
    np.testing.assert_allclose(learnt.to_user(learnt.to_whitened(x)), x, rtol=1e-3, atol=1e-3)
    from_draws = initial_preconditioner("dense", jnp.zeros(10), uses_gradient=False)
    assert condition_number(learn(from_draws, window_of(from_draws, covariance, 25, key)), covariance) > 5
    # fewer draws than dimensions: finite and invertible
    few = learn(start, window_of(start, covariance, 5, key))
    assert condition_number(few, covariance) < condition_number(start, covariance)
