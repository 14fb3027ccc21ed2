"""The pure, jit-able core of `sample`: many chains, warm-up and draws, with no host code."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from ebm_ppl._types import LogDensityFn, PRNGKey
from ebm_ppl.energies import AbstractEnergy, Target
from ebm_ppl.energies._check_start import check_inside
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.sampling._mesh import chain_spec, place_chains
from ebm_ppl.sampling._warmup import (
    Adaptation,
    ChainState,
    adapt_chain,
    advance_chain,
    end_slow_window,
    finish_warmup,
    start_adaptation,
    start_chain,
    use_preconditioner,
    warmup_windows,
)

START, TUNE = 2**31, 2**31 + 1  # folded into a chain's key beside the step numbers, which stay below them


class Chains(NamedTuple):
    """The state of all chains between two chunks: everything needed to go on."""

    chain: ChainState
    adaptation: Adaptation | Any  # None once nothing adapts


class ChainTarget(eqx.Module):
    """What the chains sample: a target and, for conditional ones, the condition (one for all, or one per chain)."""

    density: Target
    condition: Float[Array, "..."] | None
    condition_per_chain: bool = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True, default=None)

    def logdensity_fn(self, condition: Array | None) -> Target:
        """The log density one chain sees."""
        return self.density.at_condition(condition)


def chain_keys(key: PRNGKey, num_chains: int) -> Array:
    """One key per chain; a chain's draws do not depend on how many others there are."""
    return jax.vmap(lambda chain: jax.random.fold_in(key, chain))(jnp.arange(num_chains, dtype=jnp.uint32))


def _vmap_chains(function: Any, target: ChainTarget, *args: Any) -> Any:
    """`function(logdensity_fn, *args of one chain)` for all chains, those of a mesh on its devices."""

    def local(mapped: Any, *args: Any) -> Any:
        return mapped(function, *args)

    return _on_mesh(local, target, PartitionSpec(), *args)


def _on_mesh(program: Any, target: ChainTarget, leading: PartitionSpec, *args: Any) -> Any:
    """`program(mapped, *args)` on every device's own chains; `mapped(function, *args)` maps over them.

    Every device runs its own program: a loop of one (NUTS) never waits for those of another. Outputs lead with
    the axes of `leading`, then the chains.
    """
    axis = 0 if target.condition_per_chain else None

    def run(condition: Array | None, *args: Any) -> Any:
        def mapped(function: Any, *args: Any) -> Any:
            def one_chain(condition: Array | None, *chain_args: Any) -> Any:
                return function(target.logdensity_fn(condition), *chain_args)

            return jax.vmap(one_chain, in_axes=(axis, *(0 for _ in args)))(condition, *args)

        return program(mapped, *args)

    if target.mesh is None:
        return run(target.condition, *args)
    chains = chain_spec(target.mesh)
    in_specs = (chains if axis == 0 else PartitionSpec(), *(chains for _ in args))
    out_specs = PartitionSpec(*leading, *chains)
    run = jax.shard_map(run, mesh=target.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return run(target.condition, *args)


@eqx.filter_jit
def start_chains(
    kernel: AbstractKernel,
    target: ChainTarget,
    positions: Float[Array, "chain ..."],
    keys: Array,
    *,
    tune: bool,
    precondition: str,
) -> Chains:
    """All chains at their starting positions; with `tune`, a reasonable first step size and empty moments."""

    def start(logdensity_fn: LogDensityFn, position: Array, key: Array) -> Chains:
        chain = start_chain(kernel, logdensity_fn, position, jax.random.fold_in(key, START), precondition)
        if not tune:
            return Chains(chain, None)
        return Chains(*start_adaptation(kernel, logdensity_fn, chain, jax.random.fold_in(key, TUNE)))

    return _vmap_chains(start, target, positions, keys)


@eqx.filter_jit
def warm_up(
    kernel: AbstractKernel,
    target: ChainTarget,
    chains: Chains,
    keys: Array,
    first: Int[Array, ""],
    num_steps: Int[Array, ""],
    slow: Array,
) -> tuple[Chains, Float[Array, " chain"]]:
    """`num_steps` warm-up transitions; returns also the mean acceptance rate of each chain (NaN if undefined)."""

    def run(logdensity_fn: LogDensityFn, chains: Chains, key: Array) -> tuple[Chains, Array]:
        def step(i: Array, carry: tuple[Chains, Array]) -> tuple[Chains, Array]:
            (chain, adaptation), total = carry
            chain, stats = advance_chain(kernel, logdensity_fn, chain, jax.random.fold_in(key, first + i))
            if adaptation is not None:
                chain, adaptation = adapt_chain(kernel, chain, adaptation, stats, slow)
            return Chains(chain, adaptation), total + stats.get("acceptance_rate", jnp.full_like(total, jnp.nan))

        zero = jnp.zeros((), chains.chain.step_size.dtype)
        chains, total = jax.lax.fori_loop(0, num_steps, step, (chains, zero))
        return chains, total / num_steps.astype(zero.dtype)

    return _vmap_chains(run, target, chains, keys)


@eqx.filter_jit
def close_slow_window(
    kernel: AbstractKernel, target: ChainTarget, chains: Chains, keys: Array, step: Int[Array, ""], *, pool: bool
) -> Chains:
    """Put what a slow window taught to use; `step` transitions were made so far. `pool`: chains learn together."""
    if pool:
        return _close_together(kernel, target, chains, keys, step)

    def close(logdensity_fn: LogDensityFn, chains: Chains, key: Array) -> Chains:
        key = jax.random.fold_in(jax.random.fold_in(key, TUNE), step)
        return Chains(*end_slow_window(kernel, logdensity_fn, chains.chain, chains.adaptation, key))

    return _vmap_chains(close, target, chains, keys)


def _close_together(
    kernel: AbstractKernel, target: ChainTarget, chains: Chains, keys: Array, step: Int[Array, ""]
) -> Chains:
    """One preconditioner, learnt from the draws of all chains, for every chain."""
    first = jax.tree.map(lambda leaf: leaf[0], chains.chain.preconditioner)  # all have the same one so far
    learnt = first.learn_from(first.pool(chains.adaptation.moments))
    count = len(chains.chain.step_size)
    together = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), learnt)

    def use(logdensity_fn: LogDensityFn, chain: ChainState, preconditioner: Any, key: Array) -> Chains:
        key = jax.random.fold_in(jax.random.fold_in(key, TUNE), step)
        return Chains(*use_preconditioner(kernel, logdensity_fn, chain, preconditioner, key))

    return _vmap_chains(use, target, chains.chain, together, keys)


@eqx.filter_jit
def close_warmup(kernel: AbstractKernel, chains: Chains, *, pool: bool) -> Chains:
    """Fix the step sizes, with `pool` at their geometric mean over chains; from here on nothing adapts."""
    chain = jax.vmap(lambda c: finish_warmup(kernel, c.chain, c.adaptation))(chains)
    if pool:
        mean = jnp.exp(jnp.mean(jnp.log(chain.step_size)))
        chain = chain._replace(step_size=jnp.broadcast_to(mean, chain.step_size.shape))
    return Chains(chain, None)


@eqx.filter_jit
def draw(
    kernel: AbstractKernel,
    target: ChainTarget,
    chains: Chains,
    keys: Array,
    first: Int[Array, ""],
    num_draws: Int[Array, ""],
    *,
    capacity: int,
    thinning: int,
) -> tuple[Chains, Array, dict[str, Array]]:
    """`num_draws <= capacity` draws of every chain, `thinning` transitions each, starting at transition `first`.

    The number of draws is an array: chunks of any length share one compiled program. Returns positions and
    statistics as `(draw, chain, ...)`; rows from `num_draws` on are not meaningful. Positions are events on the
    support, named parts packed into one array; `lp` is -E of the event, without the Jacobian.
    """

    def program(mapped: Any, chain: ChainState, keys: Array) -> tuple[Any, Array, dict[str, Array]]:
        def one_draw(i: Array, chain: ChainState) -> tuple[ChainState, Array, dict[str, Array]]:
            def run(density: Target, chain: ChainState, key: Array) -> tuple[ChainState, Array, dict[str, Array]]:
                chain, stats = _thinned(kernel, density, chain, key, first + i * thinning, thinning)
                event, log_jacobian = density.coordinates.to_event_and_log_jacobian(chain.position)
                stats = stats | {"lp": stats["lp"] - log_jacobian.astype(stats["lp"].dtype)}
                return chain, density.coordinates.pack(event), stats

            return mapped(run, chain, keys)

        def step(i: Array, carry: tuple) -> tuple:
            # The loop is outside, the chains inside: so a row is written by one slice update, not by a scatter.
            chain, positions, stats = carry
            chain, *new = one_draw(i, chain)
            write = jax.lax.dynamic_update_index_in_dim
            positions, stats = jax.tree.map(lambda rows, row: write(rows, row, i, 0), [positions, stats], new)
            return chain, positions, stats

        shapes = eqx.filter_eval_shape(one_draw, jnp.zeros((), jnp.int32), chain)[1:]
        positions, stats = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)
        chain, positions, stats = jax.lax.fori_loop(0, num_draws, step, (chain, positions, stats))
        # The state leads with an axis of one, so that all outputs are laid out alike: (draw, chain, ...).
        return jax.tree.map(lambda leaf: leaf[None], chain), positions, stats

    chain, positions, stats = _on_mesh(program, target, PartitionSpec(None), chains.chain, keys)
    return Chains(jax.tree.map(lambda leaf: leaf[0], chain), None), positions, stats


def _thinned(
    kernel: AbstractKernel, logdensity_fn: LogDensityFn, chain: ChainState, key: Array, first: Array, thinning: int
) -> tuple[ChainState, dict[str, Array]]:
    """`thinning` transitions: rates are averaged, faults are any, work is summed, the rest is the last one's."""
    chain, stats = advance_chain(kernel, logdensity_fn, chain, jax.random.fold_in(key, first))
    if thinning == 1:
        return chain, stats

    def step(j: Array, carry: tuple) -> tuple:
        chain, total = carry
        chain, stats = advance_chain(kernel, logdensity_fn, chain, jax.random.fold_in(key, first + j))
        combined = {}
        for name, value in stats.items():
            if name in ("acceptance_rate", "n_steps"):
                value = total[name] + value
            elif value.dtype == bool:
                value = total[name] | value
            combined[name] = value
        return chain, combined

    chain, stats = jax.lax.fori_loop(1, thinning, step, (chain, stats))
    if "acceptance_rate" in stats:
        rate = stats["acceptance_rate"]
        stats = stats | {"acceptance_rate": rate / jnp.asarray(thinning, rate.dtype)}
    return chain, stats


def run_chains(
    energy: AbstractEnergy,
    kernel: AbstractKernel,
    initial_positions: Any,
    *,
    key: PRNGKey,
    num_warmup: int,
    num_samples: int,
    thinning: int = 1,
    condition: Float[Array, "..."] | None = None,
    precondition: str = "diagonal",
    pool_warmup: bool = False,
) -> tuple[Any, dict[str, Array], Chains]:
    r"""The core of `sample` as one pure function: it may be jitted, vmapped, and called inside other programs.

    The same draws as `sample` with the same key and starting positions; no checks, no progress, no problems.

    Args:
        energy: what to sample.
        kernel: how; its `step_size` is where warm-up starts.
        initial_positions: events on the support, shape `(chain, *event_shape)`; with named parts a dictionary.
        key: one typed JAX key.
        num_warmup: transitions before the first draw.
        num_samples: draws of each chain.
        thinning: transitions per draw.
        condition: for conditional energies, shape `condition_shape` or `(chain, *condition_shape)`.
        precondition: `"diagonal"`, `"dense"` or `"none"`.
        pool_warmup: whether all chains learn one preconditioner and one step size together.

    Returns:
        positions `(chain, draw, *event_shape)` (with named parts a dictionary), statistics `(chain, draw)` by name, and
        the final state.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))
        >>> positions, stats, _ = ebm.sampling.run_chains(
        ...     energy, ebm.MALA(0.5), jnp.zeros((3, 2)), key=jax.random.key(0), num_warmup=50, num_samples=10)
        >>> positions.shape, sorted(stats)[:2]
        ((3, 10, 2), ['acceptance_rate', 'diverging'])
    """
    target = chain_target(Target(energy, dtype=jax.tree.leaves(initial_positions)[0].dtype), condition)
    coordinates = target.density.coordinates
    starts = jax.vmap(coordinates.to_coordinates)(initial_positions)
    if not coordinates.is_identity:
        check_inside("initial_positions", coordinates, initial_positions, starts)
    initial_positions = starts
    num_chains = initial_positions.shape[0]
    keys = chain_keys(key, num_chains)
    tune = tunes(kernel, num_warmup)
    chains = start_chains(kernel, target, initial_positions, keys, tune=tune, precondition=precondition)
    done = 0
    for window in warmup_windows(num_warmup):
        slow = window.slow and tune and precondition != "none"
        count = jnp.asarray(window.num_steps, jnp.int32)
        chains, _ = warm_up(kernel, target, chains, keys, jnp.asarray(done, jnp.int32), count, jnp.asarray(slow))
        done += window.num_steps
        if slow:
            chains = close_slow_window(kernel, target, chains, keys, jnp.asarray(done, jnp.int32), pool=pool_warmup)
    if tune:
        chains = close_warmup(kernel, chains, pool=pool_warmup)
    first, count = jnp.asarray(done, jnp.int32), jnp.asarray(num_samples, jnp.int32)
    chains, positions, stats = draw(kernel, target, chains, keys, first, count, capacity=num_samples, thinning=thinning)
    positions, stats = jax.tree.map(lambda rows: jnp.swapaxes(rows, 0, 1), (positions, stats))
    return target.density.coordinates.unpack(positions), stats, chains


@eqx.filter_jit
def learnt_scales(chains: Chains) -> Float[Array, "chain ..."]:
    """The standard deviation of every coordinate as each chain's change of variables has it."""
    return jax.vmap(lambda preconditioner: preconditioner.scale)(chains.chain.preconditioner)


@eqx.filter_jit
def log_densities(target: ChainTarget, chains: ChainState) -> Float[Array, " chain"]:
    """The log density of the coordinates where each chain is."""
    return _vmap_chains(lambda density, chain: density(chain.position), target, chains)


def tunes(kernel: AbstractKernel, num_warmup: int) -> bool:
    """Whether warm-up adapts anything: it needs steps, and an acceptance rate to steer by."""
    return num_warmup > 0 and kernel.target_acceptance_rate is not None


def chain_target(density: Target, condition: Array | None, mesh: Mesh | None = None) -> ChainTarget:
    """The target of all chains; a condition with a leading chain axis gives each chain its own."""
    condition_shape = density.energy.condition_shape
    if condition is None or condition_shape is None:
        return ChainTarget(density, condition, condition_per_chain=False, mesh=mesh)
    per_chain = condition.ndim > len(condition_shape)
    condition = place_chains(condition, mesh) if per_chain else condition
    return ChainTarget(density, condition, condition_per_chain=per_chain, mesh=mesh)


def chunk_capacity(num_samples: int, num_chains: int, event_shape: tuple[int, ...], itemsize: int) -> int:
    """Draws per chunk that keep the device's buffer near 64 MiB; a power of two, so that programs are shared."""
    per_draw = num_chains * (math.prod(event_shape) * itemsize + 40)
    most = max(1, 2**26 // per_draw)
    return min(2 ** (most.bit_length() - 1), 2 ** max(0, num_samples - 1).bit_length())
