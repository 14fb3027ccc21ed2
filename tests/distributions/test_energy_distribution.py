"""`EnergyDistribution` against the same law written as a NumPyro distribution: values, gradients, every context."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer.util import potential_energy

import ebm_ppl as ebm
from tests.distributions.normals import (
    COVARIANCE,
    GAUSSIAN,
    LOG_2PI,
    log_prob_of,
    normal,
    two_dimensional,
)
from tests.foreign import standard_promotion


def test_log_prob_is_the_closed_form_one_number_per_event(key):
    energy, reference = two_dimensional()
    x = jax.random.normal(key, (4, 3, 2))
    np.testing.assert_allclose(energy.log_prob(x), log_prob_of(reference, x), rtol=1e-5)
    np.testing.assert_allclose(energy.log_prob(x[0, 0]), log_prob_of(reference, x[0, 0]), rtol=1e-5)
    assert energy.log_prob(x).shape == (4, 3)
    assert energy.batch_shape == ()
    assert energy.event_shape == (2,)
    potential = -log_prob_of(reference, x) - energy.log_normalizer
    np.testing.assert_allclose(energy.potential_energy(x), potential, rtol=1e-4)


def test_jit_vmap_and_tree_operations_change_nothing(key):
    energy, _ = two_dimensional()
    x = jax.random.normal(key, (4, 2))
    expected = energy.log_prob(x)
    np.testing.assert_allclose(jax.jit(lambda d, x: d.log_prob(x))(energy, x), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(energy.log_prob)(x), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.tree.map(lambda leaf: leaf + 0, energy).log_prob(x), expected, rtol=1e-6)


def test_distributions_built_or_stacked_by_vmap_keep_their_batch(key):
    """NumPyro does not tell a distribution that it was stacked; a plain energy would sum over the new axis."""
    means = jax.random.normal(key, (3,))
    stacked = jax.vmap(lambda mean: normal(mean, 2.0))(means)
    x = jnp.arange(3.0)
    expected = log_prob_of(dist.Normal(means, math.sqrt(0.5)), x)
    np.testing.assert_allclose(stacked.log_prob(x), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(lambda d, x: d.log_prob(x))(stacked, x), expected, rtol=1e-5)
    assert "batch_shape=(3,)" in repr(stacked)


def test_a_second_jitted_call_compiles_nothing(key):
    calls = []

    @jax.jit
    def log_prob(d, x):
        calls.append(None)
        return d.log_prob(x)

    for i in range(3):
        log_prob(normal(float(i), 2.0, support=constraints.interval(-9.0, 9.0)), jnp.ones(2))
    assert len(calls) == 1


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_reference_energies_bring_log_normalizer_and_exact_draws(make_key):
    energy, _ = two_dimensional()
    assert energy.log_normalizer == pytest.approx(LOG_2PI + 0.5 * math.log(1.75), rel=1e-6)
    draws = energy.sample(make_key(0), (5, 4))
    np.testing.assert_array_equal(draws, GAUSSIAN.sample(jax.random.key(0), (5, 4)))
    assert draws.shape == (5, 4, 2)


def test_a_reference_energy_on_a_part_of_the_reals_does_not_claim_its_log_normalizer():
    half = ebm.EnergyDistribution(ebm.energies.Gaussian(0.0, 1.0), support=constraints.positive)
    assert half.log_normalizer is None
    with pytest.raises(NotImplementedError, match="sampler"):
        half.sample(jax.random.key(0))


def test_batches_of_energies_are_mapped_never_summed(key):
    means = jax.random.normal(key, (5, 2))
    energies = eqx.filter_vmap(lambda mean: ebm.energies.Gaussian(mean, COVARIANCE))(means)
    batched = ebm.EnergyDistribution(energies, batch_shape=(5,))
    with standard_promotion():
        reference = dist.MultivariateNormal(means, COVARIANCE)
    x = jnp.ones((7, 5, 2))
    np.testing.assert_allclose(batched.log_prob(x), log_prob_of(reference, x), rtol=1e-5)
    np.testing.assert_allclose(batched.log_prob(x[0, 0]), log_prob_of(reference, x[0, 0]), rtol=1e-5)
    assert batched.sample(key, (3,)).shape == (3, 5, 2)
    np.testing.assert_allclose(batched.energy.mean, means)
    draws = batched.sample(key, (2,))
    noise = np.asarray(draws) - np.asarray(means)
    assert not np.allclose(noise[:, 0], noise[:, 1])  # own randomness for each element


def test_undeclared_batch_axes_are_refused():
    energies = eqx.filter_vmap(lambda mean: ebm.energies.Gaussian(mean, COVARIANCE))(jnp.zeros((5, 2)))
    with pytest.raises(ebm.EnergyShapeError, match="Gaussian"):
        ebm.EnergyDistribution(energies)
    with pytest.raises(ebm.EnergyShapeError, match="must lead with `batch_shape`"):
        ebm.EnergyDistribution(GAUSSIAN, batch_shape=(5,))
    with pytest.raises(ebm.EnergyShapeError, match="declare `batch_shape`"):
        ebm.EnergyDistribution(ebm.FunctionEnergy(quadratic_sum, (2,)), log_normalizer=jnp.zeros(5))


def quadratic_sum(x):
    return jnp.sum(x**2) / 2


def conditional(x, condition):
    return jnp.sum((x - condition) ** 2) / 2


CONDITIONAL = ebm.FunctionEnergy(conditional, (2,), condition_shape=(2,))


def test_conditional_energies_have_one_distribution_per_condition(key):
    conditions = jax.random.normal(key, (5, 2))
    energy = ebm.EnergyDistribution(CONDITIONAL, condition=conditions, log_normalizer=LOG_2PI)
    x = jnp.ones((3, 5, 2))
    np.testing.assert_allclose(energy.log_prob(x), log_prob_of(dist.Normal(conditions, 1.0).to_event(1), x), rtol=1e-5)
    assert energy.batch_shape == (5,)
    np.testing.assert_array_equal(energy.condition, conditions)


def test_batched_parameters_and_conditions_combine(key):
    def energy(shift, x, condition):
        return (x - shift - condition) ** 2 / 2

    shifts, conditions = jax.random.normal(key, (4, 1)), jax.random.normal(key, (3,))
    both = ebm.EnergyDistribution(
        ebm.FunctionEnergy(energy, (), shifts, condition_shape=()), condition=conditions, batch_shape=(4, 1)
    )
    assert both.batch_shape == (4, 3)
    np.testing.assert_allclose(both.log_prob(jnp.zeros(())), -((shifts + conditions[None]) ** 2) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({}, "must be one of shape"),
        ({"condition": jnp.zeros(3)}, "must have shape"),
        ({"condition": jnp.zeros(())}, "must have shape"),
    ],
)
def test_conditions_that_do_not_fit(kwargs, error):
    with pytest.raises(ValueError, match=error):
        ebm.EnergyDistribution(CONDITIONAL, **kwargs)


def test_a_condition_for_an_unconditional_energy():
    with pytest.raises(ValueError, match="unconditional"):
        ebm.EnergyDistribution(GAUSSIAN, condition=jnp.zeros(2))


@pytest.mark.parametrize(
    ("fn", "error", "words"),
    [
        (lambda x: x**2, ebm.EnergyShapeError, "scalar"),
        (lambda x: jnp.sum(x, keepdims=True), ebm.EnergyShapeError, "squeeze"),
        (lambda x: None, ebm.EnergyShapeError, "None"),
        (lambda x: (jnp.sum(x), 1), ebm.EnergyShapeError, "tuple"),
        (lambda x: jnp.dot(x, jnp.ones(3)), ebm.EnergyShapeError, "shape"),
        (lambda x: jnp.argmax(x), ebm.EnergyDtypeError, "int"),
        (lambda x: np.sum(np.asarray(x)), ebm.NonDifferentiableEnergyError, "NumPy"),
    ],
)
def test_energies_that_are_not_scalars_of_one_event_are_refused_at_construction(fn, error, words):
    with pytest.raises(error, match=words):
        ebm.EnergyDistribution(ebm.FunctionEnergy(fn, (2,)))


def test_other_misuse_is_refused_with_a_cure():
    with pytest.raises(TypeError, match=r"FunctionEnergy|AbstractEnergy"):
        ebm.EnergyDistribution(quadratic_sum)
    with pytest.raises(TypeError, match=r"constraints\.positive"):
        ebm.EnergyDistribution(GAUSSIAN, support="positive")
    with pytest.raises(ebm.EnergyShapeError, match="event_shape"):
        ebm.EnergyDistribution(ebm.energies.Gaussian(0.0, 1.0), support=constraints.simplex)
    with pytest.raises(ValueError, match="finite"):
        ebm.EnergyDistribution(GAUSSIAN, log_normalizer=math.inf)
    with pytest.raises(ebm.EnergyShapeError, match="event shape"):
        ebm.EnergyDistribution(GAUSSIAN).log_prob(jnp.zeros(3))


class Estimate:
    value = np.float64(1.5)


@pytest.mark.parametrize(
    "given", [1.5, np.float64(1.5), jnp.asarray(1.5), Estimate()], ids=["float", "numpy", "jax", "estimate"]
)
def test_log_normalizer_may_be_a_number_an_array_or_an_estimate(given):
    known = ebm.EnergyDistribution(ebm.FunctionEnergy(quadratic_sum, (2,)), log_normalizer=given).expand([3])
    np.testing.assert_allclose(known.log_prob(jnp.zeros((3, 2))), -1.5 * np.ones(3))


def test_sample_without_a_sampler_names_the_cure():
    with pytest.raises(NotImplementedError, match="sampler="):
        ebm.EnergyDistribution(ebm.FunctionEnergy(quadratic_sum, (2,))).sample(jax.random.key(0))


def draw_normal(energy, key, sample_shape):
    return jax.random.normal(key, sample_shape + energy.event_shape)


def draw_conditional(energy, key, sample_shape, condition):
    noise = jax.random.normal(key, sample_shape + energy.event_shape)
    return jnp.broadcast_to(condition, noise.shape) + noise


def test_samplers_draw_for_one_batch_element(key):
    plain = ebm.EnergyDistribution(ebm.FunctionEnergy(quadratic_sum, (2,)), sampler=draw_normal)
    assert plain.sample(key, (4,)).shape == (4, 2)
    assert plain.expand([3]).sample(key, (4,)).shape == (4, 3, 2)
    np.testing.assert_array_equal(plain.sample(key, (4,)), jax.jit(lambda d, k: d.sample(k, (4,)))(plain, key))
    conditions = 100 * jnp.broadcast_to(jnp.arange(3.0)[:, None], (3, 2))
    each = ebm.EnergyDistribution(CONDITIONAL, condition=conditions, sampler=draw_conditional)
    draws = each.sample(key, (4,))
    assert draws.shape == (4, 3, 2)
    np.testing.assert_allclose(draws, jnp.broadcast_to(conditions, (4, 3, 2)), atol=6)
    wrong = ebm.EnergyDistribution(CONDITIONAL, condition=conditions, sampler=lambda e, k, s, c: jnp.zeros(5))
    with pytest.raises(ebm.EnergyShapeError, match="`sampler` must return"):
        wrong.sample(key)


def test_has_no_reparametrised_sampler():
    assert not ebm.EnergyDistribution(GAUSSIAN).has_rsample
    assert not ebm.EnergyDistribution(GAUSSIAN).expand([3]).to_event(1).mask(True).has_rsample


def test_data_of_integers_count_as_numbers():
    np.testing.assert_allclose(normal().log_prob(np.array([0, 1])), dist.Normal().log_prob(jnp.arange(2.0)), rtol=1e-6)


# --- supports ---------------------------------------------------------------------------------------------------------


def gamma(x):
    return jnp.sum(2 * x - 2 * jnp.log(x))  # Gamma(3, 2)


def beta(x):
    return jnp.sum(-jnp.log(x) - 2 * jnp.log1p(-x))  # Beta(2, 3)


def dirichlet(x):
    return -jnp.sum(jnp.array([1.0, 2.0, 3.0]) * jnp.log(x))  # Dirichlet(2, 3, 4)


def von_mises(x):
    return -1.5 * jnp.sum(jnp.cos(x - 0.5))


def wishart(x):
    return -0.5 * jnp.linalg.slogdet(x)[1] + 0.5 * jnp.trace(x)  # Wishart(4, I) in 2 x 2


SUPPORTS = [
    ((), constraints.positive, gamma, dist.Gamma(3.0, 2.0)),
    ((2,), constraints.positive, gamma, dist.Gamma(3.0, 2.0).expand([2]).to_event(1)),
    ((), constraints.unit_interval, beta, dist.Beta(2.0, 3.0)),
    ((2,), constraints.interval(0.0, 1.0), beta, dist.Beta(2.0, 3.0).expand([2]).to_event(1)),
    ((3,), constraints.simplex, dirichlet, dist.Dirichlet(jnp.array([2.0, 3.0, 4.0]))),
    ((), constraints.circular, von_mises, dist.VonMises(0.5, 1.5)),
    ((2,), constraints.circular, von_mises, dist.VonMises(0.5, 1.5).expand([2]).to_event(1)),
    ((2, 2), constraints.positive_definite, wishart, dist.Wishart(4.0, jnp.eye(2))),
    ((3,), constraints.ordered_vector, quadratic_sum, dist.Normal(0.0, 1.0).expand([3]).to_event(1)),
]


@pytest.mark.usefixtures("numpyro_rules")
@pytest.mark.parametrize(("event_shape", "support", "fn", "reference"), SUPPORTS)
@pytest.mark.filterwarnings("ignore:Continuous inference poorly handles circular")
def test_constrained_latents_have_the_potential_of_the_closed_form(event_shape, support, fn, reference, key):
    """Equal up to one constant (log Z), Jacobian included, in the unconstrained coordinates that samplers see."""
    energy = ebm.EnergyDistribution(ebm.FunctionEnergy(fn, event_shape), support=support)
    transform = dist.biject_to(energy.support)

    def potential(z):
        return potential_energy(lambda: numpyro.sample("x", energy), (), {}, {"x": z})

    def exact(z):
        x = transform(z)
        return -jnp.sum(reference.log_prob(x)) - jnp.sum(transform.log_abs_det_jacobian(z, x))

    z = jax.random.normal(key, (4, *transform.inverse_shape(event_shape)))
    ours = jax.jit(jax.vmap(jax.value_and_grad(potential)))(z)
    theirs = jax.jit(jax.vmap(jax.value_and_grad(exact)))(z)
    np.testing.assert_allclose(ours[0] - ours[0][0], theirs[0] - theirs[0][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Out-of-support values")
def test_outside_the_support_the_density_is_zero_and_the_gradient_finite():
    energy = ebm.EnergyDistribution(ebm.FunctionEnergy(gamma, (2,)), support=constraints.positive)
    x = jnp.array([[1.0, 1.0], [-1.0, 1.0], [1.0, 0.0]])
    for evaluate in (energy.log_prob, jax.jit(energy.log_prob)):
        np.testing.assert_allclose(evaluate(x), [-4.0, -np.inf, -np.inf])
    np.testing.assert_allclose(jax.vmap(jax.grad(energy.log_prob))(x), [[0, 0], [0, 0], [0, 0]])


def test_values_outside_the_support_are_warned_of_as_numpyro_does():
    energy = ebm.EnergyDistribution(ebm.FunctionEnergy(gamma, ()), support=constraints.positive)
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert energy.log_prob(jnp.asarray(-1.0)) == -jnp.inf
    quiet = ebm.EnergyDistribution(ebm.FunctionEnergy(gamma, ()), support=constraints.positive, validate_args=False)
    assert quiet.log_prob(jnp.asarray(-1.0)) == -jnp.inf


@pytest.mark.filterwarnings("ignore:Out-of-support values")
def test_not_a_number_stays_visible():
    for support in (None, constraints.positive):
        energy = ebm.EnergyDistribution(ebm.FunctionEnergy(quadratic_sum, (2,)), support=support)
        assert np.isnan(energy.log_prob(jnp.array([jnp.nan, 1.0])))


@pytest.mark.usefixtures("numpyro_rules")
def test_rounding_in_a_bijection_does_not_count_as_outside(key):
    """NumPyro's test of positive definiteness rejects 4 of 10 values of its own bijection at 30 x 30."""
    energy = ebm.EnergyDistribution(ebm.FunctionEnergy(jnp.trace, (30, 30)), support=constraints.positive_definite)
    transform = dist.biject_to(energy.support)
    z = jax.random.normal(key, (20, *transform.inverse_shape((30, 30))))
    inside = constraints.positive_definite(transform(z))
    assert not inside.all()  # the trap exists
    assert np.isfinite(jax.jit(lambda z: energy.log_prob(transform(z)))(z)).all()


def test_bounds_that_are_arrays_are_data(key):
    @jax.jit
    def log_prob(high, x):
        energy = ebm.FunctionEnergy(quadratic_sum, ())
        return ebm.EnergyDistribution(energy, support=constraints.interval(0.0, high)).log_prob(x)

    np.testing.assert_allclose(log_prob(2.0, 1.0), -0.5)
    assert log_prob(0.5, 1.0) == -jnp.inf
    distribution = ebm.EnergyDistribution(
        ebm.FunctionEnergy(quadratic_sum, ()), support=constraints.interval(0.0, jnp.asarray(2.0))
    )
    np.testing.assert_allclose(jax.jit(lambda d: d.log_prob(1.0))(distribution), -0.5)


def test_the_repr_says_what_is_known():
    assert repr(ebm.EnergyDistribution(GAUSSIAN)) == (
        "EnergyDistribution(Gaussian, batch_shape=(), event_shape=(2,), log Z known, exact sampler)"
    )
    free = ebm.EnergyDistribution(ebm.FunctionEnergy(gamma, (2,)), support=constraints.positive, sampler=draw_normal)
    assert "log Z unknown, sampler" in repr(free)
    assert "support=IndependentConstraint(Positive" in repr(free)
