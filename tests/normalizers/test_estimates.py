"""Every method on every energy with known log Z; the parts they are made of against independent code."""

import dataclasses

import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import ebm_ppl as ebm
from ebm_ppl import normalizers
from ebm_ppl.energies._coordinate_energy import coordinate_energy
from ebm_ppl.errors import KeyArgumentError, LogNormalizerError
from ebm_ppl.normalizers._bridge import optimal_bridge
from ebm_ppl.normalizers._chains import effective_size, split_rhat
from ebm_ppl.normalizers._inputs import check_base
from ebm_ppl.normalizers._weights import pareto_smoothed
from tests.normalizers.targets import GROUPS, ROWS, study
from tests.statistics import StatisticalError, assert_close, assert_iid_mean_close

SMALL = {
    "quadrature": ("line", "plane"),
    "importance": ("line", "plane", "heavy_tails"),
    "annealed_importance": ("line",),
    "sequential_monte_carlo": ("line",),
    "bridge": ("line",),
    "thermodynamic_integration": ("line",),
}
SETTINGS = {
    "annealed_importance": {"num_samples": 256, "num_temperatures": 32},
    "sequential_monte_carlo": {"num_particles": 128},
    "bridge": {"num_samples": 400, "num_warmup": 300},
    "thermodynamic_integration": {"num_samples": 400, "num_warmup": 155},
}


def estimates(method, key, count=1):
    """The method on its small groups: names, truths, values, standard errors."""
    parts = []
    for name in SMALL[method]:
        group = GROUPS[name]
        if method == "thermodynamic_integration":  # one run per condition: the walls and the modes
            group = dataclasses.replace(group, targets=(group.targets[1], group.targets[5]))
        parts.append(study(method, group, key, count, **SETTINGS.get(method, {})))
    return parts


def assert_right(parts, shift=0.0):
    for part in parts:
        estimate = part.estimate
        truth = np.repeat(part.truths, part.count)
        assert_close(np.asarray(estimate.value) + shift, truth, estimate.standard_error, what=", ".join(part.names))
        assert not {p.code for p in estimate.problems} & {"NONFINITE_LOG_NORMALIZER", "NOT_CONVERGED"}


@pytest.mark.parametrize("method", list(ROWS))
def test_every_method_is_right_within_its_error(method, key):
    parts = estimates(method, key)
    assert_right(parts)
    assert all((np.asarray(part.estimate.standard_error) < 0.3).all() for part in parts)
    with pytest.raises(StatisticalError):  # the errors are small enough to notice a missing half nat
        assert_right(parts, shift=1.0)


def test_no_method_is_left_out():
    functions = {name for name, value in vars(normalizers).items() if callable(value) and not isinstance(value, type)}
    assert functions - {"log_normalizer", "held_out_log_likelihood"} == set(ROWS) == set(SMALL)


# --- parts against independent code


def test_pareto_smoothing_is_that_of_arviz():
    generator = np.random.default_rng(0)
    for scale, size in ((0.5, 100), (2.0, 1000), (4.0, 3000)):
        log_weights = scale * generator.normal(size=size)
        smoothed, khat = pareto_smoothed(log_weights)
        theirs, their_khat = arviz_stats.base.array_stats.psislw(-log_weights)
        np.testing.assert_allclose(smoothed - np.logaddexp.reduce(smoothed), theirs, rtol=1e-10)
        assert khat == pytest.approx(float(their_khat), abs=1e-10)


def test_weights_that_cannot_be_smoothed_say_so():
    assert pareto_smoothed(np.zeros(100))[1] == -np.inf
    assert pareto_smoothed(np.array([0.0] * 10 + [-np.inf] * 90))[1] == np.inf
    assert pareto_smoothed(np.array([np.nan] + [0.0] * 99))[1] == np.inf


def test_effective_size_and_rhat_are_those_of_arviz():
    generator = np.random.default_rng(1)
    values = generator.normal(size=(4, 1000))
    for step in range(1, 1000):
        values[:, step] = 0.8 * values[:, step - 1] + 0.6 * values[:, step]
    theirs = float(arviz_stats.base.array_stats.ess(values, method="mean"))
    assert effective_size(values) == pytest.approx(theirs, rel=0.01)
    assert split_rhat(values) == pytest.approx(
        float(arviz_stats.base.array_stats.rhat(values, method="split")), rel=1e-3
    )
    values[0] += 3
    assert split_rhat(values) > 1.2
    assert effective_size(values) < 20
    assert split_rhat(np.zeros((4, 100))) == np.inf


def test_bridge_solves_its_equation_and_its_error_counts_autocorrelation(key):
    """Two normals, draws of the target correlated by rho: the spread of many bridges is what each one claims."""
    rho, length, generator = 0.9, 400, np.random.default_rng(2)
    noise = generator.normal(size=(200, 4, length)) * np.sqrt(1 - rho**2)
    chain = np.empty_like(noise)
    chain[..., 0] = generator.normal(size=(200, 4))
    for step in range(1, length):
        chain[..., step] = rho * chain[..., step - 1] + noise[..., step]
    fresh = 1.5 * generator.normal(size=(200, 4 * length)) + 1

    def log_ratio(x):  # exp(-x^2 / 2) over N(1, 1.5^2)
        return -(x**2) / 2 - stats.norm.logpdf(x, 1, 1.5)

    bridges = [optimal_bridge(log_ratio(x), log_ratio(y)) for x, y in zip(chain, fresh, strict=True)]
    values = np.array([one.value for one in bridges])
    errors = np.array([one.standard_error for one in bridges])
    assert_iid_mean_close(values, np.log(2 * np.pi) / 2)
    assert 0.85 < np.sqrt(np.mean(errors**2)) / values.std() < 1.2
    naive = np.array([one.standard_error / np.sqrt(chain[0].size / one.effective_draws) for one in bridges])
    assert np.mean(naive) / values.std() < 0.7  # what the formula for independent draws would claim, at best


# --- the estimate as an object

ESTIMATE = ebm.LogNormalizerEstimate(1.0, 0.1, 50.0, np.nan, "bridge", (), degrees_of_freedom=9.0)


def test_interval_is_students(key):
    low, high = ESTIMATE.interval(0.95)
    assert low == pytest.approx(1 - 0.1 * stats.t.ppf(0.975, 9))
    assert high == pytest.approx(1 + 0.1 * stats.t.ppf(0.975, 9))
    normal = dataclasses.replace(ESTIMATE, degrees_of_freedom=np.inf)
    assert normal.interval(0.95)[1] == pytest.approx(1 + 0.1 * stats.norm.ppf(0.975))
    for probability in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="`probability` must be between 0 and 1"):
            ESTIMATE.interval(probability)


def test_a_batch_is_indexed_with_its_own_problems():
    problems = (
        ebm.Problem("A", "first.", condition=0),
        ebm.Problem("B", "all."),
        ebm.Problem("C", "last.", condition=2),
    )
    batch = ebm.LogNormalizerEstimate(np.arange(3.0), np.ones(3), np.ones(3), np.ones(3), "importance", problems)
    assert len(batch) == 3
    assert [[p.code for p in batch[i].problems] for i in range(3)] == [["A", "B"], ["B"], ["B", "C"]]
    assert (batch[-1].value, batch[1].ok) == (2.0, False)
    assert "3 conditions" in repr(batch)
    with pytest.raises(IndexError):
        batch[3]
    with pytest.raises(TypeError, match="one condition"):
        len(ESTIMATE)


# --- inputs


def _bowl(params, x, condition):
    return params * jnp.sum((x - condition) ** 2)


CONDITIONAL = ebm.FunctionEnergy(_bowl, (2,), 1.5, condition_shape=(2,))


def test_a_condition_gives_the_same_alone_and_as_the_first_of_several(key):
    conditions = jnp.array([[1.0, 1.0], [2.0, -1.0]])
    batch = normalizers.importance(CONDITIONAL, key=key, condition=conditions, num_samples=4000)
    alone = normalizers.importance(CONDITIONAL, key=key, condition=conditions[0], num_samples=4000)
    assert batch[0].value == pytest.approx(alone.value, abs=1e-5)
    assert np.shape(batch.value) == (2,)
    assert isinstance(alone.value, float)
    assert_close(batch.value, np.log(np.pi / 1.5), batch.standard_error)


@pytest.mark.parametrize("method", [*ROWS, "log_normalizer"])
def test_misuse_is_refused_before_anything_runs(method, key):
    function = getattr(normalizers, method)
    with pytest.raises(ebm.EnergyShapeError, match="`condition` is missing"):
        function(CONDITIONAL, key=key)
    with pytest.raises(TypeError, match="energy"):
        function(lambda x: x, key=key)
    with pytest.raises(KeyArgumentError):
        function(GROUPS["heavy_tails"].targets[0].energy, key=3)


def test_arguments_out_of_range_are_named(key):
    energy = GROUPS["line"].targets[0].energy
    with pytest.raises(ValueError, match="`num_samples` must be an integer >= 2"):
        normalizers.importance(energy, key=key, num_samples=1)
    with pytest.raises(ValueError, match="`target_effective_fraction` must be between 0 and 1"):
        normalizers.sequential_monte_carlo(energy, key=key, target_effective_fraction=1.0)
    with pytest.raises(ValueError, match="exactly invariant"):
        normalizers.annealed_importance(energy, key=key, kernel=ebm.ULA())
    with pytest.raises(ebm.EnergyShapeError, match="`reference` must have the event_shape"):
        normalizers.sequential_monte_carlo(energy, ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2)), key=key)
    with pytest.raises(ValueError, match="`draws` must have at least 8 draws"):
        normalizers.bridge(energy, jnp.zeros((2, 4)), key=key)
    with pytest.raises(ebm.EnergyShapeError, match=r"`draws` must have shape \(chain, draw\)"):
        normalizers.bridge(energy, jnp.zeros(10), key=key)
    with pytest.raises(NotImplementedError, match="at most 3 dimensions"):
        normalizers.quadrature(ebm.energies.ManyWell(4), key=key)
    with pytest.raises(ValueError, match="lower < upper"):
        normalizers.quadrature(energy, bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match="`methods` must be among"):
        ebm.log_normalizer(energy, key=key, methods=("harmonic_mean", "bridge"))
    with pytest.raises(ValueError, match="two or more"):
        ebm.log_normalizer(energy, key=key, methods=("bridge",))


def test_nan_and_infinite_energies_are_named(key):
    for fn, cause in ((lambda x: jnp.log(x), "NaN somewhere"), (lambda x: jnp.where(x > 0, -jnp.inf, x), "-inf")):
        with pytest.warns(ebm.SamplingWarning, match=cause):
            estimate = normalizers.importance(ebm.FunctionEnergy(fn, ()), key=key, num_samples=100)
        assert not estimate.ok
        assert not np.isfinite(estimate.value)
    with pytest.raises(LogNormalizerError, match="no draw of the reference") as error:
        normalizers.importance(
            ebm.FunctionEnergy(lambda x: jnp.where(x > 0, x, jnp.inf), ()),
            dist.Uniform(-2.0, -1.0),
            key=key,
            strict=True,
        )
    assert error.value.result.value == -np.inf


@pytest.mark.optimized  # else the two energies round apart, and k-hat is that of rounding
def test_a_perfect_proposal_leaves_rounding_only(key):
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    estimate = normalizers.importance(energy, energy, key=key, num_samples=300)
    assert estimate.value == pytest.approx(np.log(2 * np.pi), abs=1e-6)
    assert estimate.standard_error < 1e-6
    assert estimate.effective_sample_size == pytest.approx(300, rel=1e-4)


def test_rounding_counts_by_weight():
    """Far draws of a heavy-tailed proposal have huge energies and no weight: they must not enter the error."""
    energy = ebm.energies.Banana(0.4, 1.2)
    proposal = ebm.energies.StudentT(2.0, jnp.zeros(2), jnp.array([1.5, 3.0]))
    estimate = ebm.normalizers.importance(energy, proposal, key=jax.random.key(0))
    assert estimate.standard_error < 0.05
    assert_close(estimate.value, float(energy.log_normalizer), estimate.standard_error)


def test_a_reference_in_single_precision_serves_particles_in_double():
    with jax.enable_x64(True):
        energy = ebm.energies.Gaussian(jnp.zeros(2, jnp.float32), jnp.eye(2, dtype=jnp.float32))
        base = check_base("reference", energy, coordinate_energy(energy))
        log_q = base.log_prob(jnp.zeros(2, jnp.float64))
    np.testing.assert_allclose(log_q, -np.log(2 * np.pi), rtol=1e-6)


def test_bridge_needs_no_proposal_that_covers_the_energy(key):
    """Draws where the proposal has no density have no part in it; here they are two thirds."""
    energy = ebm.energies.Gaussian(jnp.zeros(()), jnp.ones(()))
    draws = energy.sample(key, (4, 1000))
    estimate = normalizers.bridge(energy, draws, key=key, proposal=dist.Uniform(0.0, 1.0))
    assert estimate.ok, estimate
    assert_close(estimate.value, energy.log_normalizer, estimate.standard_error)
    with pytest.raises(StatisticalError):  # what importance sampling makes of it
        assert_close(np.log(0.8556), energy.log_normalizer, estimate.standard_error)
