"""Ranking NCE, conditional NCE, energy discrepancy, minimum probability flow: against quadrature and closed forms.

Model E = a |x|^2 / 2, data N(0, I_d): for any event shape each loss is an integral over one or two scalars.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import ebm_ppl as ebm
from ebm_ppl.energies import Gaussian
from ebm_ppl.errors import InvalidDataError
from ebm_ppl.objectives import (
    ConditionalNoiseContrastive,
    EnergyDiscrepancy,
    MinimumProbabilityFlow,
    RankingNoiseContrastive,
)
from tests.objectives.estimation import (
    COVARIANCE,
    Misreading,
    evaluate,
    isotropic_energy,
    quadratic_energy,
    row_gradients,
)
from tests.statistics import StatisticalError, assert_close, assert_iid_mean_close

NOISE_VARIANCE = 1.2


class IsotropicNoise(ebm.AbstractReferenceEnergy):
    """N(0, NOISE_VARIANCE I) for events of any shape."""

    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x, condition=None):
        return jnp.sum(x**2) / (2 * NOISE_VARIANCE)

    @property
    def log_normalizer(self):
        return jnp.asarray(np.prod(self.event_shape) / 2 * np.log(2 * np.pi * NOISE_VARIANCE), float)

    def sample(self, key, sample_shape=()):
        return NOISE_VARIANCE**0.5 * jax.random.normal(key, (*sample_shape, *self.event_shape))


@functools.cache
def nodes(size, count=150):
    """Gauss-Legendre nodes and weights for expectations over |x|, x ~ N(0, I_size); over N(0, 1) for size 0."""
    law = stats.chi(size) if size else stats.norm
    lower, upper = law.ppf(1e-13), law.isf(1e-13)
    x, weights = np.polynomial.legendre.leggauss(count)
    x = (upper - lower) / 2 * x + (upper + lower) / 2
    return x, (upper - lower) / 2 * weights * law.pdf(x)


def neighbor_differences(a, scale, size):
    """E(x) - E(x + scale e) = -a/2 (2 scale |e| u + scale^2 |e|^2), |e| ~ chi_d, u ~ N(0, 1); and its law's weights."""
    (length, length_weights), (u, u_weights) = nodes(size), nodes(0)
    length = length[:, None]
    return -a / 2 * (2 * scale * length * u + scale**2 * length**2), np.outer(length_weights, u_weights)


def ranking_loss(a, scale, size):
    """One noise event: softplus of (a - 1/v)/2 (|x|^2 - |y|^2), |x| ~ chi_d, |y| ~ sqrt(v) chi_d."""
    length, weights = nodes(size)
    squares = length[:, None] ** 2 - NOISE_VARIANCE * length**2
    return np.sum(np.outer(weights, weights) * np.logaddexp(0, (a - 1 / NOISE_VARIANCE) / 2 * squares))


def conditional_loss(a, scale, size):
    differences, weights = neighbor_differences(a, scale, size)
    return 2 * np.sum(weights * np.logaddexp(0, differences))


def discrepancy_loss(a, scale, size):
    """One draw: its noise is the sum of two."""
    differences, weights = neighbor_differences(a, np.sqrt(2) * scale, size)
    return np.sum(weights * np.logaddexp(0, differences))


def flow_loss(a, scale, size):
    """(1 + a s^2/2 - a^2 s^2/4)^(-d/2), s = scale: two Gaussian integrals per coordinate."""
    return (1 + a * scale**2 / 2 - a**2 * scale**2 / 4) ** (-size / 2)


ESTIMATORS = {
    "ranking": (lambda shape, scale: RankingNoiseContrastive(IsotropicNoise(shape), 1), ranking_loss),
    "conditional": (lambda shape, scale: ConditionalNoiseContrastive(scale), conditional_loss),
    "discrepancy": (lambda shape, scale: EnergyDiscrepancy(scale, 1), discrepancy_loss),
    "flow": (lambda shape, scale: MinimumProbabilityFlow(scale), flow_loss),
}
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)
FACTORS = {"flipped": -1.0, "scaled": 1 / 3}


@functools.cache
def exact_loss_and_gradient(name, a, scale, size):
    """By quadrature, the gradient by differences; at the truth a = 1 it must vanish, or the reference is wrong."""
    exact = ESTIMATORS[name][1]
    gradient = (exact(a + 1e-4, scale, size) - exact(a - 1e-4, scale, size)) / 2e-4
    assert a != 1 or abs(gradient) < 1e-6
    return exact(a, scale, size), gradient


@eqx.filter_jit
def losses_and_gradients(objective, a, data, key):
    """By row, the loss and its derivative in a; shape (row, 2)."""

    def rows(a):
        return objective.evaluate(isotropic_energy(a, data.shape[1:]), data, key=key)[0]

    return jnp.stack(jax.jvp(rows, (a,), (jnp.ones_like(a),)), 1)


def check_value_and_gradient(name, shape, key, *, factor=1.0):
    """At a = .7 and at the truth a = 1, where the gradient is 0."""
    size, scale = int(np.prod(shape)), 0.1 if len(shape) == 3 else 0.8
    objective = Misreading(ESTIMATORS[name][0](shape, scale), jnp.asarray(factor))
    data = jax.random.normal(key, (1000 if len(shape) == 3 else 10_000, *shape))
    for a in [0.7, 1.0]:
        found = losses_and_gradients(objective, jnp.asarray(a), data, jax.random.fold_in(key, 1))
        assert_iid_mean_close(found, exact_loss_and_gradient(name, a, scale, size), what=f"(loss, gradient) at {a}")


@every_estimator
@pytest.mark.parametrize("shape", [(), (3,), (3, 8, 8)], ids=str)
def test_value_and_gradient_are_those_of_quadrature(name, shape, key):
    check_value_and_gradient(name, shape, key)


@every_estimator
@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
def test_broken_twins_fail_value_and_gradient(name, factor, key):
    with pytest.raises(StatisticalError):
        check_value_and_gradient(name, (3,), key, factor=factor)


MANY_DRAWS = {
    "ranking": RankingNoiseContrastive(Gaussian(np.array([0.4, 0, -0.3], np.float32), 1.5 * COVARIANCE), 5),
    "conditional": ConditionalNoiseContrastive(0.7, 3),
    "discrepancy": EnergyDiscrepancy(0.5, 5),
    "flow": MinimumProbabilityFlow(0.3, 3),
}


def check_minimum(objective, key, *, factor=1.0):
    """The gradient in all entries of the precision vanishes at that of the (correlated) data, several draws a datum."""
    data = Gaussian(np.zeros(3, np.float32), COVARIANCE).sample(key, (10_000,))
    objective = Misreading(objective, jnp.asarray(factor))  # an array: the twins share the program
    model = quadratic_energy(np.linalg.inv(COVARIANCE))
    assert_iid_mean_close(row_gradients(objective, model, data, jax.random.fold_in(key, 1)), 0.0)


@every_estimator
def test_minimum_is_at_the_truth(name, key):
    check_minimum(MANY_DRAWS[name], key)


@every_estimator
@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
def test_broken_twins_fail_the_minimum(name, factor, key):
    with pytest.raises(StatisticalError):
        check_minimum(MANY_DRAWS[name], key, factor=factor)


def test_without_stabilization_few_draws_are_biased(key):
    with pytest.raises(StatisticalError):
        check_minimum(EnergyDiscrepancy(0.5, 5, stabilization=0.0), key)


def test_many_draws_make_the_discrepancy_of_truth_c5(key):
    """Unstabilised, bias about 1/(2 M): P = 1 gives -.3466; P = 2 gives 1 - 2/3 - log(3)/2."""
    data = jax.random.normal(key, (2000, 1))
    for precision, expected in [(1.0, -0.34657359), (2.0, 1 - 2 / 3 - np.log(3) / 2)]:
        objective = EnergyDiscrepancy(1.0, 1024, stabilization=0.0)
        losses, _ = evaluate(objective, isotropic_energy(precision), data, key)
        assert_iid_mean_close(losses, expected)
        with pytest.raises(StatisticalError):
            assert_iid_mean_close(losses, expected + 0.4)


def conditional(slope, x, condition):
    return x**2 * jnp.exp(-slope * condition) / 2


@every_estimator
def test_normalizers_that_depend_on_the_condition_cancel(name, key):
    """Data N(0, e^y), y ~ U(-1, 1), E = x^2 e^(-b y) / 2 without its normaliser: the gradient in b vanishes at 1."""
    condition = jax.random.uniform(key, (20_000,), minval=-1.0, maxval=1.0)
    data = jnp.exp(condition / 2) * jax.random.normal(jax.random.fold_in(key, 1), (20_000,))
    energy = ebm.FunctionEnergy(conditional, (), jnp.asarray(1.0), condition_shape=())
    objective = RankingNoiseContrastive(Gaussian(0.0, 4.0), 4) if name == "ranking" else MANY_DRAWS[name]
    assert_iid_mean_close(row_gradients(objective, energy, (data, condition), key), 0.0)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(row_gradients(objective, energy, (data, condition[::-1]), key), 0.0)


def test_accuracies_are_exact_probabilities(key):
    """|x| < |y|: a ratio of normals, Cauchy. |x| < |x + s e|: u > -s |e| / 2."""
    data, model = jax.random.normal(key, (40_000, 1)), isotropic_energy(1.0)
    expected = np.array([2 * np.arctan(np.sqrt(NOISE_VARIANCE)) / np.pi, 0.5 + np.arctan(0.8 / 2) / np.pi])
    objectives = [RankingNoiseContrastive(IsotropicNoise((1,)), 1), ConditionalNoiseContrastive(0.8)]
    found = [evaluate(objective, model, data, key)[1]["accuracy"] for objective in objectives]
    assert_close(found, expected, np.sqrt(expected * (1 - expected) / 40_000))


def test_data_that_the_noise_does_not_cover_are_refused():
    noise = IsotropicNoise((1,))
    with pytest.raises(InvalidDataError, match="`data` is empty"):
        RankingNoiseContrastive(noise).loss(isotropic_energy(1.0), jnp.ones((0, 1)), key=jax.random.key(0))
    uniform = dist.Uniform(jnp.zeros(1), 1.0).to_event(1)
    with pytest.raises(InvalidDataError, match="no density at 1 of 2 data, the first at index 1"):
        RankingNoiseContrastive(uniform).init(isotropic_energy(1.0), jnp.asarray([[0.5], [1.5]]), key=jax.random.key(0))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: RankingNoiseContrastive(None), "`noise` must have log_prob"),
        (lambda: RankingNoiseContrastive(Gaussian(0.0, 1.0), 0), "`num_noise` must be an integer >= 1; got 0"),
        (lambda: ConditionalNoiseContrastive(-1.0), "`noise_scale` must be positive and finite; got"),
        (lambda: ConditionalNoiseContrastive([1.0, 2.0]), "`noise_scale` must be one number"),
        (lambda: ConditionalNoiseContrastive(1.0, 0), "`noise_ratio` must be an integer >= 1"),
        (lambda: EnergyDiscrepancy(1.0, 0), "`num_samples` must be an integer >= 1"),
        (lambda: EnergyDiscrepancy(1.0, stabilization=-1.0), "`stabilization` must not be negative"),
        (lambda: MinimumProbabilityFlow(0.0), "`noise_scale` must be positive"),
        (lambda: MinimumProbabilityFlow(1.0, True), "`num_neighbors` must be an integer >= 1"),
    ],
)
def test_settings_are_checked_by_name(make, match):
    with pytest.raises((ValueError, TypeError), match=match):
        make()
