"""Models with known posteriors, and what NUTS says of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC

import ebm_ppl as ebm
from tests.statistics import assert_close, mcse_mean

EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
DATA = jnp.array([0.7, -1.2, 0.4, 2.1, -0.3, 1.6])


def eight_schools(effects=None):
    """Non-centred. Rubin (1981), Estimation in parallel randomized experiments, doi:10.3102/10769986006004377."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * offset)
        numpyro.sample("effects", dist.Normal(theta, ERRORS), obs=effects)


def regression_data(num_rows=80, num_columns=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_rows, num_columns)) * np.array([1.0, 0.1, 10.0])
    logits = 0.5 + x @ np.array([1.0, -5.0, 0.1])
    y = rng.uniform(size=num_rows) < 1 / (1 + np.exp(-logits))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)


def logistic_regression(x, y=None):
    """Columns of very different scale, left as they are: without preconditioning it would not mix."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    slopes = numpyro.sample("slopes", dist.Normal(jnp.zeros(3), jnp.array([2.0, 10.0, 0.5])).to_event(1))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ slopes), obs=y)


def half_square(precision, x):
    return precision * x**2 / 2


def latent_precision(y, log_z=True):
    """The precision of an energy is latent: conjugate, if log Z is there."""
    w = numpyro.sample("w", dist.Gamma(2.0, 1.0))
    log_normalizer = -0.5 * jnp.log(w) if log_z else None
    energy = ebm.EnergyDistribution(ebm.FunctionEnergy(half_square, (), w), log_normalizer=log_normalizer)
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", energy, obs=y)


def normal_mean(y):
    """Posterior of mu: precision 1/4 + n, mean sum(y) / precision; sigma is there to have a constrained site."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.sample("sigma", dist.Gamma(3.0, 2.0))
    numpyro.deterministic("twice", 2 * mu)
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def run(kernel, *args, key=0, num_warmup=300, num_samples=1000, num_chains=4, init_params=None, **kwargs):
    settings = {"chain_method": "vectorized", "progress_bar": False} | kwargs
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains, **settings)
    mcmc.run(jax.random.key(key), *args, init_params=init_params)
    return mcmc


def moments(mcmc, sites):
    """Every coordinate and its square about a fixed point, `(chain, draw, 2 * size)`."""
    samples = mcmc.get_samples(group_by_chain=True)
    columns = [np.asarray(samples[name]).reshape(*samples[name].shape[:2], -1) for name in sites]
    return np.concatenate([*columns, *(column**2 for column in columns)], axis=-1)


def assert_agree(mcmc, reference, sites):
    """Means and second moments of two runs, within the Monte Carlo error of both."""
    draws, expected = moments(mcmc, sites), moments(reference, sites)
    error = np.hypot(mcse_mean(draws), mcse_mean(expected))
    assert_close(draws.mean((0, 1)), expected.mean((0, 1)), error, what="moment")
