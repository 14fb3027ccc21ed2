"""SumEnergy, TemperedEnergy and ShiftedEnergy against Gaussians, whose products and powers are Gaussian."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.energies import Gaussian

COVARIANCE = np.array([[1.0, 0.3], [0.3, 0.5]])
X = jnp.array([0.3, -1.2])


def squared_distance(x, condition):
    return jnp.sum((x - condition) ** 2)


def conditional(shape=(2,)):
    return ebm.FunctionEnergy(squared_distance, (2,), condition_shape=shape)


def test_sum_is_the_product_of_gaussians():
    first, second = Gaussian([1.0, -0.5], COVARIANCE), Gaussian([0.0, 2.0], 2 * np.eye(2))
    precision = np.linalg.inv(COVARIANCE) + np.eye(2) / 2
    mean = np.linalg.solve(precision, np.linalg.inv(COVARIANCE) @ [1.0, -0.5] + np.array([0.0, 1.0]))
    product = Gaussian(mean, np.linalg.inv(precision))
    total = ebm.SumEnergy(first, second)
    np.testing.assert_allclose(ebm.score(total, X), ebm.score(product, X), rtol=1e-5)
    np.testing.assert_allclose(total(X), float(first(X)) + float(second(X)), rtol=1e-6)


def test_tempered_gaussian_has_its_covariance_divided():
    for beta in (0.25, 1.0, 3.0):
        tempered = ebm.TemperedEnergy(Gaussian([1.0, -0.5], COVARIANCE), beta)
        np.testing.assert_allclose(tempered(X), Gaussian([1.0, -0.5], COVARIANCE / beta)(X), rtol=1e-5)
    assert float(ebm.TemperedEnergy(Gaussian([0.0, 0.0], COVARIANCE), 0)(X)) == 0
    wall = ebm.FunctionEnergy(lambda x: jnp.where(x > 0, x, jnp.inf), ())
    assert np.isnan(float(ebm.TemperedEnergy(wall, 0.0)(jnp.asarray(-1.0))))


def test_inverse_temperature_may_be_traced_and_changed_without_a_new_trace():
    energy = Gaussian([0.0, 0.0], COVARIANCE)
    values = jax.vmap(lambda beta: ebm.TemperedEnergy(energy, beta)(X))(jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(values, np.array([0, 0.5, 1]) * float(energy(X)), rtol=1e-6)
    evaluate = eqx.filter_jit(eqx.debug.assert_max_traces(lambda energy, x: energy(x), max_traces=1))
    for beta in (0.1, 0.2):
        evaluate(ebm.TemperedEnergy(energy, beta), X)


def test_shifted_by_log_normalizer_is_normalised():
    gaussian = Gaussian(1.0, 0.3)
    normalised = ebm.ShiftedEnergy(gaussian, gaussian.log_normalizer)
    grid = jnp.linspace(-8, 10, 2001)
    integral = np.sum(np.exp(-np.asarray(jax.vmap(normalised)(grid), float))) * float(grid[1] - grid[0])
    np.testing.assert_allclose(integral, 1, rtol=1e-4)


def test_log_normalizer_is_learnable_and_leaves_the_score_alone():
    energy = ebm.ShiftedEnergy(Gaussian([1.0, -0.5], COVARIANCE))
    gradient = eqx.filter_grad(lambda model: model(X))(energy)
    assert float(energy.log_normalizer) == 0
    assert float(gradient.log_normalizer) == 1
    moved = ebm.ShiftedEnergy(energy.energy, 5.0)
    np.testing.assert_array_equal(ebm.score(moved, X), ebm.score(energy, X))
    assert float(moved(X)) == pytest.approx(float(energy(X)) + 5)


def test_condition_passes_through_every_composition():
    prior = Gaussian([0.0, 0.0], np.eye(2))
    energy = ebm.ShiftedEnergy(ebm.TemperedEnergy(ebm.SumEnergy(prior, conditional()), 2.0), 1.0)
    assert energy.condition_shape == (2,)
    y = jnp.array([1.0, 1.0])
    expected = 2 * (np.sum(np.square(X)) / 2 + np.sum(np.square(X - y))) + 1
    np.testing.assert_allclose(energy(X, y), expected, rtol=1e-6)
    assert float(ebm.log_density(energy, y)(X)) == -float(energy(X, y))
    with pytest.raises(ebm.EnergyShapeError, match="needs a condition"):
        energy(X)
    with pytest.raises(ebm.EnergyShapeError, match="takes no condition"):
        ebm.SumEnergy(prior, prior)(X, y)


def test_members_must_agree():
    with pytest.raises(ebm.EnergyShapeError, match=r"energies\[0\] has \(2,\), energies\[1\] has \(\)"):
        ebm.SumEnergy(Gaussian([0.0, 0.0], np.eye(2)), Gaussian(0.0, 1.0))
    with pytest.raises(ebm.EnergyShapeError, match=r"energies\[0\] has \(2,\), energies\[2\] has \(3,\)"):
        ebm.SumEnergy(conditional(), Gaussian([0.0, 0.0], np.eye(2)), conditional((3,)))
    with pytest.raises(ValueError, match="at least one"):
        ebm.SumEnergy()
    for compose in (ebm.SumEnergy, ebm.ShiftedEnergy, lambda fn: ebm.TemperedEnergy(fn, 1.0)):
        with pytest.raises(TypeError):
            compose(squared_distance)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda e: ebm.TemperedEnergy(e, -0.5), "`inverse_temperature` must be non-negative; got -0.5"),
        (lambda e: ebm.TemperedEnergy(e, np.nan), "`inverse_temperature` must be finite"),
        (lambda e: ebm.TemperedEnergy(e, np.ones(2)), "`inverse_temperature` must have 0 axes"),
        (lambda e: ebm.ShiftedEnergy(e, np.inf), "`log_normalizer` must be finite"),
        (lambda e: ebm.ShiftedEnergy(e, np.ones(1)), "`log_normalizer` must have 0 axes"),
    ],
)
def test_construction_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make(Gaussian(0.0, 1.0))


def test_a_member_that_is_not_scalar_is_named():
    class Vector(ebm.AbstractEnergy):
        event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,))

        def __call__(self, x, condition=None):
            return x

    with pytest.raises(ebm.EnergyShapeError, match="`Vector` must return one floating scalar"):
        ebm.SumEnergy(Gaussian([0.0, 0.0], np.eye(2)), Vector())(X)


def test_double_precision_events_with_single_precision_parameters():
    with jax.enable_x64(True):
        single = Gaussian(jnp.zeros(2, jnp.float32), jnp.eye(2, dtype=jnp.float32))
        energy = ebm.ShiftedEnergy(ebm.SumEnergy(ebm.TemperedEnergy(single, 0.5), single), 1.0)
        assert energy(jnp.ones(2, jnp.float64)).dtype == jnp.float64
        assert energy(jnp.ones(2, jnp.float32)).dtype == jnp.float32
