"""Kernel Stein discrepancies against closed forms, and p-values that are calibrated for dependent draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.diagnostics import _kernel_stein_discrepancy as module
from ebm_ppl.diagnostics import kernel_stein_discrepancy
from ebm_ppl.diagnostics._stein_kernels import random_features, stein_matrix
from tests.diagnostics import chains
from tests.diagnostics.test_stein_test import CORRELATED, HEAVY, SKEWED, most_rejections
from tests.statistics import StatisticalError, assert_close, assert_iid_mean_close

NORMAL = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1))
GAUSSIAN = {"kernel": "gaussian", "bandwidth": 1.0}


def row(verdict):
    return float(verdict.table["value"]), float(verdict.table["standard_error"])


@pytest.mark.parametrize("kernel", ["imq", "gaussian"])
def test_stein_kernel_equals_automatic_differentiation(kernel):
    rng = np.random.default_rng(0)
    points, scores = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))

    def base(x, y):
        q = jnp.sum((x - y) ** 2) / 1.7**2
        return jnp.exp(-0.5 * q) if kernel == "gaussian" else 1 / jnp.sqrt(1 + q)

    def stein(x, y, s, t):
        mixed = jnp.trace(jax.jacfwd(jax.grad(base, 1), 0)(x, y))
        return base(x, y) * (s @ t) + s @ jax.grad(base, 1)(x, y) + t @ jax.grad(base, 0)(x, y) + mixed

    with jax.enable_x64(True):
        x, s = jnp.asarray(points), jnp.asarray(scores)
        expected = jax.vmap(lambda a, c: jax.vmap(lambda b, d: stein(a, b, c, d))(x, s))(x, s)
        expected = np.asarray(expected)
    np.testing.assert_allclose(stein_matrix(points, scores, kernel=kernel, bandwidth=1.7), expected, atol=1e-12)


@pytest.mark.parametrize(("dim", "expected"), [(1, 0.577350269), (5, 0.064150030)])
def test_shifted_normal(dim, expected, key):
    """KSD² of N(mu, I) from N(0, I), Gaussian kernel with l = 1: |mu|² 3^(-d/2)."""
    energy = ebm.energies.Gaussian(jnp.zeros(dim), jnp.eye(dim))
    mean = np.eye(dim)[0]
    noise = np.asarray(jax.random.normal(key, (4, 400, dim)))
    verdict = kernel_stein_discrepancy(noise + mean, energy, key=key, max_points=1600, **GAUSSIAN)
    value, error = row(verdict)
    assert_close(value, expected, error)
    assert not verdict.ok
    value, error = row(kernel_stein_discrepancy(noise + 1.5 * mean, energy, key=key, max_points=1600, **GAUSSIAN))
    with pytest.raises(StatisticalError):
        assert_close(value, expected, error)


def test_wrong_variance(key):
    """KSD² of N(0, 2) from N(0, 1), Gaussian kernel with l = 1: .0894427."""
    draws = np.sqrt(2.0) * jax.random.normal(key, (4, 400, 1))
    verdict = kernel_stein_discrepancy(draws, NORMAL, key=key, max_points=1600, **GAUSSIAN)
    assert_close(row(verdict)[0], 0.089442719, row(verdict)[1])


def test_v_statistic_exceeds_u_by_its_diagonal(key):
    """n V - (n - 1) U = mean of u(x, x) = 1/l² + mean of s², whose expectation is 2."""
    draws = np.asarray(jax.random.normal(key, (4, 250, 1)), np.float64)
    values = {
        name: row(kernel_stein_discrepancy(draws, NORMAL, key=key, statistic=name, **GAUSSIAN))[0] for name in "uv"
    }
    diagonal = 1000 * values["v"] - 999 * values["u"]
    assert diagonal == pytest.approx(1 + (draws**2).mean(), rel=1e-5)
    assert_iid_mean_close(1 + draws.reshape(-1) ** 2, 2.0)


def test_random_features_have_the_stein_kernel_as_their_mean():
    rng = np.random.default_rng(0)
    points, scores = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    count = 40_000
    features = random_features(
        points,
        scores,
        frequencies=rng.normal(size=(count, 2)) / 1.5,
        phases=rng.uniform(0, 2 * np.pi, count),
    ).reshape(5, count, 2)
    products = count * np.einsum("ikd,jkd->kij", features, features)
    exact = stein_matrix(points, scores, kernel="gaussian", bandwidth=1.5)
    assert_iid_mean_close(products, exact)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(products, stein_matrix(points, -scores, kernel="gaussian", bandwidth=1.5))


def test_random_features_agree_with_all_pairs_and_use_all_draws(key):
    draws = 0.5 + jax.random.normal(key, (4, 2000, 1))
    verdict = kernel_stein_discrepancy(draws, NORMAL, key=key, num_features=200, num_bootstrap=100, **GAUSSIAN)
    assert int(verdict.table["num_points"]) * int(verdict.table["thinning"]) == 8000
    assert row(verdict)[0] == pytest.approx(0.25 * 0.577350269, rel=0.25)  # 200 features: sd of about 5 %
    assert not verdict.ok


@pytest.mark.parametrize("options", [{}, {"kernel": "gaussian", "num_features": 50}], ids=["all pairs", "features"])
def test_right_draws_are_rejected_at_the_stated_rate_at_most(options, key):
    options = {"num_bootstrap": 199, "level": 0.05, **options}
    for energy, coefficient in ((SKEWED, None), (NORMAL, 0.7)):
        if coefficient is None:
            runs = np.asarray(energy.sample(key, (30, 4, 60)))
        else:
            rng = np.random.default_rng(0)
            runs = np.stack([chains.autoregressive(rng, coefficient, 4, 300)[..., None] for _ in range(30)])
        keys = jax.random.split(key, 30)
        rejected = sum(
            not kernel_stein_discrepancy(one, energy, key=k, **options).ok for one, k in zip(runs, keys, strict=True)
        )
        assert rejected <= most_rejections(30, 0.05)


def test_signs_that_ignore_dependence_reject_right_draws(key, monkeypatch):
    """The broken twin: independent signs on an AR(1) with coefficient .7, not thinned, are far too sure."""
    thin = module._thin

    def careless(draws, scores, max_points):
        sample = thin(draws, scores, max_points)
        return type(sample)(draws.reshape(-1, 1), scores.reshape(-1, 1), len(draws), 1, 0.5)

    monkeypatch.setattr(module, "_thin", careless)
    rng = np.random.default_rng(0)
    runs = [chains.autoregressive(rng, 0.7, 4, 100)[..., None] for _ in range(40)]
    keys = jax.random.split(key, 40)
    rejected = sum(
        not kernel_stein_discrepancy(one, NORMAL, key=k, num_bootstrap=199, level=0.05).ok
        for one, k in zip(runs, keys, strict=True)
    )
    assert rejected > most_rejections(40, 0.05)


@pytest.mark.parametrize("energy", [SKEWED, HEAVY, CORRELATED], ids=["skewed", "heavy tails", "correlated"])
def test_wrong_draws_are_rejected(energy, key):
    draws = np.asarray(energy.sample(key, (4, 250)))
    assert kernel_stein_discrepancy(draws, energy, key=key).ok
    assert not kernel_stein_discrepancy(1.3 * draws + 0.2, energy, key=key).ok


def test_draws_that_cannot_be_judged_do_not_pass(key):
    rng = np.random.default_rng(0)
    scalar = ebm.energies.Gaussian(jnp.zeros(()), jnp.ones(()))
    kink = ebm.FunctionEnergy(lambda x: jnp.sqrt(jnp.abs(x)), ())
    cases = [
        ("NONFINITE_DRAW", chains.one_infinity(rng), scalar),
        ("STUCK_CHAIN", chains.frozen_together(rng), scalar),
        ("TOO_SHORT", rng.normal(size=(4, 5)), scalar),
        ("TOO_SHORT", chains.autoregressive(rng, 0.98, 2, 400), scalar),
        ("NONFINITE_ENERGY", rng.normal(size=(4, 100)).round(1), kink),
    ]
    for code, draws, energy in cases:
        verdict = kernel_stein_discrepancy(draws, energy, key=key)
        assert not verdict.ok
        assert verdict.problems[0].code == code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "laplace"}, "`kernel` must be one of"),
        ({"statistic": "w"}, "`statistic` must be 'u' or 'v'"),
        ({"level": 0.0}, "`level` must be between 0 and 1"),
        ({"num_features": 10}, "`num_features` needs kernel='gaussian'"),
        ({"bandwidth": -1.0}, "`bandwidth` must be positive"),
        ({"num_bootstrap": 0}, "`num_bootstrap` must be an integer >= 1"),
        ({"max_points": 10}, "`max_points` must be an integer >= 50"),
    ],
)
def test_options_are_checked(options, message, key):
    with pytest.raises(ValueError, match=message):
        kernel_stein_discrepancy(np.random.default_rng(0).normal(size=(4, 100, 1)), NORMAL, key=key, **options)


def test_equal_keys_give_equal_verdicts(key):
    draws = jax.random.normal(key, (4, 100, 1))
    first, second, other = (
        kernel_stein_discrepancy(draws, NORMAL, key=k).p_value for k in (key, key, jax.random.key(99))
    )
    assert first == second != other
