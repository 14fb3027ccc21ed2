"""Exact, Hutchinson, sliced and finite-difference score matching against closed forms (TRUTHS B1 to B10)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.objectives import (
    AbstractStatelessObjective,
    ExactScoreMatching,
    FiniteDifferenceScoreMatching,
    HutchinsonScoreMatching,
    SlicedScoreMatching,
)
from ebm_ppl.objectives._directions import draw_directions
from tests.objectives.estimation import (
    COVARIANCE,
    DATA_VARIANCES,
    MEAN,
    evaluate,
    isotropic_energy,
    quadratic_energy,
    row_gradients,
    slope_at_zero,
    solve,
)
from tests.statistics import StatisticalError, assert_close, assert_iid_mean_close


class BrokenTrace(AbstractStatelessObjective):
    """Exact score matching with its trace multiplied by `factor`: -1 flips the sign, 1/d is torchebm's mistake."""

    factor: float
    comparable = True

    def evaluate(self, model, batch, *, key):
        x, _ = self.split_batch(model, batch)
        losses, _ = ExactScoreMatching().evaluate(model, batch, key=key)
        squares = jax.vmap(lambda x: jnp.sum(ebm.score(model, x) ** 2) / 2)(x)
        return squares + self.factor * (losses - squares), {}


EXACT = ExactScoreMatching()
FAMILY = {
    "exact": EXACT,
    "hutchinson": HutchinsonScoreMatching(),
    "hutchinson-gaussian-3": HutchinsonScoreMatching(3, "gaussian"),
    "hutchinson-sphere": HutchinsonScoreMatching(probe="sphere"),
    "hutch++": HutchinsonScoreMatching(sketch_size=1),
    "sliced": SlicedScoreMatching(),
    "sliced-plain": SlicedScoreMatching(variance_reduced=False),
    "sliced-plain-gaussian": SlicedScoreMatching(variance_reduced=False, probe="gaussian"),
    "sliced-plain-sphere-2": SlicedScoreMatching(2, variance_reduced=False, probe="sphere"),
    "finite-difference": FiniteDifferenceScoreMatching(0.3),
    "finite-difference-gaussian-2": FiniteDifferenceScoreMatching(0.2, num_slices=2, probe="gaussian"),
}
family = pytest.mark.parametrize("objective", FAMILY.values(), ids=FAMILY.keys())
broken_family = pytest.mark.parametrize("broken", [BrokenTrace(-1.0), BrokenTrace(1 / 3)], ids=["flipped", "scaled"])


def draw(key, count=20_000):
    return jnp.sqrt(jnp.asarray(DATA_VARIANCES))[None] * jax.random.normal(key, (count, 3))


def check_value(objective, key):
    """TRUTHS B1: N(m3, C3) on N(0, diag(1, 2, .5)), in expectation the same for every member of the family."""
    energy = ebm.energies.Gaussian(MEAN, COVARIANCE)
    losses, _ = evaluate(objective, energy, draw(key), jax.random.fold_in(key, 1))
    assert_iid_mean_close(losses, 3.525543212890625)


def check_minimiser(objective, key):
    """The precision of the data, (1, 1/2, 2) on the diagonal."""
    estimate, covariance = solve(objective, quadratic_energy(np.eye(3)), draw(key), jax.random.fold_in(key, 1))
    assert_close(estimate, [1, 0, 0.5, 0, 0, 2], np.sqrt(np.diag(covariance)))


@family
def test_value_is_truth_b1(objective, key):
    check_value(objective, key)


@pytest.mark.parametrize("name", ["exact", "hutchinson-sphere", "hutch++", "sliced-plain", "finite-difference"])
def test_minimiser_of_truth_b1(name, key):
    check_minimiser(FAMILY[name], key)


@pytest.mark.parametrize("check", [check_value, check_minimiser])
@broken_family
def test_broken_twins_fail_truth_b1(check, broken, key):
    with pytest.raises(StatisticalError):
        check(broken, key)


def test_minimum_of_truth_b1(key):
    """-1/2 tr C0^-1 = -1.75, reached at the data's own precision."""
    energy = ebm.energies.Gaussian(np.zeros(3, np.float32), np.diag(DATA_VARIANCES))
    assert_iid_mean_close(evaluate(EXACT, energy, draw(key), key)[0], -1.75)


def check_slope(objective, shape, key):
    data = jax.random.normal(key, (500, *shape))
    slopes = np.asarray(slope_at_zero(objective, shape, data, jax.random.fold_in(key, 1)), float)
    rounding = np.finfo(np.float32).eps * np.prod(shape)
    assert_close(slopes.mean(), -np.prod(shape), np.hypot(slopes.std() / np.sqrt(len(slopes)), rounding))


@pytest.mark.parametrize("shape", [(2,), (10,), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("name", ["exact", "hutchinson", "sliced-plain", "finite-difference"])
def test_slope_at_zero_energy_is_minus_the_dimension(name, shape, key):
    check_slope(FAMILY[name], shape, key)


@broken_family
def test_broken_twins_fail_the_slope(broken, key):
    with pytest.raises(StatisticalError):
        check_slope(broken, (10,), key)


X0 = np.array([0.3, -1.0, 0.8], np.float32)
TRUTH_B4 = {
    ("gaussian", False): 7.337445689439773,
    ("rademacher", False): 1.4893955406188963,
    ("sphere", False): 1.0816579632759094,
    ("gaussian", True): 23.54736328125,
    ("rademacher", True): 4.7109375,
    ("sphere", True): 5.0439453125,
}


@pytest.mark.parametrize(("probe", "reduced"), TRUTH_B4)
def test_mean_and_variance_over_directions_are_truth_b4(probe, reduced, key):
    """At one x, one direction. Here the "variance-reduced" form varies more."""
    energy = ebm.energies.Gaussian(MEAN, COVARIANCE)
    objective = SlicedScoreMatching(variance_reduced=reduced, probe=probe)
    losses, _ = evaluate(objective, energy, jnp.tile(jnp.asarray(X0), (40_000, 1)), key)
    assert_iid_mean_close(losses, -2.8813232421874995)
    squares = (np.asarray(losses, float) + 2.8813232421874995) ** 2
    assert_iid_mean_close(squares, TRUTH_B4[probe, reduced])
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(1.2 * squares, TRUTH_B4[probe, reduced])


@pytest.mark.parametrize(
    ("probe", "reduced", "variance"),
    [("gaussian", False, 60), ("rademacher", False, 45), ("gaussian", True, 20), ("rademacher", True, 0)],
)
def test_variance_at_the_truth_is_truth_b5(probe, reduced, variance, key):
    """E_x Var_v at N(0, I_10): half the squared difference of two directions."""
    data = jax.random.normal(key, (20_000, 10))
    objective = SlicedScoreMatching(variance_reduced=reduced, probe=probe)
    first, second = (
        np.asarray(evaluate(objective, isotropic_energy(1.0, (10,)), data, jax.random.fold_in(key, i))[0])
        for i in (1, 2)
    )
    halves = (first - second) ** 2 / 2
    if variance == 0:
        assert halves.max() < 1e-9
    else:
        assert_iid_mean_close(halves, variance)


@pytest.mark.parametrize(
    ("objective", "variance"),
    [
        (EXACT, 0.2),
        (SlicedScoreMatching(variance_reduced=False), 2.0),
        (SlicedScoreMatching(4, variance_reduced=False), 0.65),
        (SlicedScoreMatching(variance_reduced=False, probe="gaussian"), 2.4),
        (SlicedScoreMatching(probe="gaussian"), 0.4),
        (SlicedScoreMatching(), 0.2),
    ],
)
def test_variance_of_the_scalar_precision_is_truth_b10(objective, variance, key):
    """n Var(precision) on N(0, I_10): the squared influence of one row; plain Rademacher 2/d + 2(d-1)/(d M)."""
    data = jax.random.normal(key, (30_000, 10))
    gradients = row_gradients(objective, isotropic_energy(1.0, (10,)), data, jax.random.fold_in(key, 1))
    influence = gradients[:, 0] / 10
    assert_iid_mean_close(influence**2, variance)


def spiked(u, x):
    return 50 * jnp.sum(u * x) ** 2 + jnp.sum(x**2) / 2


def test_hutch_plus_plus_is_exact_on_what_the_sketch_sees(key):
    """100 uu' + I, d = 10: three products with the Hessian, of 2 * 100^2 (1 - sum u^4) / 3 by probes alone."""
    u = jnp.arange(1.0, 11.0) / jnp.sqrt(385.0)
    energy, x = ebm.FunctionEnergy(spiked, (10,), u), jnp.zeros((4000, 10))
    plain, sketched, whole = (
        evaluate(objective, energy, x, key)[0] + 110
        for objective in (
            HutchinsonScoreMatching(3),
            HutchinsonScoreMatching(sketch_size=1),
            HutchinsonScoreMatching(sketch_size=12),
        )
    )
    assert_iid_mean_close(plain**2, 2 * 100**2 * (1 - jnp.sum(u**4)) / 3)
    assert_iid_mean_close(sketched, 0.0)
    assert jnp.mean(sketched**2) < jnp.mean(plain**2) / 20
    np.testing.assert_allclose(whole, 0, atol=1e-3)


def quartic(t, x):
    return t * jnp.sum(x**4)


def test_quartic_energy_is_truth_b8(key):
    """exp(-t x^4) at t = 1: the minimiser, and n Var = 5.8358 (maximum likelihood: 4)."""
    gamma, sign = jax.random.gamma(key, 0.25, (100_000, 1)), jax.random.rademacher(key, (100_000, 1), jnp.float32)
    data = sign * gamma**0.25
    energy = ebm.FunctionEnergy(quartic, (1,), 0.5)
    estimate, covariance = solve(EXACT, energy, data, key)
    assert_close(estimate, [1.0], np.sqrt(np.diag(covariance)))
    np.testing.assert_allclose(covariance * 100_000, 5.835838973937271, rtol=0.1)


def test_finite_differences_of_a_quartic():
    """slope -(4x^3 + 4xh^2), curvature -(12x^2 + 2h^2): exactly the bias that the docstring declares."""
    x, h = jnp.asarray([[0.7], [-1.2]]), 0.5
    with jax.enable_x64(True):
        energy = ebm.FunctionEnergy(quartic, (1,), 1.0)
        losses, _ = evaluate(FiniteDifferenceScoreMatching(h), energy, x.astype(jnp.float64), jax.random.key(0))
    expected = (4 * x**3 + 4 * x * h**2) ** 2 / 2 - (12 * x**2 + 2 * h**2)
    np.testing.assert_allclose(losses, expected[:, 0], rtol=1e-6)


def linear(w, x):
    return jnp.sum(w * x)


@pytest.mark.parametrize("objective", [EXACT, HutchinsonScoreMatching(2), SlicedScoreMatching()], ids=str)
def test_linear_energy_gives_half_the_squared_norm(objective, key):
    w = jnp.asarray([1.0, -2.0, 3.0])
    losses, _ = evaluate(objective, ebm.FunctionEnergy(linear, (3,), w), draw(key, 5), key)
    np.testing.assert_allclose(losses, 7.0, rtol=1e-6)


def test_far_away_the_loss_is_finite_and_right(key):
    loss = SlicedScoreMatching().loss(isotropic_energy(1.0, (2,)), jnp.full((3, 2), 1000.0), key=key)
    np.testing.assert_allclose(loss, 1e6 - 2, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (3, 2, 2)], ids=str)
@family
def test_loss_does_not_depend_on_how_the_event_is_arranged(objective, shape, key):
    data = jax.random.normal(key, (7, int(np.prod(shape)) if shape else 1))
    energy, flat = isotropic_energy(0.7, shape), isotropic_energy(0.7, data.shape[1:])
    arranged = objective.loss(energy, data.reshape(7, *shape), key=key)
    assert arranged.shape == ()
    np.testing.assert_allclose(arranged, objective.loss(flat, data, key=key), rtol=1e-5)


def test_200_rows_are_80_and_120_rows_weighted(key):
    data, energy = draw(key, 200), ebm.energies.Gaussian(MEAN, COVARIANCE)
    whole, first, second = (float(EXACT.loss(energy, rows, key=key)) for rows in (data, data[:80], data[80:]))
    np.testing.assert_allclose(whole, (80 * first + 120 * second) / 200, rtol=1e-5)


def conditional(slope, x, condition):
    return (x - slope * condition) ** 2 / 2


@pytest.mark.parametrize("objective", [EXACT, FiniteDifferenceScoreMatching()], ids=["exact", "finite-difference"])
def test_conditional_energy_gets_the_condition_of_its_own_row(objective, key):
    """Data N(2y, 1): the slope is 2."""
    condition = jax.random.normal(key, (20_000,))
    data = 2 * condition + jax.random.normal(jax.random.fold_in(key, 1), (20_000,))
    energy = ebm.FunctionEnergy(conditional, (), 0.3, condition_shape=())
    estimate, covariance = solve(objective, energy, (data, condition), key)
    assert_close(estimate, [2.0], np.sqrt(np.diag(covariance)))


@pytest.mark.parametrize("probe", ["rademacher", "gaussian", "sphere"])
def test_directions_are_isotropic(probe, key):
    """E v v' = I; signs are exactly +-1, vectors on the sphere have length exactly sqrt(d)."""
    directions = np.asarray(draw_directions(probe, jnp.zeros(4), 20_000, key=key))
    products = directions[:, :, None] * directions[:, None, :]
    upper = np.triu_indices(4, 0 if probe == "gaussian" else 1)
    assert_iid_mean_close(products[:, *upper], np.eye(4)[upper])
    if probe == "rademacher":
        assert set(np.unique(directions)) == {-1.0, 1.0}
    if probe == "sphere":
        np.testing.assert_allclose((directions**2).sum(1), 4, rtol=1e-5)
        assert_iid_mean_close(directions**2, 1)


@pytest.mark.parametrize("make", [HutchinsonScoreMatching, SlicedScoreMatching])
def test_settings_are_checked_by_name(make):
    with pytest.raises(ValueError, match=r"`num_(probes|slices)` must be an integer >= 1; got 0"):
        make(0)
    with pytest.raises(ValueError, match="`probe` must be one of rademacher, gaussian, sphere; got 'unit'"):
        make(probe="unit")


def test_sketch_size_is_checked_by_name():
    with pytest.raises(ValueError, match="`sketch_size` must be an integer >= 0; got -1"):
        HutchinsonScoreMatching(sketch_size=-1)


@pytest.mark.parametrize("spacing", [0.0, -0.1, np.nan, None, [0.1, 0.2]])
def test_spacing_is_checked_by_name(spacing):
    with pytest.raises(ValueError, match="`spacing` must be"):
        FiniteDifferenceScoreMatching(spacing)
