"""Noise-contrastive estimation against closed forms: value, minimiser with log Z, covariance, kinds of noise."""

import equinox as eqx
import flowjax.distributions
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats

import ebm_ppl as ebm
from ebm_ppl.energies import Gaussian
from ebm_ppl.errors import EnergyShapeError, InvalidDataError, MissingLogNormalizerError
from ebm_ppl.objectives import NoiseContrastive
from tests.objectives.estimation import evaluate, isotropic_energy, row_gradients, solve
from tests.statistics import StatisticalError, assert_close, assert_iid_mean_close

COVARIANCE = np.array([[2.0, 0.6], [0.6, 1.0]], np.float32)
NOISE = Gaussian(np.array([0.3, -0.2], np.float32), np.array([[3.0, 0.5], [0.5, 2.0]], np.float32))
LOG_2PI = np.log(2 * np.pi)


def normal(variance, size=1):
    return Gaussian(np.zeros(size, np.float32), variance * np.eye(size, dtype=np.float32))


def quadratic(entries, x):
    return (entries[0] * x[0] ** 2 + entries[1] * x[1] ** 2) / 2 + entries[2] * x[0] * x[1]


class BrokenNoise(eqx.Module):
    """The right draws with a log density that is off by `shift`, or (weight 0) missing altogether."""

    noise: Gaussian
    shift: float = 0.0
    weight: float = 1.0

    def log_prob(self, x):
        return self.weight * (-self.noise(x) - self.noise.log_normalizer) + self.shift

    def sample(self, key, shape):
        return self.noise.sample(key, shape)


def check_minimiser(objective, key):
    """Precision and log Z = log 2pi + 1/2 log|C| of a two-dimensional Gaussian."""
    data = Gaussian(np.zeros(2, np.float32), COVARIANCE).sample(key, (20_000,))
    precision = np.linalg.inv(COVARIANCE)
    log_normalizer = LOG_2PI + np.log(np.linalg.det(COVARIANCE)) / 2
    expected = np.array([precision[0, 0], precision[1, 1], precision[0, 1], log_normalizer], np.float32)
    start = 0.9 * expected  # the loss is convex in these parameters; near its minimum Newton's method needs no damping
    model = ebm.ShiftedEnergy(ebm.FunctionEnergy(quadratic, (2,), start[:3]), start[3])
    estimate, covariance = solve(objective, model, data, jax.random.fold_in(key, 1), num_iterations=6)
    assert_close(estimate, expected, np.sqrt(np.diag(covariance)), what="(P00, P11, P01, log Z)")


@pytest.mark.parametrize("ratio", [1, 4])
def test_recovers_precision_and_log_normalizer(ratio, key):
    check_minimiser(NoiseContrastive(NOISE, ratio), key)


@pytest.mark.parametrize("broken", [BrokenNoise(NOISE, shift=0.3), BrokenNoise(NOISE, weight=0.0)])
def test_wrong_or_missing_noise_density_fails_the_minimiser(broken, key):
    with pytest.raises(StatisticalError):
        check_minimiser(NoiseContrastive(broken), key)


def test_forgotten_noise_ratio_fails_the_minimiser(key):
    """Without log(noise_ratio) in the odds, log Z is off by just that: the same as a shifted noise density."""
    with pytest.raises(StatisticalError):
        check_minimiser(NoiseContrastive(BrokenNoise(NOISE, shift=-np.log(4)), 4), key)


def test_value_where_everything_agrees_is_truth_c1(key):
    model = ebm.ShiftedEnergy(normal(1.0), normal(1.0).log_normalizer)
    losses, metrics = evaluate(NoiseContrastive(normal(1.0)), model, jax.random.normal(key, (50, 1)), key)
    np.testing.assert_allclose(losses, 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(metrics["log_normalizer"], LOG_2PI / 2, rtol=1e-6)


KINDS_OF_NOISE = {
    "energy": normal(4.0),
    "numpyro": dist.Normal(jnp.zeros(1), 2.0).to_event(1),
    "flowjax": flowjax.distributions.Normal(jnp.zeros(1), 2.0),
}


@pytest.mark.parametrize("noise", KINDS_OF_NOISE.values(), ids=KINDS_OF_NOISE.keys())
def test_optimum_is_truth_c2_with_every_kind_of_noise(noise, key):
    """2 log 2 - 2 JSD(N(0,1), N(0,4)); told apart at |x|^2 = 8/3 log 2."""
    model = ebm.ShiftedEnergy(normal(1.0), LOG_2PI / 2)
    data = jax.random.normal(key, (50_000, 1))
    losses, metrics = evaluate(NoiseContrastive(noise), model, data, jax.random.fold_in(key, 1))
    assert_iid_mean_close(losses, 1.2008275977870655)
    border = np.sqrt(8 / 3 * np.log(2))
    accuracy = 1 - stats.norm.sf(border) + stats.norm.sf(border / 2) - 0.5
    assert_close(metrics["accuracy"], accuracy, np.sqrt(accuracy * (1 - accuracy) / 100_000))
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(losses, 2 * np.log(2))


TRUTH_C3 = {
    (1.0, 1): (4.0, 1.0, 2.0),
    (2.0, 1): (2.995315984466407, 1.8152933747542637, 2.072789239826819),
    (0.7, 1): (12.489091080462376, 1.273381045923602, 3.806637402379847),
    (2.0, 100): (2.012600698150413, 0.5147320203903358, 1.012767008053315),
}


@pytest.mark.parametrize(("deviation", "ratio"), TRUTH_C3)
def test_covariance_of_the_minimiser_is_truth_c3(deviation, ratio, key):
    """n Cov of (P, log Z) for N(0,1) data and N(0, deviation^2) noise: mean outer product of the rows' influences."""
    data = jax.random.normal(key, (6000 if ratio == 100 else 50_000, 1))
    model = ebm.ShiftedEnergy(isotropic_energy(1.0), LOG_2PI / 2)
    objective = NoiseContrastive(normal(deviation**2), ratio)
    gradients = row_gradients(objective, model, data, jax.random.fold_in(key, 1))
    influences = np.asarray(gradients, float) @ np.linalg.inv(_information(deviation, ratio))
    precision, constant = influences.T
    variances = np.stack([precision**2, constant**2, -precision * constant], 1)
    assert_iid_mean_close(variances, TRUTH_C3[deviation, ratio], what="(var P, var log Z, -cov)")
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(1.6 * variances, TRUTH_C3[deviation, ratio])


def _information(deviation, ratio):
    """E over data of g g' P(noise | x), g = -d(E + log Z)/d(P, log Z), by quadrature."""

    def weight(x):
        density, noise = stats.norm.pdf(x), ratio * stats.norm.pdf(x, scale=deviation)
        return density * noise / (density + noise)

    moments = [integrate.quad(lambda x, k=k: weight(x) * (x**2 / 2) ** k, -12, 12)[0] for k in range(3)]
    return np.array([[moments[2], moments[1]], [moments[1], moments[0]]])


def test_unwrapped_energies_are_refused():
    data = jnp.ones((4, 1))
    with pytest.raises(MissingLogNormalizerError, match="no constant to hold it"):
        NoiseContrastive(normal(4.0)).loss(normal(1.0), data, key=jax.random.key(0))
    assert NoiseContrastive(normal(4.0), self_normalized=True).loss(normal(1.0), data, key=jax.random.key(0)) > 0
    tempered = ebm.TemperedEnergy(ebm.ShiftedEnergy(normal(1.0)), 0.5)
    assert NoiseContrastive(normal(4.0)).loss(tempered, data, key=jax.random.key(0)) > 0


def test_no_gradient_flows_into_the_noise():
    model, data = ebm.ShiftedEnergy(normal(1.0)), jnp.ones((4, 1))
    gradient = eqx.filter_grad(lambda objective: objective.loss(model, data, key=jax.random.key(0)))(
        NoiseContrastive(normal(4.0), 2)
    )
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


def test_data_that_the_noise_does_not_cover_are_refused():
    model = ebm.ShiftedEnergy(ebm.FunctionEnergy(isotropic_of_scalar, ()))
    data = jnp.asarray([0.5, 1.5, 0.5, 2.5])
    for noise in [dist.Uniform(0.0, 1.0), flowjax.distributions.Uniform(0.0, 1.0)]:
        with pytest.raises(InvalidDataError, match="no density at 2 of 4 data, the first at index 1"):
            NoiseContrastive(noise).init(model, data, key=jax.random.key(0))
        assert NoiseContrastive(noise).loss(model, data[:1], key=jax.random.key(0)) > 0


def isotropic_of_scalar(x):
    return x**2 / 2


def test_noise_of_another_event_shape_is_refused():
    model, data = ebm.ShiftedEnergy(normal(1.0, 2)), jnp.ones((4, 2))
    with pytest.raises(EnergyShapeError, match=r"\.to_event\(1\)"):
        NoiseContrastive(dist.Normal(jnp.zeros(2), 1.0)).loss(model, data, key=jax.random.key(0))
    with pytest.raises(EnergyShapeError, match=r"must have event shape \(2,\)"):
        NoiseContrastive(dist.Normal(jnp.zeros(3), 1.0).to_event(1)).evaluate(model, data, key=jax.random.key(0))


@pytest.mark.parametrize("noise", [None, 1.0, "normal"])
def test_noise_without_the_two_methods_is_refused(noise):
    with pytest.raises(TypeError, match="`noise` must have log_prob"):
        NoiseContrastive(noise)


@pytest.mark.parametrize("ratio", [0, -1, True])
def test_noise_ratio_is_checked_by_name(ratio):
    with pytest.raises(ValueError, match="`noise_ratio` must be an integer >= 1"):
        NoiseContrastive(normal(1.0), ratio)
