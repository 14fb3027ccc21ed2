"""Named parts of an energy as latent sites, and as factors, of a NumPyro model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density, potential_energy

import ebm_ppl as ebm

pytestmark = pytest.mark.usefixtures("numpyro_rules")
ENERGY = ebm.FunctionEnergy(
    lambda x: jnp.sum(x["w"] ** 2) / 2 + 2 * x["tau"] - 2 * jnp.log(x["tau"]),  # N(0, I) and Gamma(3, 2)
    {"w": (2,), "tau": ()},
    support={"tau": dist.constraints.positive},
)
LOG_Z = np.log(2 * np.pi) + np.log(2) - 3 * np.log(2)
Y = 1.5


def by_sites():
    x = ebm.energy_sites("prior", ENERGY)
    numpyro.sample("y", dist.Normal(x["w"].sum(), x["tau"]), obs=Y)


def by_hand():
    w = numpyro.sample("prior/w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    tau = numpyro.sample("prior/tau", dist.Gamma(3.0, 2.0))
    numpyro.sample("y", dist.Normal(w.sum(), tau), obs=Y)


VALUES = {"prior/w": jnp.array([0.5, -1.0]), "prior/tau": jnp.asarray(0.7)}


def test_the_density_is_that_of_the_numpyro_model():
    ours, theirs = (log_density(model, (), {}, VALUES)[0] for model in (by_sites, by_hand))
    np.testing.assert_allclose(ours - LOG_Z, theirs, rtol=1e-5)
    ours, theirs = (potential_energy(model, (), {}, VALUES) for model in (by_sites, by_hand))  # Jacobians included
    np.testing.assert_allclose(ours + LOG_Z, theirs, rtol=1e-5)


def test_a_factor_takes_a_dictionary():
    def model():
        x = {"w": numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1)), "tau": jnp.asarray(1.0)}
        ebm.energy_factor("factor", ENERGY, x)

    w = jnp.array([1.0, 2.0])
    expected = dist.Normal(0.0, 1.0).log_prob(w).sum() - 2.5 - 2.0
    np.testing.assert_allclose(log_density(model, (), {}, {"w": w})[0], expected, rtol=1e-6)


def test_a_latent_parameter_needs_log_z():
    def model(log_normalizer=None):
        scale = numpyro.sample("scale", dist.Gamma(2.0, 2.0))
        energy = ebm.FunctionEnergy(lambda p, x: jnp.sum(x["w"] ** 2) * p / 2, {"w": (2,)}, scale)
        log_z = None if log_normalizer is None else log_normalizer(scale)
        ebm.energy_sites("prior", energy, log_normalizer=log_z)

    mcmc = MCMC(NUTS(model), num_warmup=2, num_samples=2, progress_bar=False)
    with pytest.raises(ebm.MissingLogNormalizerError, match="scale"):
        mcmc.run(jax.random.key(0))
    mcmc.run(jax.random.key(0), lambda scale: jnp.log(2 * jnp.pi / scale))


def test_misuse_is_named():
    with pytest.raises(TypeError, match="named parts"):
        ebm.energy_sites("x", ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2)))
    with pytest.raises(TypeError, match="array events"):
        ebm.EnergyDistribution(ENERGY)


def test_a_distribution_takes_the_support_of_its_energy():
    gamma = ebm.FunctionEnergy(lambda x: 2 * x - 2 * jnp.log(x), (), support=dist.constraints.positive)
    assert ebm.EnergyDistribution(gamma).support is dist.constraints.positive
    assert ebm.EnergyDistribution(gamma).energy.support is dist.constraints.positive
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert float(ebm.EnergyDistribution(gamma, log_normalizer=0.0).log_prob(jnp.asarray(-1.0))) == -np.inf
