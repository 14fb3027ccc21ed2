"""Exponential families with data: score matching is quadratic in the natural parameter, its posteriors are normal."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import ebm_ppl as ebm
from ebm_ppl.objectives import ExactScoreMatching

RNG = np.random.default_rng(0)
PRIOR_MEAN, PRIOR_SD = 0.3, 2.0


class Family:
    """E(x) = theta . t(x); the loss of a datum is (theta . t')^2 / 2 - theta . t''."""

    def __init__(self, energy, slopes, curvatures, data):
        self.energy, self.data = energy, jnp.asarray(data, jnp.float32)
        self.slopes = np.stack(slopes(np.asarray(self.data, float)), axis=1)
        self.curvatures = np.stack(curvatures(np.asarray(self.data, float)), axis=1)

    @property
    def dim(self):
        return self.slopes.shape[1]

    def model(self, y, temperature=1.0):
        theta = numpyro.sample("theta", dist.Normal(PRIOR_MEAN, PRIOR_SD).expand([self.dim]).to_event(1))
        energy = ebm.FunctionEnergy(self.energy, (), theta)
        ebm.objective_factor("y", energy, y, ExactScoreMatching(), temperature=temperature)

    def posterior(self, temperature):
        """Mean and covariance."""
        precision = self.slopes.T @ self.slopes / temperature + np.eye(self.dim) / PRIOR_SD**2
        shift = self.curvatures.sum(0) / temperature + PRIOR_MEAN / PRIOR_SD**2
        return np.linalg.solve(precision, shift), np.linalg.inv(precision)

    def sandwich(self):
        """The minimiser, H and J."""
        hessian = self.slopes.T @ self.slopes / len(self.slopes)
        theta = np.linalg.solve(hessian, self.curvatures.mean(0))
        gradients = self.slopes * (self.slopes @ theta)[:, None] - self.curvatures
        return theta, hessian, gradients.T @ gradients / len(gradients)


def normal_energy(theta, x):
    return -theta[0] * x + theta[1] * x**2 / 2


def quartic_energy(theta, x):
    return -theta[0] * x - theta[1] * x**2 / 2 + theta[2] * x**4 / 4


NORMAL = Family(
    normal_energy,
    lambda x: (-np.ones_like(x), x),
    lambda x: (np.zeros_like(x), np.ones_like(x)),
    0.5 + 1.3 * RNG.normal(size=80),
)
# Two modes and a tilt: draws need not come from the family for its posterior to be known.
QUARTIC = Family(
    quartic_energy,
    lambda x: (-np.ones_like(x), -x, x**3),
    lambda x: (np.zeros_like(x), -np.ones_like(x), 3 * x**2),
    np.where(RNG.uniform(size=120) < 0.35, -1.0, 1.1) + 0.4 * RNG.normal(size=120),
)
