"""Better starts than chance: the foot of the energy landscape, or a normal approximation found on the way there."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from blackjax.vi import pathfinder
from jaxtyping import Array, Bool, Float

from ebm_ppl._types import LogDensityFn
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy
from ebm_ppl.errors import NonFiniteEnergyError

INIT_STRATEGIES = ("uniform", "optimize", "pathfinder")
GRADIENT_NORM = 1e-2  # optimisation stops where the gradient's root mean square is below it, nats per unit of x ...
MAX_ITERATIONS = 500  # ... or after so many L-BFGS steps
JITTER = 0.1  # standard deviation of what is added to the optimum, so that no two chains start at the same point
ELBO_DRAWS = 64  # draws that judge each normal approximation along Pathfinder's way


class Search(NamedTuple):
    """L-BFGS between two steps."""

    position: Array
    state: Any
    gradient_norm: Array
    iteration: Array


def check_init_strategy(init_strategy: object) -> None:
    """Refuse an unknown name."""
    if init_strategy not in INIT_STRATEGIES:
        raise ValueError(f"`init_strategy` must be one of {INIT_STRATEGIES}; got {init_strategy!r}.")


def improve_starts(
    init_strategy: str,
    energy: CoordinateEnergy,
    positions: Float[Array, "chain ..."],
    condition: Array | None,
    keys: Array,
) -> tuple[Float[Array, "chain ..."], int]:
    """`positions` moved by `"optimize"` or `"pathfinder"`, each chain by itself; `"uniform"` leaves them.

    Also how many chains' searches ended before the gradient was small enough.

    Raises:
        NonFiniteEnergyError: a search ended where energy or gradient is not finite, as on an energy that is
            unbounded below; names the chain.
    """
    if init_strategy == "uniform":
        return positions, 0
    per_chain = condition is not None and condition.ndim > len(energy.condition_shape or ())
    found, finite, finished = _improve(energy, positions, condition, keys, init_strategy, per_chain=per_chain)
    bad = ~np.asarray(finite)
    if bad.any():
        raise NonFiniteEnergyError(
            f"`init_strategy='{init_strategy}'` found no finite start for {int(bad.sum())} of {bad.size} chains, the "
            f"first of them chain {int(np.argmax(bad))}: the energy may be unbounded below (see ebm.check_energy); "
            "start nearer by `initial_positions`, or use init_strategy='uniform'."
        )
    return found, int((~np.asarray(finished)).sum())


@eqx.filter_jit
def _improve(
    energy: CoordinateEnergy, positions: Array, condition: Array | None, keys: Array, name: str, *, per_chain: bool
) -> tuple[Array, Bool[Array, " chain"], Bool[Array, " chain"]]:
    search = _optimum if name == "optimize" else _pathfinder_draw

    def one(position: Array, condition: Array | None, key: Array) -> tuple[Array, Array, Array]:
        density = energy.target.at_condition(condition)
        # BlackJAX and optax mix integers, bools and floats, and broadcast freely.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            found, finished = search(density, position, key)
        found = found.astype(position.dtype)
        value, gradient = jax.value_and_grad(density)(found)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient)) & jnp.all(jnp.isfinite(found))
        return found, finite, finished

    return jax.vmap(one, in_axes=(0, 0 if per_chain else None, 0))(positions, condition, keys)


def _optimum(density: LogDensityFn, position: Array, key: Array) -> tuple[Array, Array]:
    """A local minimum of the energy, jittered, and whether the search reached it.

    Not jittered where that would leave the region of finite energies.
    """

    def energy(x: Array) -> Array:
        return -density(x)

    optimiser = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(energy)

    def step(search: Search) -> Search:
        value, gradient = value_and_gradient(search.position, state=search.state)
        updates, state = optimiser.update(
            gradient, search.state, search.position, value=value, grad=gradient, value_fn=energy
        )
        moved: Any = optax.apply_updates(search.position, updates)
        return Search(moved, state, _root_mean_square(jax.grad(energy)(moved)), search.iteration + 1)

    def unfinished(search: Search) -> Array:
        return (search.iteration < MAX_ITERATIONS) & (search.gradient_norm > GRADIENT_NORM)

    start = Search(
        position, optimiser.init(position), _root_mean_square(jax.grad(energy)(position)), jnp.zeros((), int)
    )
    end = jax.lax.while_loop(unfinished, step, start)
    jittered = end.position + JITTER * jax.random.normal(key, position.shape, position.dtype)
    value, gradient = jax.value_and_grad(density)(jittered)
    usable = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    return jnp.where(usable, jittered, end.position), end.gradient_norm <= GRADIENT_NORM


def _pathfinder_draw(density: LogDensityFn, position: Array, key: Array) -> tuple[Array, Array]:
    """One draw of the normal approximation with the largest evidence bound on the way to the optimum."""
    path_key, draw_key = jax.random.split(key)
    state, _ = pathfinder.approximate(path_key, density, position, num_samples=ELBO_DRAWS)
    sampled: Any = pathfinder.sample(draw_key, state)
    found = jnp.isfinite(state.elbo)
    return jnp.where(found, sampled[0].reshape(position.shape), jnp.nan), found


def _root_mean_square(gradient: Array) -> Array:
    return jnp.sqrt(jnp.mean(gradient**2))
