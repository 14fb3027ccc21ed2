"""Exact minimisers over a fixed sample with their standard errors, and the energies they are tested on."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import ebm_ppl as ebm
from ebm_ppl.objectives import AbstractStatelessObjective

MEAN = np.array([1.0, -0.5, 0.25], np.float32)
COVARIANCE = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, 0.3], [0.0, 0.3, 0.5]], np.float32)
DATA_VARIANCES = np.array([1.0, 2.0, 0.5], np.float32)
LOWER = np.tril_indices(3)


def isotropic(a, x):
    return a * jnp.sum(x**2) / 2


def quadratic(entries, x):
    lower = jnp.zeros((3, 3), x.dtype).at[LOWER].set(entries)
    return x @ ((lower + lower.T) @ x) / 4


def isotropic_energy(a, event_shape=(1,)):
    """E = a |x|^2 / 2, learnable in a."""
    return ebm.FunctionEnergy(isotropic, event_shape, a)


def quadratic_energy(precision):
    """E = x'Px / 2 in three dimensions, learnable in P: entries of the lower triangle, the diagonal doubled."""
    entries = np.asarray(precision, np.float32)[LOWER] * np.where(LOWER[0] == LOWER[1], 1, 2).astype(np.float32)
    return ebm.FunctionEnergy(quadratic, (3,), entries)


@eqx.filter_jit
def evaluate(objective, model, batch, key):
    """Losses by row and metrics, compiled: eager evaluation would compile every operation by itself."""
    return objective.evaluate(model, batch, key=key)


@eqx.filter_jit
def row_gradients(objective, model, batch, key):
    """d(loss of one row)/d(parameters), shape (row, parameter), parameters in the order of the model's leaves."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    start, unravel = ravel_pytree(params)

    def rows(theta):
        return objective.evaluate(eqx.combine(unravel(theta), static), batch, key=key)[0]

    return jax.jacfwd(rows)(start)


def solve(objective, model, data, key, *, num_iterations=1):
    """Newton's method on a fixed sample and fixed noise: parameters, and their sandwich covariance.

    One iteration is exact for losses quadratic in the parameters, as those of score matching on Gaussians are.
    """
    theta = ravel_pytree(eqx.filter(model, eqx.is_inexact_array))[0]
    for _ in range(num_iterations):
        gradients, hessian = _derivatives(objective, model, data, key, theta)
        theta = theta - jnp.linalg.solve(hessian, jnp.mean(gradients, 0))
    gradients, hessian = (np.asarray(part, float) for part in _derivatives(objective, model, data, key, theta))
    inverse = np.linalg.inv(hessian)
    covariance = inverse @ (gradients.T @ gradients / len(gradients)) @ inverse / len(gradients)
    return np.asarray(theta, float), covariance


@eqx.filter_jit
def _derivatives(objective, model, data, key, theta):
    params, static = eqx.partition(model, eqx.is_inexact_array)
    unravel = ravel_pytree(params)[1]

    def gradients(theta):
        return jax.jacfwd(lambda theta: objective.evaluate(eqx.combine(unravel(theta), static), data, key=key)[0])(
            theta
        )

    return gradients(theta), jax.jacfwd(lambda theta: jnp.mean(gradients(theta), 0))(theta)


def slope_at_zero(objective, event_shape, data, key):
    """d(loss)/da of E = a |x|^2 / 2 at a = 0, one value per row."""
    return row_gradients(objective, isotropic_energy(jnp.asarray(0.0), event_shape), data, key)[:, 0]


class ScaledEnergy(ebm.AbstractEnergy):
    """`factor` times an energy: what an objective sees that has its sign wrong (-1) or divides by d (1/d)."""

    energy: ebm.AbstractEnergy
    factor: float
    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, x, condition=None):
        return self.factor * self.energy(x, condition)


class Misreading(AbstractStatelessObjective):
    """An objective that reads the energy `factor` times as large as it is: the broken twin of every contrast."""

    objective: AbstractStatelessObjective
    factor: float
    comparable = True

    def evaluate(self, model, batch, *, key):
        model = ScaledEnergy(model, self.factor, model.event_shape, condition_shape=model.condition_shape)
        return self.objective.evaluate(model, batch, key=key)
