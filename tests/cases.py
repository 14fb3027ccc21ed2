"""The contract table: one row per public class of energies, kernels, objectives and samplers.

A row buys the generic tests of `test_contract.py`; a class without a row fails there. To add one, append to `ENERGIES`,
`KERNELS`, `OBJECTIVES` or `SAMPLERS`: a constructor, an input, and a reference that was not computed by the package.
"""

from collections.abc import Callable
from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import Normal
from scipy import stats

import ebm_ppl as ebm
from ebm_ppl import distributions, energies, kernels, objectives
from tests import references as reference
from tests.contract import (
    DATA,
    DATA_TARGET,
    STEP,
    ObjectiveCase,
    buffer_case,
    data_sum,
    energy_case,
    kernel_case,
    objective_case,
    sampler_case,
    target_case,
)


def _quadratic(params: Any, x: Any, condition: Any) -> Any:
    return params["precision"] * jnp.sum((x - condition) ** 2) / 2


def _quartic(x: Any) -> Any:
    return jnp.sum(x**4 - x)


def _gaussian() -> ebm.AbstractReferenceEnergy:
    return energies.Gaussian(jnp.array([1.0, -0.5]), jnp.asarray(reference.COVARIANCE, float))


ENERGIES = [
    energy_case(lambda: ebm.FunctionEnergy(_quartic, (2, 2)), lambda energy, x, y: np.sum(x**4 - x)),
    energy_case(
        lambda: ebm.FunctionEnergy(_quadratic, (3,), {"precision": jnp.asarray(2.0)}, condition_shape=(3,)),
        lambda energy, x, y: np.sum((x - y) ** 2),
    ),
    energy_case(lambda: ebm.MLPEnergy((3,), width=8, depth=2, key=jax.random.key(1)), reference.mlp),
    energy_case(
        lambda: ebm.MLPEnergy((2, 2), width=4, depth=1, key=jax.random.key(2), condition_shape=(3,)),
        reference.mlp,
    ),
    energy_case(
        lambda: ebm.ConvEnergy((2, 5, 4), channels=(3, 4), key=jax.random.key(3), condition_shape=(2,)),
        reference.convolutional,
    ),
    energy_case(
        lambda: ebm.SumEnergy(ebm.FunctionEnergy(_quartic, (2,)), _gaussian()),
        lambda energy, x, y: np.sum(x**4 - x) + reference.gaussian_formula(energy, x, y),
    ),
    energy_case(
        data_sum,
        lambda energy, x, y: np.sum(x + np.exp(-x)) + np.sum((x - DATA) ** 2) / 2,
    ),
    energy_case(
        lambda: energies.ClampedEnergy(_gaussian(), jnp.array([9.0, 2.0]), np.array([False, True])),
        lambda energy, x, y: reference.gaussian_formula(energy, np.array([x[0], 2.0]), y),
    ),
    energy_case(
        lambda: ebm.TemperedEnergy(_gaussian(), 0.25),
        lambda energy, x, y: reference.gaussian_formula(energy, x, y) / 4,
    ),
    energy_case(
        lambda: ebm.ShiftedEnergy(_gaussian(), 1.5),
        lambda energy, x, y: reference.gaussian_formula(energy, x, y) + 1.5,
    ),
    energy_case(_gaussian, reference.gaussian_formula),
    energy_case(
        lambda: energies.DiagonalGaussian(jnp.array([[1.0, -0.5]]), jnp.array([[0.5, 2.0]])),
        lambda energy, x, y: np.sum((x - [[1.0, -0.5]]) ** 2 / [[0.25, 4.0]]) / 2,
    ),
    energy_case(
        lambda: energies.GaussianMixture([0.3, 0.7], [-1.0, 2.0], [0.5, 0.2]),
        lambda energy, x, y: (
            -np.log(0.3 * stats.norm.pdf(x, -1, np.sqrt(0.5)) + 0.7 * stats.norm.pdf(x, 2, np.sqrt(0.2)))
        ),
    ),
    energy_case(
        lambda: energies.StudentT(3.0, jnp.array([0.5, -1.0]), 2.0),
        lambda energy, x, y: np.sum(stats.t.logpdf(0, 3) - stats.t.logpdf((x - [0.5, -1.0]) / 2, 3)),
    ),
    energy_case(lambda: energies.DoubleWell(1.5, dim=2), lambda energy, x, y: 1.5 * np.sum((x**2 - 1) ** 2)),
    energy_case(lambda: energies.ManyWell(dim=4), reference.many_well),
    energy_case(
        lambda: energies.Banana(0.4, 1.2, dim=3),
        lambda energy, x, y: x[0] ** 2 / 2.88 + (x[1] + 0.4 * x[0] ** 2 - 0.4 * 1.44) ** 2 / 2 + np.sum(x[2:] ** 2) / 2,
    ),
    energy_case(lambda: energies.Funnel(dim=4), reference.funnel),
    energy_case(
        lambda: energies.Rosenbrock(1.0, 5.0, dim=3),
        lambda energy, x, y: (x[0] - 1) ** 2 + 5 * np.sum((x[1:] - x[:-1] ** 2) ** 2),
    ),
    energy_case(
        lambda: energies.Ring(1.0, 0.4), lambda energy, x, y: (np.sum(x**2) - 1.0) ** 2 / (2 * (2 * 1.0 * 0.4) ** 2)
    ),
    energy_case(lambda: ebm.log_density(_gaussian()), lambda log_p, x, y: -reference.gaussian_formula(log_p, x, y)),
]


ONES = np.ones(3, np.float32)
ALPHA = 1 - np.exp(-2 * 1.5 * STEP)
KERNELS = [
    kernel_case(lambda: ebm.ULA(STEP), reference.langevin),
    kernel_case(lambda: ebm.MALA(STEP), reference.from_blackjax(blackjax.mala, step_size=STEP)),
    kernel_case(lambda: ebm.Barker(STEP), reference.from_blackjax(blackjax.barker, step_size=STEP)),
    kernel_case(
        lambda: ebm.RandomWalk(STEP),
        reference.from_blackjax(blackjax.normal_random_walk, sigma=STEP * np.eye(3, dtype="f")),
    ),
    kernel_case(  # lengths are random around their mean; around 1 there is only 1
        lambda: ebm.HMC(STEP, num_integration_steps=1),
        reference.after_a_split(
            reference.from_blackjax(blackjax.hmc, step_size=STEP, inverse_mass_matrix=ONES, num_integration_steps=1)
        ),
    ),
    kernel_case(
        lambda: ebm.NUTS(STEP), reference.from_blackjax(blackjax.nuts, step_size=STEP, inverse_mass_matrix=ONES)
    ),
    kernel_case(
        lambda: kernels.GeneralizedHMC(STEP, damping=1.5),
        reference.from_blackjax(
            blackjax.ghmc, needs_key=True, step_size=STEP, momentum_inverse_scale=ONES, alpha=ALPHA, delta=ALPHA / 2
        ),
    ),
    kernel_case(
        lambda: ebm.MCLMC(STEP, decoherence_length=2.0),
        reference.from_blackjax(blackjax.mclmc, needs_key=True, step_size=STEP, L=2 * np.sqrt(3)),
    ),
    kernel_case(
        lambda: kernels.AdjustedMCLMC(STEP, num_integration_steps=1),
        reference.after_a_split(
            reference.from_blackjax(blackjax.adjusted_mclmc, step_size=STEP, num_integration_steps=1)
        ),
    ),
    kernel_case(kernels.BinaryGibbs, reference.binary_gibbs, random=False),  # two keys may agree on three coins
    kernel_case(
        lambda: kernels.AnnealedLangevin([0.5, 1.0], STEP, over="inverse_temperature", num_steps=1),
        reference.annealed_langevin,
    ),
    kernel_case(lambda: kernels.SGLD(STEP, batch_size=2), reference.stochastic_langevin, DATA_TARGET),
    kernel_case(
        lambda: kernels.SGHMC(STEP, friction=0.5, num_integration_steps=3, batch_size=2),
        reference.stochastic_hamiltonian,
        DATA_TARGET,
    ),
    kernel_case(
        lambda: kernels.EllipticalSlice(energies.Gaussian(jnp.zeros(3), jnp.eye(3))),
        reference.elliptical_slice,
    ),
]


def _normal_data(key: Any, num: int) -> Any:
    return jax.random.normal(key, (num, 1))


def _centred(variance: float) -> Any:
    return energies.Gaussian(jnp.zeros(1), jnp.full((1, 1), variance))


def _smoothed(x: Any, log_scale: Any) -> Any:
    return jnp.sum(x**2) / (2 * (1 + jnp.exp(2 * log_scale)))


class SmoothedNormal(ebm.AbstractEnergy):
    """N(0, 1) smoothed at every noise scale, with a precision that is 1 at the minimiser."""

    precision: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(1,))
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=(), kw_only=True)

    def __call__(self, x, condition=None):
        return self.precision.astype(x.dtype) * _smoothed(x, condition)


def score_matching_case(make: Callable[[], Any], *, random: bool = True) -> ObjectiveCase:
    """J = 1/2 E |P x|^2 - tr P for data N(0, C): at P = C^-1 it is -tr(C^-1) / 2."""

    def sample(key: Any, num: int) -> Any:
        return jax.random.normal(key, (num, 2)) @ jnp.linalg.cholesky(jnp.asarray(reference.COVARIANCE, float)).T

    return objective_case(
        make,
        lambda: energies.Gaussian(jnp.zeros(2), jnp.asarray(reference.COVARIANCE, float)),
        sample,
        -float(np.trace(np.linalg.inv(reference.COVARIANCE))) / 2,
        lambda model: eqx.tree_at(lambda m: m.whitening, model, model.whitening * 1.2),
        random=random,
    )


def _raised(constant: Any, x: Any) -> Any:
    return constant + jnp.sum(x**2) / 2


def _moved(mean: Any, x: Any) -> Any:
    return jnp.sum((x - mean) ** 2) / 2


def contrast_case(make: Callable[[], Any], expected_loss: float, *, random: bool = True) -> ObjectiveCase:
    """A contrast in which log Z cancels: model and data N(0, 1)."""
    return objective_case(
        make,
        lambda: _centred(1.0),
        _normal_data,
        expected_loss,
        lambda model: eqx.tree_at(lambda m: m.whitening, model, model.whitening * 1.2),
        random=random,
    )


def chain_case(make: Callable[[], Any]) -> ObjectiveCase:
    """Negatives from chains: at the truth they are distributed as the data, and the gradient vanishes in the mean."""
    return objective_case(
        make,
        lambda: _centred(1.0),
        _normal_data,
        None,
        lambda model: eqx.tree_at(lambda m: m.whitening, model, model.whitening * 1.2),
        value=None,
    )


NOISE_SCALES = np.array([2.0, 1.0, 0.5])
OBJECTIVES = [
    score_matching_case(objectives.ExactScoreMatching, random=False),
    score_matching_case(lambda: objectives.HutchinsonScoreMatching(num_probes=2)),
    score_matching_case(lambda: objectives.SlicedScoreMatching(variance_reduced=False)),
    score_matching_case(lambda: objectives.FiniteDifferenceScoreMatching(0.5)),
    # 1/2 E (-a (x + s e) + e / s)^2 with a = 1 / (1 + s^2), s = 1/2
    objective_case(
        lambda: objectives.DenoisingScoreMatching(0.5),
        lambda: _centred(1.25),
        _normal_data,
        (1 / 0.25 - 1 / 1.25) / 2,
        lambda model: eqx.tree_at(lambda m: m.whitening, model, model.whitening * 1.2),
    ),
    # the mean over s of 1/2 / (1 + s^2)
    objective_case(
        lambda: objectives.MultiscaleDenoisingScoreMatching(jnp.asarray(NOISE_SCALES, float)),
        lambda: SmoothedNormal(jnp.asarray(1.0)),
        _normal_data,
        float(np.mean(1 / (1 + NOISE_SCALES**2)) / 2),
        lambda model: eqx.tree_at(lambda m: m.precision, model, model.precision * 1.2),
    ),
    objective_case(
        lambda: objectives.NoiseContrastive(_centred(2.0), noise_ratio=2),
        lambda: ebm.ShiftedEnergy(_centred(1.0), reference.LOG_2PI / 2),
        _normal_data,
        reference.nce_loss(),
        lambda model: eqx.tree_at(lambda m: m.log_normalizer, model, model.log_normalizer + 0.3),
    ),
    objective_case(
        lambda: objectives.FlowContrastive(noise_ratio=2),
        lambda: (ebm.ShiftedEnergy(_centred(1.0), reference.LOG_2PI / 2), Normal(jnp.zeros(1))),
        _normal_data,
        None,
        lambda model: eqx.tree_at(lambda m: m[0].log_normalizer, model, model[0].log_normalizer + 0.3),
        random=False,  # where energy and flow agree, no draw tells anything from anything
        value=None,
    ),
    contrast_case(lambda: objectives.RankingNoiseContrastive(_centred(2.0), num_noise=1), reference.ranking_loss()),
    contrast_case(lambda: objectives.ConditionalNoiseContrastive(0.8), 2 * reference.neighbor_loss(0.8)),
    contrast_case(lambda: objectives.EnergyDiscrepancy(0.8, num_samples=1), reference.neighbor_loss(0.8 * 2**0.5)),
    # E exp((E(x) - E(y)) / 2) = (1 + s^2/2 - s^2/4)^(-1/2)
    contrast_case(lambda: objectives.MinimumProbabilityFlow(0.8), (1 + 0.8**2 / 4) ** -0.5),
    chain_case(lambda: objectives.ContrastiveDivergence(ebm.MALA(0.8))),
    chain_case(lambda: objectives.PersistentContrastiveDivergence(ebm.MALA(0.8), num_particles=6, refresh_rate=0.1)),
    # 1/2 + 1/2 log 2 pi
    contrast_case(lambda: objectives.MaximumLikelihood(-9.0, 9.0, 64), 0.5 + reference.LOG_2PI / 2, random=False),
    # Var(x^2 / 2), at the shift -E x^2/2
    objective_case(
        objectives.EnergyMagnitudePenalty,
        lambda: ebm.FunctionEnergy(_raised, (1,), jnp.asarray(-0.5)),
        _normal_data,
        0.5,
        lambda model: eqx.tree_at(lambda m: m.params, model, model.params + 0.3),
        random=False,
    ),
    objective_case(
        objectives.GradientPenalty,
        lambda: ebm.FunctionEnergy(_moved, (1,), jnp.asarray(0.0)),
        _normal_data,
        1.0,
        lambda model: eqx.tree_at(lambda m: m.params, model, model.params + 0.3),
        random=False,
    ),
    # a^2/2 - a + a^2/4: at its minimum, a = 2/3, it is -1/3
    objective_case(
        lambda: objectives.SumObjective(
            objectives.ExactScoreMatching(), objectives.GradientPenalty(), weights=[1.0, 0.25]
        ),
        lambda: _centred(1.5),
        _normal_data,
        -1 / 3,
        lambda model: eqx.tree_at(lambda m: m.whitening, model, model.whitening * 1.2),
        random=False,
    ),
]
TARGETS = [target_case(_gaussian, reference.gaussian_formula)]
BUFFERS = [buffer_case(lambda: objectives.ReplayBuffer.start(jnp.arange(12.0).reshape(6, 2)))]

SAMPLERS = [
    sampler_case(lambda: distributions.ChainSampler(num_warmup=8, num_steps=3)),
    sampler_case(lambda: distributions.TemperedSampler(inverse_temperatures=2, num_warmup=0, num_iterations=2)),
]

CASES = [*ENERGIES, *TARGETS, *KERNELS, *OBJECTIVES, *BUFFERS, *SAMPLERS]
