"""`EnergyDistribution` under handlers, reparametrisations, branches, Gibbs and inspection; all of NumPyro's supports.

What the matrix (tests/infer/test_matrix.py) and test_models.py do not have. The same law as a NumPyro distribution is
the reference, or its closed form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond
from numpyro.distributions import constraints
from numpyro.handlers import block, condition, do, reparam, replay, scale, seed, substitute, trace
from numpyro.infer import MCMC, NUTS, Gibbs
from numpyro.infer.inspect import generate_graph_specification, get_dependencies, get_model_relations
from numpyro.infer.reparam import CircularReparam, LocScaleReparam, TransformReparam
from numpyro.infer.util import log_density, potential_energy

import ebm_ppl as ebm
from tests.distributions.normals import normal, reference_normal
from tests.statistics import StatisticalError, assert_mean_close

pytestmark = pytest.mark.usefixtures("numpyro_rules")


def pair(make):
    x = numpyro.sample("x", make(0.5, 2.0))
    return numpyro.sample("y", make(x, 3.0), obs=jnp.asarray(0.3))


def plain(make):
    x = numpyro.sample("x", make(0.5, 2.0))
    return numpyro.sample("y", make(x, 3.0))


X, GIVEN = {"x": jnp.asarray(0.4)}, {"x": jnp.asarray(-1.2)}
HANDLED = {
    "substitute": lambda model: substitute(model, GIVEN),
    "condition": lambda model: condition(model, GIVEN),
    "condition on a datum": lambda model: condition(lambda make: plain(make), {"y": jnp.asarray(0.9)}),
    "do": lambda model: do(model, GIVEN),
    "block": lambda model: block(model, hide=["y"]),
    "scale": lambda model: scale(model, 2.5),
    "replay": lambda model: replay(model, trace(seed(substitute(model, GIVEN), 0)).get_trace(reference_normal)),
}


@pytest.mark.parametrize("handler", HANDLED)
def test_handlers_do_to_an_energy_what_they_do_to_a_distribution(handler):
    densities = []
    for make in (normal, reference_normal):
        handled = HANDLED[handler](pair)
        sites = {} if handler in ("substitute", "condition", "replay") else X
        densities.append(jax.value_and_grad(lambda x, m=handled, make=make: log_density(m, (make,), {}, x)[0])(sites))
    np.testing.assert_allclose(densities[0][0], densities[1][0], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(densities[0][1]), jax.tree.leaves(densities[1][1]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert abs(densities[0][0] - log_density(pair, (normal,), {}, X)[0]) > 0.1  # the handler did something


def angle_energy(x):
    return -1.5 * jnp.cos(x - 0.5)


def angle(make):
    numpyro.sample("x", make())


def test_reparametrisations():
    def transformed(make):
        numpyro.sample("x", dist.TransformedDistribution(make(0.5, 2.0), dist.transforms.ExpTransform()))

    def circular():
        return ebm.EnergyDistribution(ebm.FunctionEnergy(angle_energy, ()), support=constraints.circular)

    unwrapped = reparam(angle, config={"x": CircularReparam()})
    densities = [
        log_density(unwrapped, (make,), {}, {"x_unwrapped": jnp.asarray(4.0)})[0]
        for make in (circular, lambda: dist.VonMises(0.5, 1.5))
    ]
    log_z = np.log(2 * np.pi * np.i0(1.5))
    np.testing.assert_allclose(densities[0] - log_z, densities[1], rtol=1e-5)
    based = reparam(transformed, config={"x": TransformReparam()})
    densities = [
        log_density(based, (make,), {}, {"x_base": jnp.asarray(0.7)})[0] for make in (normal, reference_normal)
    ]
    np.testing.assert_allclose(densities[0], densities[1], rtol=1e-5)
    with pytest.raises(AttributeError, match="'EnergyDistribution' object has no attribute 'loc'"):
        log_density(reparam(pair, config={"x": LocScaleReparam(0.0)}), (normal,), {}, X)


def branching(make):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))

    def high(mean):
        numpyro.sample("x", make(mean, 2.0))

    def low(mean):
        numpyro.sample("x", make(-mean, 0.5))

    cond(z > 0, high, low, z)


@pytest.mark.parametrize("z", [1.5, -0.5])
def test_each_branch_has_its_energy(z):
    values = {"z": jnp.asarray(z), "x": jnp.asarray(0.4)}
    results = [
        jax.value_and_grad(lambda v, make=make: potential_energy(seed(branching, 0), (make,), {}, v))(values)
        for make in (normal, reference_normal)
    ]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    for name in values:
        np.testing.assert_allclose(results[0][1][name], results[1][1][name], rtol=1e-5)


# --- inspection: what `render_model` draws ----------------------------------------------------------------------------


def test_the_graph_of_a_model_needs_no_draws():
    def model(y):
        w = numpyro.sample("w", dist.Gamma(2.0, 2.0))
        with numpyro.plate("n", 3):
            numpyro.sample("x", ebm.EnergyDistribution(ebm.FunctionEnergy(angle_energy, ()), log_normalizer=0.0))
            numpyro.sample("y", normal(0.0, w), obs=y)

    relations = get_model_relations(model, (jnp.zeros(3),))
    assert relations["sample_sample"] == {"w": [], "x": [], "y": ["w"]}
    assert relations["sample_dist"] == {"w": "Gamma", "x": "EnergyDistribution", "y": "EnergyDistribution"}
    assert relations["plate_sample"] == {"n": ["x", "y"]}
    assert relations["observed"] == ["y"]
    assert generate_graph_specification(relations)["edge_list"] == [("w", "y")]
    dependencies = get_dependencies(model, (jnp.zeros(3),))
    assert dependencies["prior_dependencies"]["y"].keys() == {"w", "y"}


# --- Gibbs ------------------------------------------------------------------------------------------------------------


def square(mean, x):
    return (x - mean) ** 2 / 2


def location(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    energy = ebm.FunctionEnergy(square, (), mean)
    x = numpyro.sample("x", ebm.EnergyDistribution(energy, constant_log_normalizer_in="mean"))
    numpyro.sample("y", dist.Normal(x, 0.5), obs=y)


def test_a_latent_energy_and_its_parameter_in_two_blocks_of_gibbs():
    """log Z is constant in a location; the joint posterior is normal."""
    kernel = Gibbs([(ebm.BlackJAXKernel(location), ["x"]), (NUTS(location), None)])
    mcmc = MCMC(kernel, num_warmup=300, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.asarray(2.0))
    draws = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    covariance = np.linalg.inv(np.array([[2.0, -1.0], [-1.0, 5.0]]))
    a, b = (draws[name] - mean for name, mean in zip(("mean", "x"), covariance @ np.array([0.0, 8.0]), strict=True))
    moments = np.stack([a, b, a * a, a * b, b * b], -1)
    assert_mean_close(moments, [0, 0, *covariance[np.triu_indices(2)]])
    with pytest.raises(StatisticalError):
        assert_mean_close(moments, [0, 0, 0.5, 0, 0.2])  # as if the blocks did not see each other


def half_square(precision, x):
    return precision * x**2 / 2


def test_a_block_that_moves_the_parameter_of_an_energy_is_refused_without_log_z():
    def model():
        w = numpyro.sample("w", dist.Gamma(2.0, 1.0))
        numpyro.sample("x", ebm.EnergyDistribution(ebm.FunctionEnergy(half_square, (), w)))

    for first, second in ((NUTS, ebm.BlackJAXKernel), (ebm.BlackJAXKernel, NUTS)):
        mcmc = MCMC(Gibbs([(first(model), ["w"]), (second(model), None)]), num_warmup=2, num_samples=2)
        with pytest.raises(ebm.MissingLogNormalizerError, match=r"energy site 'x'.*depends on 'w'"):
            mcmc.run(jax.random.key(0))


# --- supports ---------------------------------------------------------------------------------------------------------

EVENT_SHAPES = {
    "circular": (),
    "corr_cholesky": (3, 3),
    "corr_matrix": (3, 3),
    "greater_than(0.5)": (2,),
    "interval(-1.0, 2.0)": (2,),
    "l1_ball": (3,),
    "less_than(0.5)": (2,),
    "lower_cholesky": (3, 3),
    "open_interval(-1.0, 2.0)": (2,),
    "ordered_vector": (3,),
    "positive": (2,),
    "positive_definite": (3, 3),
    "positive_ordered_vector": (3,),
    "real": (2,),
    "real_matrix": (2, 2),
    "real_vector": (2,),
    "scaled_unit_lower_cholesky": (3, 3),
    "simplex": (3,),
    "softplus_lower_cholesky": (3, 3),
    "softplus_positive": (2,),
    "unit_interval": (2,),
    "zero_sum(1)": (3,),
}
# No bijection from the reals, or discrete: NumPyro has no continuous inference for them, whatever the distribution.
WITHOUT_BIJECTION = ("boolean", "sphere", "nonnegative_integer", "positive_integer")


def constraint_of(text):
    return eval(f"constraints.{text}", {"constraints": constraints})  # a literal of the table above


def tilted(x):
    return jnp.sum(jnp.cosh(0.5 * x) + 0.3 * x)


@pytest.mark.parametrize("name", EVENT_SHAPES)
@pytest.mark.filterwarnings("ignore:Continuous inference poorly handles circular")
def test_every_support_has_its_jacobian(name, key):
    """The potential is E at the bijection's value minus its log |det|, whether the event is one or one of a batch."""
    shape = EVENT_SHAPES[name]
    energy = ebm.EnergyDistribution(ebm.FunctionEnergy(tilted, shape), support=constraint_of(name))
    transform = dist.biject_to(energy.support)

    def model():
        numpyro.sample("x", energy)

    def exact(z):
        x = transform(z)
        return tilted(x) - jnp.sum(transform.log_abs_det_jacobian(z, x))

    z = jax.random.normal(key, (3, *transform.inverse_shape(shape)))
    ours = jax.jit(jax.vmap(jax.value_and_grad(lambda z: potential_energy(model, (), {}, {"x": z}))))(z)
    theirs = jax.jit(jax.vmap(jax.value_and_grad(exact)))(z)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-4)
    batched = potential_energy(lambda: numpyro.sample("x", energy.expand([3])), (), {}, {"x": z})
    np.testing.assert_allclose(batched, jnp.sum(theirs[0]), rtol=1e-4)


@pytest.mark.parametrize("name", WITHOUT_BIJECTION)
def test_supports_without_a_bijection_are_refused(name):
    energy = ebm.EnergyDistribution(ebm.FunctionEnergy(tilted, (3,)), support=constraint_of(name))
    for kernel in (NUTS(lambda: numpyro.sample("x", energy)), ebm.BlackJAXKernel(lambda: numpyro.sample("x", energy))):
        with pytest.raises((NotImplementedError, ValueError, RuntimeError)):
            kernel.init(jax.random.key(0), 0, None, (), {})
