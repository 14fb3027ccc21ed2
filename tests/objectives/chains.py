"""Kernels and closed forms for chains on E = a |x|^2 / 2, and gradients of objectives that run chains."""

from typing import Any, ClassVar, NamedTuple

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.objectives import AbstractObjective
from tests.objectives.estimation import isotropic_energy


class Point(NamedTuple):
    position: Any
    logdensity: Any


class OrnsteinUhlenbeck(AbstractKernel):
    """Langevin dynamics on N(0, I/a), solved exactly over a time `step_size`; a long time makes independent draws.

    a is read from the log density: its second derivative in one direction.
    """

    step_size: Any
    target_acceptance_rate: ClassVar[float | None] = None

    def build(self, logdensity_fn):
        def step(key, state):
            x = state.position
            direction = jnp.ones_like(x) / jnp.sqrt(jnp.asarray(x.size, x.dtype))
            along = jax.grad(lambda t: logdensity_fn(t * direction))
            precision = -jax.grad(along)(jnp.zeros((), x.dtype))
            factor = jnp.exp(-self.step_size * precision)
            x = factor * x + jnp.sqrt((1 - factor**2) / precision) * jax.random.normal(key, x.shape, x.dtype)
            return Point(x, logdensity_fn(x)), None

        return blackjax.base.SamplingAlgorithm(lambda x, key=None: Point(x, logdensity_fn(x)), step)

    def stats(self, state, info):
        return {"diverging": jnp.array(False), "nonfinite_proposal": jnp.array(False), "n_steps": jnp.array(1)}


def ula_variance(a, step_size, num_steps):
    """Variance of a coordinate after k steps from N(0, 1): r^(2k) + (1 - r^(2k)) / (a (1 - h a / 2)), r = 1 - h a."""
    forgotten = 1 - (1 - step_size * a) ** (2 * num_steps)
    return (1 - forgotten) + forgotten / (a * (1 - step_size * a / 2))


@eqx.filter_jit
def batch_gradients(objective, a, key, shape=(1,), num_batches=400, batch_size=50):
    """d(loss)/da on independent batches of N(0, I) data, each from a fresh state."""

    def gradient(key):
        data_key, init_key, step_key = jax.random.split(key, 3)
        data = jax.random.normal(data_key, (batch_size, *shape))
        state = objective.init(isotropic_energy(a, shape), data, key=init_key)
        return jax.grad(lambda a: objective(isotropic_energy(a, shape), state, data, key=step_key)[0])(a)

    return jax.lax.map(gradient, jax.random.split(key, num_batches), batch_size=50)


class ScaledLoss(AbstractObjective[Any]):
    """An objective with its loss times `factor`: flipped, or divided by d."""

    objective: AbstractObjective
    factor: Any
    comparable: ClassVar[bool] = False

    def init(self, model, batch, *, key):
        return self.objective.init(model, batch, key=key)

    def __call__(self, model, state, batch, *, key):
        loss, rest = self.objective(model, state, batch, key=key)
        return self.factor * loss, rest


def half_trace(shape, variance):
    """d(loss)/da for E = a |x|^2 / 2, data N(0, I), negatives of this variance."""
    return np.prod(shape) * (1 - variance) / 2
