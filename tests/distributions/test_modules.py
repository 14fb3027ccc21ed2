"""Networks of Flax Linen, Flax NNX and Equinox in a model: as constants, as parameters, as latent variables.

All three have one weight w and the energy ((w x)^2 + x^2) / 2, which is a normal of precision 1 + w^2: the closed form.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen, nnx
from flax.errors import FlaxError
from jax.scipy.special import logsumexp
from numpyro.contrib.module import (
    eqx_module,
    flax_module,
    nnx_module,
    random_eqx_module,
    random_flax_module,
    random_nnx_module,
)
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import initialize_model

import ebm_ppl as ebm
from tests.statistics import StatisticalError, assert_mean_close

pytestmark = [
    pytest.mark.usefixtures("numpyro_rules"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:flax"),
]

Y = jnp.array([0.4, -1.3, 0.2])
PRIOR = dist.Normal(0.0, 1.0)
WIDTH = 1 / 128
GRID = WIDTH * jnp.arange(-1024.0, 1025.0)


class Slope(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(1, 1, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


NNX = Slope(nnx.Rngs(0))
LINEN = linen.Dense(1, use_bias=False)
EQX = eqx.nn.Linear(1, 1, use_bias=False, key=jax.random.key(0))

RANDOM = {
    "flax": lambda: random_flax_module("net", LINEN, prior=PRIOR, input_shape=(1,)),
    "nnx": lambda: random_nnx_module("net", NNX, prior=PRIOR),
    "eqx": lambda: random_eqx_module("net", EQX, prior=PRIOR),
}
FIXED = {
    "flax": lambda: flax_module("net", LINEN, input_shape=(1,)),
    "nnx": lambda: nnx_module("net", NNX),
    "eqx": lambda: eqx_module("net", EQX),
}
WEIGHT = {"flax": "net/kernel", "nnx": "net/linear.kernel", "eqx": "net/weight"}
every_library = pytest.mark.parametrize("library", RANDOM)


def energy_of(net):
    return ebm.FunctionEnergy(lambda x: (net(x[None])[0] ** 2 + x**2) / 2, ())


def by_quadrature(energy):
    """Log Z as a user would have it of a network: on a grid, differentiable in the weights."""
    return logsumexp(-jax.vmap(energy)(GRID)) + math.log(WIDTH)


def bayesian(library, y, *, log_z=True):
    energy = energy_of(RANDOM[library]())
    log_normalizer = by_quadrature(energy) if log_z else None
    with numpyro.plate("n", len(Y)):
        numpyro.sample("y", ebm.EnergyDistribution(energy, log_normalizer=log_normalizer), obs=y)


def trained(library, y, *, log_z=True):
    energy = energy_of(FIXED[library]())
    log_normalizer = by_quadrature(energy) if log_z else None
    with numpyro.plate("n", len(Y)):
        numpyro.sample("y", ebm.EnergyDistribution(energy, log_normalizer=log_normalizer), obs=y)


def prior_model(library):
    """The network is a constant, and the prior of x: no log Z."""
    x = numpyro.sample("x", ebm.EnergyDistribution(energy_of(FIXED[library]())))
    numpyro.sample("y", dist.Normal(x, 0.5), obs=Y[0])


def log_likelihood(w):
    return jnp.sum(dist.Normal(0.0, 1 / jnp.sqrt(1 + w**2)).log_prob(Y))


def weight_of(params):
    (weight,) = [leaf for leaf in jax.tree.leaves(params) if eqx.is_array(leaf)]
    return weight


@every_library
def test_the_potential_of_a_bayesian_network_is_the_closed_form(library):
    ebm.check_model(bayesian, library, Y)
    info = initialize_model(jax.random.key(0), bayesian, model_args=(library, Y))
    assert set(info.param_info.z) == {WEIGHT[library]}
    for w in (0.7, -1.6):
        z = jax.tree.map(lambda leaf, w=w: jnp.full_like(leaf, w), info.param_info.z)
        value, gradient = jax.value_and_grad(info.potential_fn)(z)
        expected, slope = jax.value_and_grad(lambda w: -PRIOR.log_prob(w) - log_likelihood(w))(w)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(weight_of(gradient).squeeze(), slope, rtol=1e-4)


@every_library
def test_a_bayesian_network_without_log_z_is_refused(library):
    words = rf"energy site 'y' \(FunctionEnergy\) depends on '{WEIGHT[library].replace('.', r'\.')}'"
    with pytest.raises(ebm.MissingLogNormalizerError, match=words):
        ebm.check_model(bayesian, library, Y, log_z=False)
    for kernel in (NUTS(bayesian), ebm.BlackJAXKernel(bayesian)):
        with pytest.raises(ebm.MissingLogNormalizerError, match=words):
            kernel.init(jax.random.key(0), 0, None, (library, Y), {"log_z": False})
    svi = SVI(bayesian, AutoNormal(bayesian), numpyro.optim.Adam(0.1), Trace_ELBO())
    with pytest.raises(ebm.MissingLogNormalizerError, match=words):
        svi.init(jax.random.key(0), library, Y, log_z=False)


def no_guide(library, y):
    del library, y


@every_library
def test_the_likelihood_of_a_trained_network_is_the_closed_form_and_needs_log_z(library):
    svi = SVI(trained, no_guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(jax.random.key(0), library, Y))
    assert set(params) == {"net$params"}

    def loss(arrays, rest):
        return Trace_ELBO().loss(jax.random.key(0), eqx.combine(arrays, rest), trained, no_guide, library, Y)

    arrays, rest = eqx.partition(params, eqx.is_array)
    value, gradient = jax.value_and_grad(loss)(arrays, rest)
    w = weight_of(arrays).squeeze()
    expected, slope = jax.value_and_grad(lambda w: -log_likelihood(w))(w)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(weight_of(gradient).squeeze(), slope, rtol=1e-4)
    with pytest.raises(ebm.MissingLogNormalizerError, match=r"energy site 'y'.*depends on 'net\$params'"):
        ebm.check_model(trained, library, Y, log_z=False)
    with pytest.raises(ebm.MissingLogNormalizerError, match=r"depends on 'net\$params'"):
        SVI(trained, lambda *_, **__: None, numpyro.optim.Adam(0.1), Trace_ELBO()).init(
            jax.random.key(0), library, Y, log_z=False
        )


@every_library
def test_a_network_that_is_not_inferred_is_a_constant_to_mcmc(library):
    """`numpyro.param` sites keep their value in MCMC: no log Z is needed, and the prior is that of the network."""
    seeded = numpyro.handlers.seed(prior_model, 0)
    sites = numpyro.handlers.trace(numpyro.handlers.substitute(seeded, {"x": Y[0]})).get_trace(library)
    w = weight_of(sites["net$params"]["value"]).squeeze()
    for kernel in (NUTS(seeded), ebm.BlackJAXKernel(seeded, precondition="none")):
        state = kernel.init(jax.random.key(0), 0, {"x": jnp.asarray(0.6)}, (library,), {})
        expected = (1 + w**2) * 0.6**2 / 2 - dist.Normal(0.6, 0.5).log_prob(Y[0])
        np.testing.assert_allclose(state.potential_energy, expected, rtol=1e-5)


def lifted_energy(library, y):
    del library
    numpyro.sample("y", ebm.EnergyDistribution(eqx_module("net", ebm.energies.Gaussian(0.0, 1.0))), obs=y)


@pytest.mark.parametrize("model", [trained, lifted_energy])
@every_library
def test_lifting_the_parameters_of_a_network_is_refused(model, library):
    """`handlers.lift` puts one number in the place of a whole network, and nothing is left to call."""
    lifted = numpyro.handlers.lift(model, prior=dist.Normal(0.0, 1.0))
    with pytest.raises((TypeError, AssertionError, FlaxError)):  # NumPyro does not, its libraries do
        numpyro.handlers.trace(numpyro.handlers.seed(lifted, 0)).get_trace(library, Y[0])


def test_a_whole_run_of_a_bayesian_network_against_quadrature():
    mcmc = MCMC(
        NUTS(bayesian), num_warmup=300, num_samples=1000, num_chains=2, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(0), "nnx", Y)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)[WEIGHT["nnx"]]).reshape(2, 1000)
    grid = np.linspace(-6, 6, 2001)
    for exponent, holds in ((len(Y) / 2, True), (0.0, False)):  # with log Z, and as if it were constant
        density = (1 + grid**2) ** exponent * np.exp(-(grid**2) * (1 + float(jnp.sum(Y**2))) / 2)
        expected = np.sum(grid**2 * density) / np.sum(density)
        if holds:
            assert_mean_close(np.stack([draws, draws**2], -1), [0.0, expected])
        else:
            with pytest.raises(StatisticalError):
                assert_mean_close(draws**2, expected)
    assert math.isfinite(expected)
    seen = Predictive(bayesian, {WEIGHT["nnx"]: mcmc.get_samples()[WEIGHT["nnx"]][:3]})
    with pytest.raises(NotImplementedError, match="cannot draw"):
        seen(jax.random.key(0), "nnx", None)
