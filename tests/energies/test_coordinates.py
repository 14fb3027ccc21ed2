"""The change of variables: NumPyro's own distributions integrate to one in the coordinates of their supports."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints, transforms
from scipy.special import logsumexp

import ebm_ppl as ebm
from ebm_ppl.energies import Target
from ebm_ppl.training._inputs import partition

ONE, TWO, THREE = (-40.0, 40.0, 16_001), (-16.0, 16.0, 641), (-9.0, 9.0, 91)


def of(distribution, support=None):
    """-log_prob of a normalised distribution, as an energy on its support."""
    support = distribution.support if support is None else support

    def log_prob(x):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return -distribution.log_prob(x).astype(x.dtype)

    return ebm.FunctionEnergy(log_prob, distribution.event_shape, support=support)


def loosely(make, *args):
    """NumPyro's constructors mix integers and floats."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return make(*args)


def flat(size, log_volume, support):
    """A constant density, normalised by its known volume."""
    return ebm.FunctionEnergy(lambda x: 0 * jnp.sum(x) + log_volume, size, support=support)


ordered = dist.TransformedDistribution(dist.Normal(jnp.zeros(2), 1.0).to_event(1), transforms.OrderedTransform())
CASES = {
    "real": (of(dist.Normal(0.3, 2.0)), ONE),
    "positive": (of(dist.Gamma(3.0, 2.0)), ONE),
    "nonnegative": (of(dist.HalfNormal(1.0), constraints.nonnegative), ONE),
    "softplus_positive": (of(dist.Gamma(3.0, 2.0), constraints.softplus_positive), ONE),
    "greater_than": (of(dist.Pareto(1.5, 4.0), constraints.greater_than(1.5)), ONE),
    "less_than": (flat((), 0.0, constraints.interval(0.0, 1.0)), ONE),
    "unit_interval": (of(dist.Beta(2.0, 3.0)), ONE),
    "interval": (of(dist.Uniform(-1.0, 3.0), constraints.interval(-1.0, 3.0)), ONE),
    "circular": (of(dist.VonMises(0.5, 2.0)), TWO),
    "simplex": (of(dist.Dirichlet(jnp.array([2.0, 3.0, 4.0]))), TWO),
    "ordered_vector": (of(ordered, constraints.ordered_vector), TWO),
    "corr_cholesky": (of(loosely(dist.LKJCholesky, 3, 2.0)), THREE),
    "corr_matrix": (of(loosely(dist.LKJ, 3, 2.0)), THREE),
    "positive_definite": (of(loosely(dist.Wishart, 4.0, jnp.eye(2))), THREE),
    "l1_ball": (flat((2,), np.log(2.0), constraints.l1_ball), TWO),
    "zero_sum": (of(dist.ZeroSumNormal(1.0, (2,))), ONE),
    "real, two rows": (of(dist.Normal(jnp.zeros(2), 1.0).to_event(1)), TWO),
    "positive, every coordinate": (of(dist.Gamma(jnp.array([2.0, 3.0]), 1.0).to_event(1)), TWO),
}


def log_integral(target, low, high, number):
    axis = np.linspace(low, high, number)
    grid = np.stack(np.meshgrid(*[axis] * target.dimension, indexing="ij"), -1).reshape(-1, *target.shape)
    values = np.asarray(jax.jit(jax.vmap(target))(jnp.asarray(grid, jnp.float32)), np.float64)
    values = np.where(np.isfinite(values), values, -np.inf)  # rounding at the far ends of the axes
    return logsumexp(values) + target.dimension * np.log(axis[1] - axis[0])


@pytest.mark.parametrize("name", CASES)
def test_a_normalised_distribution_integrates_to_one_in_its_coordinates(name):
    energy, grid = CASES[name]
    target = Target(energy)
    assert abs(log_integral(target, *grid)) < 2e-3
    z = jax.random.normal(jax.random.key(0), (5, *target.shape))
    events = jax.vmap(target.to_event)(z)
    back = jax.vmap(target.to_event)(jax.vmap(target.to_coordinates)(events))
    np.testing.assert_allclose(back, events, rtol=2e-4, atol=2e-5)


def test_without_the_jacobian_it_does_not():
    target = Target(CASES["unit_interval"][0])
    broken = ebm.FunctionEnergy(lambda z: target.log_jacobian(z) - target(z), (1,))
    assert abs(log_integral(Target(broken), *ONE)) > 0.1


def test_named_parts_follow_each_other():
    def log_density(x):
        return -jnp.sum(x["w"] ** 2) / 2 - x["tau"] + 2 * jnp.log(x["tau"]) - jnp.cos(x["angle"])

    support = {"tau": constraints.positive, "angle": constraints.circular}
    energy = ebm.FunctionEnergy(lambda x: -log_density(x), {"w": (2,), "tau": (), "angle": ()}, support=support)
    target = Target(energy)
    assert target.parts == ("w", "tau", "angle")
    assert target.shape == (5,)
    z = jnp.array([0.5, -1.0, 0.2, 3.0, 4.0])
    event = {"w": z[:2], "tau": jnp.exp(z[2]), "angle": jnp.arctan2(4.0, 3.0)}
    np.testing.assert_allclose(target(z), log_density(event) + 0.2 - 25 / 2, rtol=1e-5)
    assert target.coordinates.coordinate_names() == ["w[0]", "w[1]", "tau", "angle[0]", "angle[1]"]
    packed = target.coordinates.pack(event)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), target.coordinates.unpack(packed), event))
    found = target.to_event(target.to_coordinates(event))
    np.testing.assert_allclose(found["angle"], event["angle"], rtol=1e-6)


@pytest.mark.parametrize(
    ("support", "shape", "match"),
    [
        (constraints.sphere, (3,), "NumPyro has none onto it"),
        (constraints.boolean, (2,), "it is discrete"),
        (constraints.integer_interval(0, 3), (2,), "it is discrete"),
        (constraints.complex, (), "complex"),
    ],
)
def test_supports_without_coordinates_are_refused_by_name(support, shape, match):
    energy = ebm.FunctionEnergy(lambda x: jnp.sum(x), shape, support=support)
    with pytest.raises(NotImplementedError, match=match):
        Target(energy)
    with pytest.raises(NotImplementedError, match=match):
        ebm.sample(energy, key=jax.random.key(0))
    with pytest.raises(NotImplementedError, match=match):
        ebm.normalizers.quadrature(energy)


def test_wrong_supports_are_refused_at_construction():
    def make(support, shape=(2,)):
        return ebm.FunctionEnergy(jnp.sum, shape, support=support)

    with pytest.raises(TypeError, match="`support` must be one of numpyro"):
        make("positive")
    with pytest.raises(ebm.EnergyShapeError, match="2-dimensional"):
        make(constraints.corr_cholesky)
    with pytest.raises(TypeError, match="one constraint"):
        make({"w": constraints.positive})
    with pytest.raises(TypeError, match="dictionary of constraints"):
        make(constraints.positive, {"w": (2,)})
    with pytest.raises(ValueError, match="'tau', which is no part"):
        make({"tau": constraints.positive}, {"w": (2,)})
    with pytest.raises(ValueError, match="at least one named part"):
        make(None, {})
    assert make(constraints.real).support is None
    assert make({"w": constraints.real}, {"w": (2,)}).support is None


def test_composed_energies_pass_their_support_on():
    positive = ebm.FunctionEnergy(jnp.sum, (2,), support=constraints.positive)
    real = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    unit = ebm.FunctionEnergy(jnp.sum, (2,), support=constraints.unit_interval)
    for energy in (
        ebm.SumEnergy(real, positive),
        ebm.TemperedEnergy(positive, 0.5),
        ebm.ShiftedEnergy(positive, 1.0),
        ebm.SumEnergy(positive, ebm.TemperedEnergy(positive, 2.0)),
    ):
        assert energy.support is constraints.positive
    assert ebm.SumEnergy(real, real).support is None
    with pytest.raises(ValueError, match=r"`energies\[0\]` has the support Positive"):
        ebm.SumEnergy(positive, unit)
    bounds = [constraints.greater_than(jnp.array([0.0, low])) for low in (1.0, 1.0, 2.0)]
    parts = [ebm.FunctionEnergy(jnp.sum, (2,), support=bound) for bound in bounds]
    assert ebm.SumEnergy(parts[0], parts[1]).support is bounds[0]
    with pytest.raises(ValueError, match="give both the same support"):
        ebm.SumEnergy(parts[0], parts[2])


def test_bounds_of_a_support_are_never_trained():
    bounds = constraints.greater_than(jnp.array([0.0, 1.0]))
    energy = ebm.FunctionEnergy(lambda p, x: p * jnp.sum(x**2), (2,), jnp.asarray(1.0), support=bounds)
    params, static = partition((ebm.ShiftedEnergy(energy), {"a": jnp.ones(1)}), None)
    assert sorted(leaf.size for leaf in jax.tree.leaves(params)) == [1, 1, 1]  # the parameter, log Z, and `a`
    assert any(leaf.shape == (2,) for leaf in jax.tree.leaves(static) if eqx.is_array(leaf))
