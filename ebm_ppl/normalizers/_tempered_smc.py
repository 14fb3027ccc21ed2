"""Adaptive tempered sequential Monte Carlo as a pure function: BlackJAX's step, tuned as it goes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.smc import adaptive_tempered, resampling
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey
from ebm_ppl.normalizers._path import AnnealingPath, Moved, Mover

MAX_LEVELS = 256  # temperatures after which a run is given up


class SMCRun(NamedTuple):
    """One cloud of particles at the end of the path, and the path as it was walked."""

    particles: Float[Array, "particle ..."]
    weights: Float[Array, " particle"]
    log_normalizer: Float[Array, ""]
    reached: Float[Array, ""]  # the inverse temperature at the end: 1 if all went well
    num_levels: Array
    inverse_temperatures: Float[Array, " level"]  # at which the moves of each level were made; 1 after the last
    step_sizes: Float[Array, " level"]
    scales: Float[Array, "level ..."]
    final_effective_size: Float[Array, ""]


class _State(NamedTuple):
    smc: Any  # BlackJAX's TemperedSMCState
    step_size: Array
    log_normalizer: Array
    level: Array
    betas: Array
    step_sizes: Array
    scales: Array


def run_tempered_smc(
    path: AnnealingPath, mover: Mover, key: PRNGKey, *, num_particles: int, target_effective_fraction: Array
) -> SMCRun:
    """One run; `jax.vmap` over keys makes independent ones.

    Where the energy has walls inside the base, the path starts from the base restricted to the inside; the mass of
    the inside is estimated by counting and resampled once, so that no particle is wasted on the outside.
    """
    base_key, inside_key, loop_key = jax.random.split(key, 3)
    particles = path.base.sample(base_key, num_particles, path.condition)
    particles = particles.astype(jnp.result_type(float))
    log_ratios = jax.vmap(path.log_ratio)(particles)
    inside = (log_ratios > -jnp.inf).astype(particles.dtype)
    share = jnp.mean(jnp.where(jnp.isnan(log_ratios), jnp.nan, inside))  # NaN is no wall: the run ends there
    kept = resampling.systematic(inside_key, inside / jnp.sum(inside), num_particles)
    # As drawn where there are no walls: resampling then would only add noise.
    chosen = jnp.where(share < 1, kept, jnp.arange(num_particles, dtype=kept.dtype))
    particles = particles[chosen]
    kernel = _blackjax_kernel(path, mover, target_effective_fraction)
    dtype = particles.dtype
    first = mover.first_step_size(particles[0].size, dtype)
    start = _State(
        adaptive_tempered.tempered.TemperedSMCState(
            particles, jnp.full(num_particles, 1 / num_particles, dtype), jnp.zeros((), dtype)
        ),
        first,
        jnp.log(share),
        jnp.zeros((), jnp.int32),
        jnp.ones(MAX_LEVELS, dtype),
        jnp.full(MAX_LEVELS, first, dtype),
        jnp.ones((MAX_LEVELS, *particles.shape[1:]), dtype),
    )

    def unfinished(state: _State) -> Array:
        return (state.smc.tempering_param < 1) & (state.level < MAX_LEVELS) & (state.log_normalizer > -jnp.inf)

    def advance(state: _State) -> _State:
        scale = _spread(state.smc.particles, state.smc.weights)
        parameters = {"step_size": state.step_size[None], "scale": scale[None]}
        smc, info = kernel(jax.random.fold_in(loop_key, state.level), state.smc, 1, parameters)
        increment = info.log_likelihood_increment
        return _State(
            jax.tree.map(lambda new, old: new.astype(old.dtype), smc, state.smc),
            mover.adapted(state.step_size, jnp.mean(info.update_info)),
            state.log_normalizer + increment,
            state.level + 1,
            state.betas.at[state.level].set(state.smc.tempering_param),
            state.step_sizes.at[state.level].set(state.step_size),
            state.scales.at[state.level].set(scale),
        )

    end = jax.lax.while_loop(unfinished, advance, start)
    return SMCRun(
        end.smc.particles,
        end.smc.weights,
        end.log_normalizer,
        end.smc.tempering_param,
        end.level,
        end.betas,
        end.step_sizes,
        end.scales,
        1 / jnp.sum(end.smc.weights**2),
    )


def _blackjax_kernel(path: AnnealingPath, mover: Mover, target_effective_fraction: Array) -> Any:
    return adaptive_tempered.build_kernel(
        path.log_base,
        path.log_ratio,
        mover,
        lambda position, logdensity_fn: Moved(position),
        resampling.systematic,
        target_effective_fraction,  # pyright: ignore[reportArgumentType]
    )


def _spread(particles: Array, weights: Array) -> Array:
    """Weighted standard deviation of every coordinate."""
    mean = jnp.tensordot(weights, particles, 1)
    return jnp.sqrt(jnp.tensordot(weights, (particles - mean[None]) ** 2, 1))
