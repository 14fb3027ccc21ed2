"""Exact draws against exact moments; each test also sees its broken twin fail."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from ebm_ppl.energies import Banana, DoubleWell, Funnel, GaussianMixture, ManyWell, Ring, Rosenbrock, StudentT
from tests.statistics import StatisticalError, assert_iid_mean_close

N = 4000


def expectations(log_density, functions, lower, upper):
    """Expectations under an unnormalised one-dimensional log density, by quadrature."""
    x = np.linspace(lower, upper, 20_001)
    density = np.exp(log_density(x))
    return np.array([integrate.trapezoid(f(x) * density, x) for f in functions]) / integrate.trapezoid(density, x)


def check(statistics, draws, expected, broken):
    assert_iid_mean_close(statistics(np.asarray(draws, float)), expected)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(statistics(np.asarray(broken, float)), expected)


@pytest.mark.parametrize("barrier", [0.01, 0.3, 0.7, 4.0, 60.0])
def test_double_well(barrier, key):
    """Both envelopes; each coordinate by itself. Twin: a barrier off by a third."""
    powers = [lambda x: x, lambda x: x**2, lambda x: x**4, lambda x: (x**2 - 1) ** 2]
    reach = np.sqrt(1 + np.sqrt(40 / barrier))
    expected = expectations(lambda x: -barrier * (x**2 - 1) ** 2, powers, -reach, reach)

    def statistics(draws):
        return np.concatenate([np.stack([f(draws[:, i]) for f in powers], 1) for i in range(2)], 1)

    draws = DoubleWell(barrier, dim=2).sample(key, (N,))
    check(statistics, draws, np.tile(expected, 2), DoubleWell(barrier * 1.5, dim=2).sample(key, (N,)))


def test_double_well_truths(key):
    """Truths A3': E x² and E x⁴."""
    for barrier, second, fourth in (
        (1.0, 0.83274548712838, 1.0827454871283801),
        (8.0, 0.9644563638689209, 0.9957063638689209),
    ):
        draws = np.asarray(DoubleWell(barrier).sample(key, (N,)))[:, 0]
        assert_iid_mean_close(np.stack([draws**2, draws**4], 1), [second, fourth])


def test_mixture(key):
    """Twin: equal weights."""
    means, covariances = (
        np.array([[-1.0, 0.5], [2.0, 0.0]]),
        np.array([[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.2], [-0.2, 0.6]]]),
    )
    weights = np.array([0.3, 0.7])
    seconds = covariances + means[:, :, None] * means[:, None, :]

    def statistics(draws):
        return np.concatenate([draws, (draws[:, :, None] * draws[:, None, :]).reshape(N, 4)], 1)

    expected = np.concatenate([weights @ means, np.einsum("k,kij->ij", weights, seconds).ravel()])
    draws = GaussianMixture(weights, means, covariances).sample(key, (N,))
    check(statistics, draws, expected, GaussianMixture([0.5, 0.5], means, covariances).sample(key, (N,)))


def test_scalar_mixture(key):
    """Twin: standard deviations taken for variances."""
    expected = [1.1, 0.3 * 1.25 + 0.7 * 4.04]
    draws = GaussianMixture([0.3, 0.7], [-1.0, 2.0], [0.25, 0.04]).sample(key, (N,))
    broken = GaussianMixture([0.3, 0.7], [-1.0, 2.0], [0.5, 0.2]).sample(key, (N,))
    check(lambda x: np.stack([x, x**2], 1), draws, expected, broken)


def test_funnel(key):
    """E log|x| = E v/2 + E log|ξ|, and v goes with log|x|. Twin: the funnel upside down."""
    expected = [0, 9, -(np.euler_gamma + np.log(2)) / 2, 4.5, 1]

    def statistics(draws):
        v, log_x = draws[:, 0], np.log(np.abs(draws[:, 1]))
        return np.stack([v, v**2, log_x, v * log_x, draws[:, 2] ** 2 * np.exp(-v)], 1)

    draws = Funnel(dim=3).sample(key, (N,))
    check(statistics, draws, expected, draws * jnp.array([[-1.0, 1.0, 1.0]]))


def test_banana(key):
    """Twin: bent the other way."""
    curvature, scale = 0.03, 10.0
    expected = [0, scale**2, 0, 1 + 2 * curvature**2 * scale**4, -2 * curvature * scale**4, 0, 1]

    def statistics(draws):
        x, y, z = draws.T
        return np.stack([x, x**2, y, y**2, x**2 * y, z, z**2], 1)

    draws = Banana(curvature, scale, dim=3).sample(key, (N,))
    check(statistics, draws, expected, Banana(-curvature, scale, dim=3).sample(key, (N,)))


def test_rosenbrock(key):
    """Truths A6; twin: both precisions half of what they should be."""
    expected = [1, 11, 11, 240.1 + 121, 0, 0.1]

    def statistics(draws):
        x, y = draws.T
        return np.stack([x, x**2, y, y**2, y - x**2, (y - x**2) ** 2], 1)

    draws = Rosenbrock(1 / 20, 5.0).sample(key, (N,))
    check(statistics, draws, expected, Rosenbrock(1 / 40, 2.5).sample(key, (N,)))


def test_rosenbrock_chain(key):
    """Twin: the chain run backwards."""
    draws = Rosenbrock(2.0, 5.0, dim=3).sample(key, (N,))
    steps = lambda x: (x[:, 1:] - x[:, :-1] ** 2) ** 2  # noqa: E731
    check(steps, draws, [0.1, 0.1], draws[:, ::-1])


def test_ring(key):
    """Twin: the radius normal, its Jacobian forgotten."""
    radius, width = 1.0, 0.5
    functions = [lambda r: r, lambda r: r**2, lambda r: r**4]
    expected = expectations(
        lambda r: np.log(np.maximum(r, 1e-300)) - (r**2 - radius**2) ** 2 / (8 * (radius * width) ** 2), functions, 0, 4
    )

    def statistics(draws):
        r = np.hypot(*draws.T)
        return np.concatenate([np.stack([f(r) for f in functions], 1), draws, draws[:, :1] * draws[:, 1:]], 1)

    draws = Ring(radius, width).sample(key, (N,))
    r = np.hypot(*np.asarray(draws).T)
    wrong = np.abs(np.random.default_rng(0).normal(radius, width, N)) / r
    check(statistics, draws, [*expected, 0, 0, 0], draws * jnp.asarray(wrong[:, None], jnp.float32))


def test_many_well(key):
    """Twin: both wells equally likely."""
    functions = [lambda x: x, lambda x: x**2, lambda x: x**3, lambda x: (x > 0).astype(float)]
    well = expectations(lambda x: -(x**4) + 6 * x**2 + x / 2 - 9, functions, -5, 5)

    def statistics(draws):
        wells = np.stack([f(draws[:, 2]) for f in functions], 1)
        return np.concatenate([wells, draws[:, 3:], draws[:, 3:] ** 2, draws[:, 2:3] * draws[:, :1]], 1)

    draws = ManyWell(dim=4).sample(key, (N,))
    signs = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], (N, 4)), jnp.float32)
    check(statistics, draws, [*well, 0, 1, well[0] ** 2], signs * jnp.abs(draws))


def test_student_t(key):
    """Twin: a normal law of the same location and scale."""
    functions = [np.tanh, lambda z: np.tanh(z) ** 2, lambda z: (np.abs(z) > 2).astype(float)]
    law = stats.t(2.5)
    z = law.ppf((np.arange(200_000) + 0.5) / 200_000)
    expected = [np.mean(f(z)) for f in functions]

    def statistics(draws):
        standard = (draws - [0.5, -1.0]) / [2.0, 0.5]
        return np.concatenate([np.stack([f(standard[:, i]) for f in functions], 1) for i in range(2)], 1)

    draws = StudentT(2.5, [0.5, -1.0], [2.0, 0.5]).sample(key, (N,))
    check(statistics, draws, np.tile(expected, 2), StudentT(1e4, [0.5, -1.0], [2.0, 0.5]).sample(key, (N,)))
