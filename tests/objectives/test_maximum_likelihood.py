"""Maximum likelihood by quadrature against closed forms (TRUTHS A3, A4, B8), and the explicit regularisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.energies import DoubleWell, Gaussian
from ebm_ppl.errors import EnergyShapeError, InvalidDataError, MissingLogNormalizerError
from ebm_ppl.objectives import (
    ContrastiveDivergence,
    EnergyMagnitudePenalty,
    ExactScoreMatching,
    GradientPenalty,
    MaximumLikelihood,
    MultiscaleDenoisingScoreMatching,
    NoiseContrastive,
    SumObjective,
)
from tests.objectives.estimation import (
    Misreading,
    evaluate,
    isotropic_energy,
    row_gradients,
)
from tests.statistics import StatisticalError, assert_iid_mean_close

KEY = jax.random.key(0)


def isotropic_log_normalizer(energy, condition):
    energy, factor = (energy.energy, energy.factor) if hasattr(energy, "factor") else (energy, 1.0)
    return np.prod(energy.event_shape) / 2 * jnp.log(2 * np.pi / (abs(factor) * energy.params))


def check_value_and_gradient(objective, shape, key, *, factor=1.0):
    """E = a |x|^2/2 on N(0, I_d): d/2 (a + log(2 pi/a)), and its slope d/2 (1 - 1/a); wrong at .7, least at 1."""
    data, size = jax.random.normal(key, (4000, *shape)), np.prod(shape)
    for a in [0.7, 1.0]:
        model = isotropic_energy(jnp.asarray(a), shape)
        objective = Misreading(objective, factor) if factor != 1 else objective
        losses, gradients = evaluate(objective, model, data, key)[0], row_gradients(objective, model, data, key)
        expected = size / 2 * np.array([a + np.log(2 * np.pi / a), 1 - 1 / a])
        assert_iid_mean_close(np.stack([losses, gradients[:, 0]], 1), expected, what=f"(loss, gradient) at {a}")


LIKELIHOODS = [
    ((), MaximumLikelihood(-10.0, 10.0)),
    ((2,), MaximumLikelihood(-10.0, [9.0, 11.0], 64)),
    ((3, 8, 8), MaximumLikelihood(log_normalizer=isotropic_log_normalizer)),
]


@pytest.mark.parametrize(("shape", "objective"), LIKELIHOODS, ids=["()", "(2,)", "(3, 8, 8)"])
def test_value_and_gradient_are_closed_forms(shape, objective, key):
    check_value_and_gradient(objective, shape, key)


@pytest.mark.parametrize("factor", [-0.02, 1 / 2], ids=["flipped", "scaled"])
def test_broken_twins_fail(factor, key):
    with pytest.raises(StatisticalError):
        check_value_and_gradient(LIKELIHOODS[1][1], (2,), key, factor=factor)


def quartic(scale, x):
    return scale * x**4


@pytest.mark.parametrize(
    ("energy", "expected"),
    [
        (DoubleWell(1.0), 0.6799262428937866),
        (DoubleWell(8.0), -0.4395855454795299),
        (ebm.FunctionEnergy(quartic, (), jnp.asarray(1.0)), 0.5948753441381321),
    ],
)
def test_log_normalizers_are_truths_a3_and_a4(energy, expected):
    data = jnp.zeros((3, *energy.event_shape))
    _, metrics = evaluate(MaximumLikelihood(-4.0, 4.0), energy, data, KEY)
    np.testing.assert_allclose(metrics["log_normalizer"], expected, rtol=1e-5)
    assert metrics["edge_probability"] < 1e-6


def test_variance_of_the_minimiser_is_truth_b8(key):
    """exp(-t x^4) at t = 1: n Var(t) = 4; the information is 1/4, x^4 ~ Gamma(1/4)."""
    data = jax.random.gamma(key, 0.25, (20_000,)) ** 0.25
    energy = ebm.FunctionEnergy(quartic, (), jnp.asarray(1.0))
    influences = 4 * row_gradients(MaximumLikelihood(-4.0, 4.0), energy, data, key)[:, 0]
    assert_iid_mean_close(np.stack([influences, influences**2], 1), [0.0, 4.0])
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(influences**2, 5.835838974)  # that of score matching


def conditional(slope, x, condition):
    return x**2 * jnp.exp(-slope * condition) / 2


def test_log_normalizer_is_that_of_each_condition(key):
    """Data N(0, e^y), model N(0, e^(b y)): the gradient in b vanishes at 1, and only with its own condition."""
    condition = jax.random.uniform(key, (4000,), minval=-1.0, maxval=1.0)
    data = jnp.exp(condition / 2) * jax.random.normal(jax.random.fold_in(key, 1), (4000,))
    energy = ebm.FunctionEnergy(conditional, (), jnp.asarray(1.0), condition_shape=())
    objective = MaximumLikelihood(-12.0, 12.0, 64)
    assert_iid_mean_close(row_gradients(objective, energy, (data, condition), key), 0.0)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(row_gradients(objective, energy, (data, condition[::-1]), key), 0.0)


def test_a_box_that_cuts_the_model_shows():
    """N(0, 9) in (-3, 3): nearly flat there, about a tenth of it within 5 % of the sides."""
    _, metrics = evaluate(MaximumLikelihood(-3.0, 3.0), isotropic_energy(1 / 9, ()), jnp.zeros(2), KEY)
    assert 0.05 < metrics["edge_probability"] < 0.1


def test_reference_energies_know_their_own():
    energy = Gaussian(jnp.zeros(3), 2 * jnp.eye(3))
    loss = MaximumLikelihood().loss(energy, jnp.zeros((4, 3)), key=KEY)
    np.testing.assert_allclose(loss, 1.5 * np.log(4 * np.pi), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "energy", "error", "match"),
    [
        (
            lambda: MaximumLikelihood(),
            isotropic_energy(1.0),
            MissingLogNormalizerError,
            "log Z of FunctionEnergy is not",
        ),
        (lambda: MaximumLikelihood(-1, 1), isotropic_energy(1.0, (3,)), ValueError, "the energy has 3: pass"),
        (lambda: MaximumLikelihood(1.5, 3), isotropic_energy(1.0), InvalidDataError, "4 of 4 data lie outside the box"),
        (lambda: MaximumLikelihood([-1.0] * 2, 1.0), isotropic_energy(1.0), EnergyShapeError, r"`lower` must.*\(2,\)"),
        (lambda: MaximumLikelihood(-1.0), None, ValueError, "must be given together"),
        (lambda: MaximumLikelihood(1.0, -1.0), None, ValueError, "`lower` must be below `upper`"),
        (lambda: MaximumLikelihood(-1, 1, 1), None, ValueError, "`num_points` must be an integer >= 2; got 1"),
        (lambda: MaximumLikelihood(-1, 1, log_normalizer=max), None, ValueError, "give one of the two"),
    ],
)
def test_misuse_is_named(make, energy, error, match):
    with pytest.raises(error, match=match):
        make().loss(energy, jnp.ones((4, *energy.event_shape)), key=KEY)


# --- regularisers


@pytest.mark.parametrize("shape", [(), (3,), (3, 8, 8)], ids=str)
@pytest.mark.parametrize(
    ("objective", "value", "slope"),
    [
        (EnergyMagnitudePenalty(), lambda a, d: a**2 * d * (d + 2) / 4, lambda a, d: a * d * (d + 2) / 2),
        (GradientPenalty(), lambda a, d: a**2 * d, lambda a, d: 2 * a * d),
    ],
    ids=["magnitude", "gradient"],
)
def test_penalties_are_moments_of_the_normal(objective, value, slope, shape, key):
    """E = a |x|^2/2: E |x|^4 = d (d + 2), E |x|^2 = d."""
    data, size = jax.random.normal(key, (2000, *shape)), np.prod(shape)
    model = isotropic_energy(jnp.asarray(0.7), shape)
    losses, gradients = evaluate(objective, model, data, key)[0], row_gradients(objective, model, data, key)
    both = np.stack([losses, gradients[:, 0]], 1)
    assert_iid_mean_close(both, [value(0.7, size), slope(0.7, size)])
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(both, [value(0.7, size) / 2, slope(0.7, size) / 2])


def test_a_sum_reports_its_terms_and_keeps_their_states(key):
    data = jax.random.normal(key, (40, 1))
    divergence = ebm.objectives.PersistentContrastiveDivergence(ebm.MALA(0.5), num_particles=50)
    objective = SumObjective(divergence, GradientPenalty(), GradientPenalty(), weights=[1.0, 0.5, 0.25])
    model = isotropic_energy(jnp.asarray(0.7))
    result = ebm.fit(model, data, objective, key=key, num_steps=3, progress_bar=False)
    metrics = {name: values[0] for name, values in result.metrics.items()}
    assert {"persistent_contrastive_divergence", "energy_gap", "acceptance_rate"} < set(metrics)
    penalty = metrics["gradient_penalty"]
    assert penalty == metrics["gradient_penalty_2"]
    expected = metrics["persistent_contrastive_divergence"] + 0.75 * penalty
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert np.sum(result.objective_state[0].visits) == 3 * 40
    assert result.objective_state[1:] == (None, None)


def test_a_sum_is_comparable_where_its_terms_are():
    assert SumObjective(ExactScoreMatching(), GradientPenalty()).comparable
    assert not SumObjective(ContrastiveDivergence(ebm.MALA()), GradientPenalty()).comparable


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SumObjective(), "`objectives` must have at least one member"),
        (lambda: SumObjective(3), r"`objectives\[0\]` must be an objective; got int"),
        (lambda: SumObjective(GradientPenalty(), weights=[1.0, 2.0]), "`weights` must be 1 numbers"),
        (
            lambda: SumObjective(MultiscaleDenoisingScoreMatching([1.0, 2.0]), GradientPenalty()),
            "do not agree whether the condition holds the noise scale",
        ),
    ],
)
def test_sums_that_make_no_sense_are_refused(make, match):
    with pytest.raises((ValueError, TypeError), match=match):
        make()


def test_the_sum_of_one_is_that_one(key):
    """Also where `init` checks the model."""
    data = jnp.ones((4, 1))
    with pytest.raises(MissingLogNormalizerError):
        SumObjective(NoiseContrastive(Gaussian(jnp.zeros(1), jnp.eye(1)))).loss(isotropic_energy(1.0), data, key=key)
    found = SumObjective(ExactScoreMatching(), weights=[2.0]).loss(isotropic_energy(0.5), data, key=key)
    np.testing.assert_allclose(found, 2 * (0.125 - 0.5), rtol=1e-6)
