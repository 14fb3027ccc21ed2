"""`energy_factor` counts in the density, and is not taken for data."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import seed, trace
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, init_to_sample, log_likelihood
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import initialize_model, log_density

import ebm_ppl as ebm

pytestmark = pytest.mark.usefixtures("numpyro_rules")

Y = jnp.array([0.5, -1.0])


def quartic(x):
    return jnp.sum(x**4)


QUARTIC = ebm.FunctionEnergy(quartic, (2,))


def with_energy(y=None):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    ebm.energy_factor("smooth", QUARTIC, x)
    with numpyro.plate("n", 2):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def with_factor(y=None):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.factor("smooth", -quartic(x))
    with numpyro.plate("n", 2):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_the_density_is_that_of_a_factor():
    x = {"x": jnp.array([0.3, -0.8])}
    expected = log_density(with_factor, (Y,), {}, x)[0]
    np.testing.assert_allclose(log_density(with_energy, (Y,), {}, x)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(log_density(seed(with_energy, 0), (Y,), {}, x)[0], expected, rtol=1e-6)
    for strategy in ({}, {"init_strategy": init_to_sample}):
        potentials = []
        for model in (with_energy, with_factor):
            info = initialize_model(jax.random.key(0), model, model_args=(Y,), **strategy)
            assert set(info.param_info.z) == {"x"}
            potentials.append(jax.value_and_grad(info.potential_fn)(x))
        np.testing.assert_allclose(potentials[0][0], -expected, rtol=1e-6)
        np.testing.assert_allclose(potentials[0][1]["x"], potentials[1][1]["x"], rtol=1e-5)


def test_variational_inference_has_the_same_bound():
    losses = []
    for model in (with_energy, with_factor):
        guide = AutoNormal(model)
        svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        state = svi.init(jax.random.key(0), Y)
        assert set(svi.get_params(state)) == {"x_auto_loc", "x_auto_scale"}
        losses.append(svi.evaluate(state, Y))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_it_is_no_datum():
    samples = {"x": jnp.ones((3, 2))}
    assert set(log_likelihood(with_energy, samples, Y)) == {"y"}
    assert set(log_likelihood(with_factor, samples, Y)) == {"y", "smooth"}  # what is to be avoided
    assert set(Predictive(with_energy, samples)(jax.random.key(0))) == {"y"}
    assert set(Predictive(with_energy, num_samples=3)(jax.random.key(0))) == {"x", "y"}


def in_a_loop(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    def step(carry, row):
        ebm.energy_factor("smooth", QUARTIC, x)
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=row)
        return carry, None

    scan(step, 0.0, y)


@pytest.mark.parametrize("model", [in_a_loop, seed(with_energy, 0)], ids=["loop", "key"])
def test_it_is_no_datum_inside_a_loop_or_where_the_model_has_its_key(model):
    assert set(log_likelihood(model, {"x": jnp.ones((3, 2))}, Y)) == {"y"}


def test_loo_works_and_the_tree_holds_data_only():
    mcmc = MCMC(NUTS(with_energy), num_warmup=100, num_samples=200, progress_bar=False)
    mcmc.run(jax.random.key(0), Y)
    assert set(mcmc.get_samples()) == {"x"}
    tree = az.from_numpyro(mcmc, log_likelihood=True)
    assert set(tree.observed_data.data_vars) == set(tree.log_likelihood.data_vars) == {"y"}
    assert np.isfinite(az.loo(tree).elpd)


def conditional(x, condition):
    return condition * x**2


def test_batches_conditions_and_parameters_without_log_normalizer():
    """The product is a density of the latent variables whatever Z is: nothing is refused."""

    def model():
        w = numpyro.sample("w", dist.Gamma(2.0, 2.0))
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        energy = ebm.FunctionEnergy(conditional, (), condition_shape=())
        with numpyro.plate("n", 3):
            ebm.energy_factor("f", energy, x, w * jnp.arange(3.0))

    site = trace(seed(model, 0)).get_trace()["f"]
    assert site["fn"].batch_shape == (3,)
    info = initialize_model(jax.random.key(0), model)
    assert np.isfinite(jax.grad(info.potential_fn)(info.param_info.z)["w"])
    with pytest.raises(ebm.EnergyShapeError):
        ebm.energy_factor("f", QUARTIC, jnp.zeros(3))
