"""Normal laws twice: as energies and as NumPyro distributions."""

import math

import jax.numpy as jnp
import numpyro.distributions as dist

import ebm_ppl as ebm
from tests.foreign import standard_promotion

MEAN = jnp.array([1.0, -2.0])
COVARIANCE = jnp.array([[2.0, 0.5], [0.5, 1.0]])
GAUSSIAN = ebm.energies.Gaussian(MEAN, COVARIANCE)
LOG_2PI = math.log(2 * math.pi)


def quadratic(params, x):
    return jnp.sum(params["precision"] * (x - params["mean"]) ** 2) / 2


def two_dimensional():
    return ebm.EnergyDistribution(GAUSSIAN), dist.MultivariateNormal(MEAN, COVARIANCE)


def log_prob_of(reference, x):
    with standard_promotion():
        return reference.log_prob(x)


def normal(mean=0.0, precision=1.0, batch_shape=(), **kwargs):
    """N(mean, 1/precision) as an energy with parameters of the given batch shape, log Z included."""
    params = {
        "mean": jnp.broadcast_to(jnp.asarray(mean, float), batch_shape),
        "precision": jnp.broadcast_to(jnp.asarray(precision, float), batch_shape),
    }
    log_normalizer = (LOG_2PI - jnp.log(params["precision"])) / 2
    energy = ebm.FunctionEnergy(quadratic, (), params)
    return ebm.EnergyDistribution(energy, batch_shape=batch_shape, log_normalizer=log_normalizer, **kwargs)


def reference_normal(mean=0.0, precision=1.0, batch_shape=()):
    return dist.Normal(jnp.broadcast_to(mean, batch_shape), jnp.broadcast_to(1 / jnp.sqrt(precision), batch_shape))
