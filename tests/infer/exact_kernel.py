"""A conjugate model with a kernel that leaves its posterior exactly invariant; a random walk for all others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import potential_energy, unconstrain_fn


def location(y=None, noise=1.0):
    """Posterior of mu given one datum: normal, mean y / (1 + noise^2), variance noise^2 / (1 + noise^2)."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.deterministic("twice", 2 * mu)
    numpyro.sample("y", dist.Normal(mu, noise), obs=y)


class State(NamedTuple):
    z: dict[str, Any]
    rng_key: Any
    diverging: Any


class Autoregressive(MCMCKernel):
    """AR(1) about the posterior mean of `location` with noise 1: stationary in its posterior."""

    sample_field = "z"

    def __init__(self, model, memory=0.3, scale=1.0, use_data=True, nan_above=jnp.inf):
        self.model = model
        self.memory, self.scale, self.use_data, self.nan_above = memory, scale, use_data, nan_above

    def _posterior(self, args, kwargs):
        model = substitute(seed(self.model, 0), data={"mu": jnp.zeros(())})
        y = trace(model).get_trace(*args, **kwargs)["y"]["value"]
        mean, deviation = (y / 2, 0.5**0.5) if self.use_data else (jnp.zeros_like(y), 1.0)
        return jnp.where(y > self.nan_above, jnp.nan, mean), deviation * self.scale

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        key, start = jax.random.split(rng_key)
        mean, deviation = self._posterior(model_args, model_kwargs)
        return State({"mu": mean + deviation * jax.random.normal(start)}, key, jnp.zeros((), bool))

    def sample(self, state, model_args, model_kwargs):
        key, step = jax.random.split(state.rng_key)
        mean, deviation = self._posterior(model_args, model_kwargs)
        noise = (1 - self.memory**2) ** 0.5 * deviation * jax.random.normal(step)
        return state._replace(z={"mu": mean + self.memory * (state.z["mu"] - mean) + noise}, rng_key=key)

    def postprocess_fn(self, model_args, model_kwargs):
        return lambda z: z | {"twice": 2 * z["mu"]}

    def refresh(self, state, model_args, model_kwargs):
        return state


class RandomWalk(MCMCKernel):
    """Metropolis with steps of given sizes, from a draw of the prior: compiles in no time, as nothing is tuned."""

    sample_field = "z"

    def __init__(self, model, scales):
        self.model, self.scales = model, scales

    def _potential(self, z, args, kwargs):
        return potential_energy(self.model, args, kwargs, z)

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        key, start = jax.random.split(rng_key)
        sites = trace(seed(self.model, start)).get_trace(*model_args, **model_kwargs)
        values = {name: sites[name]["value"] for name in self.scales}
        return State(unconstrain_fn(self.model, model_args, model_kwargs, values), key, jnp.zeros((), bool))

    def sample(self, state, model_args, model_kwargs):
        key, step, accept = jax.random.split(state.rng_key, 3)
        keys = dict(zip(state.z, jax.random.split(step, len(state.z)), strict=True))
        moved = {name: z + self.scales[name] * jax.random.normal(keys[name], z.shape) for name, z in state.z.items()}
        both = [self._potential(z, model_args, model_kwargs) for z in (state.z, moved)]
        accepted = jnp.log(jax.random.uniform(accept)) < both[0] - both[1]
        z = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), moved, state.z)
        return state._replace(z=z, rng_key=key)

    def postprocess_fn(self, model_args, model_kwargs):
        return lambda z: {name: jnp.exp(value) if name == "w" else value for name, value in z.items()}
