"""Exact minimisers over a fixed sample with their standard errors, and the energies they are tested on."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import ebm_ppl as ebm

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


def solve(objective, model, data, key, *, num_iterations=1):
    """Newton's method on a fixed sample and fixed noise: parameters, and their sandwich covariance.

    One iteration is exact for losses quadratic in the parameters, as those of score matching on Gaussians are.
    """
    params, static = eqx.partition(model, eqx.is_inexact_array)
    start, unravel = ravel_pytree(params)

    def rows(theta):
        return objective.evaluate(eqx.combine(unravel(theta), static), data, key=key)[0]

    def mean(theta):
        return jnp.mean(rows(theta))

    @jax.jit
    def newton(theta):
        def update(_, theta):
            return theta - jnp.linalg.solve(jax.hessian(mean)(theta), jax.grad(mean)(theta))

        theta = jax.lax.fori_loop(0, num_iterations, update, theta)
        return theta, jax.hessian(mean)(theta), jax.jacfwd(rows)(theta)

    theta, hessian, gradients = (np.asarray(part, np.float64) for part in newton(start))
    inverse = np.linalg.inv(hessian)
    return theta, inverse @ (gradients.T @ gradients / len(gradients)) @ inverse / len(gradients)


def slope_at_zero(objective, event_shape, data, key):
    """d(loss)/da of E = a |x|^2 / 2 at a = 0, one value per row."""

    def rows(a):
        return objective.evaluate(isotropic_energy(a, event_shape), data, key=key)[0]

    return jax.jacfwd(rows)(jnp.asarray(0.0))
