"""`sample`: energies in, draws with a verdict out."""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from ebm_ppl._checks import check_condition, check_count, check_key, what_came
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy, coordinate_energy
from ebm_ppl.energies._coordinates import Coordinates
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.errors import ChainFailedError, warn_problems
from ebm_ppl.kernels import MALA, AbstractKernel
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.sampling._checkpoint import Checkpoint
from ebm_ppl.sampling._draws import Draws
from ebm_ppl.sampling._driver import Run
from ebm_ppl.sampling._init_strategies import check_init_strategy, improve_starts
from ebm_ppl.sampling._low_rank import check_precondition
from ebm_ppl.sampling._memory import check_memory
from ebm_ppl.sampling._mesh import check_mesh
from ebm_ppl.sampling._positions import SEARCHES, starting_positions
from ebm_ppl.sampling._resume import run_fingerprint
from ebm_ppl.sampling._run_chains import chain_keys, chain_target
from ebm_ppl.sampling._store import DrawStore

MAX_TRANSITIONS = 2**31  # numbers from there on are folded into a chain's key for other ends


def sample(
    energy: AbstractEnergy | Any,
    kernel: AbstractKernel | Any = None,
    *,
    key: Array | Any,
    num_chains: int | Any = 4,
    num_warmup: int | Any = 1000,
    num_samples: int | Any = 1000,
    thinning: int | Any = 1,
    initial_positions: Any = None,
    init_strategy: str = "uniform",
    condition: Any = None,
    precondition: str = "diagonal",
    pool_warmup: bool = False,
    progress_bar: bool = True,
    strict: bool = False,
    mesh: Mesh | Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Draws:
    r"""Draw from \(p(x) \propto \exp(-E(x))\) with many chains at once.

    An energy with a `support` is sampled in real coordinates (NumPyro's bijection of the support, the Jacobian
    included); positions and `lp` are those of the events. An energy with named parts gives a dictionary of positions.
    The energy is traced at every call: it is what its code, globals and closures are at that moment.

    All chains run in one compiled program on the device, in chunks of about a second, so that progress is shown,
    Ctrl-C returns the draws so far (flagged `INTERRUPTED`) and device memory stays bounded. Chain c uses
    `fold_in(key, c)` and its transition t `fold_in(., t)`: the draws do not depend on the number of chains or on
    the chunks. A second call with an equal configuration compiles nothing.

    Warm-up tunes the step size by dual averaging to the kernel's target acceptance rate and learns, in Stan's
    windows, a change of variables: the scale of every coordinate (`precondition="diagonal"`), the covariance
    (`"dense"`), or scales and a few directions (`"low_rank"`). Kernels without an acceptance rate (`ULA`) keep their
    step size and coordinates: warm-up is burn-in for them. Nothing adapts afterwards.

    Args:
        energy: what to sample; nats.
        kernel: how; `MALA()` by default. Its `step_size` is where warm-up starts, or what is used without warm-up.
        key: one JAX key, typed or legacy.
        num_chains: chains, at least 1; thousands are fine.
        num_warmup: transitions of warm-up, at least 0.
        num_samples: draws kept per chain, at least 1.
        thinning: transitions per kept draw, at least 1.
        initial_positions: events, `(num_chains, *event_shape)`, or a dictionary of the named parts; by default uniform
            in [-2, 2] in every real coordinate, redrawn up to ten times where the energy is not finite.
        init_strategy: where chains start. `"uniform"`: at `initial_positions`. `"optimize"`: L-BFGS (optax) goes from
            there, each chain by itself, until the root mean square of the gradient is below 0.01, at most 500 steps
            (`settings["unfinished_searches"]` counts chains that would have needed more); normal noise of standard
            deviation 0.1 is added. `"pathfinder"`: one draw per chain of the best normal approximation on such a way
            (BlackJAX's Pathfinder). Both need a gradient, and find the foot of whichever mode they come to first.
        condition: for conditional energies, one `condition_shape` for all chains or `(num_chains, *condition_shape)`.
        precondition: what warm-up learns as change of variables: `"diagonal"` scales; a `"dense"` covariance, for
            strongly correlated targets of up to a few hundred dimensions; `"low_rank"`, scales and at most ten
            directions that are much wider or narrower than the rest, in any number of dimensions; or `"none"`.
            `"dense"` and `"low_rank"` learn from draws and gradients together, which takes far fewer draws than a
            covariance alone; kernels without gradient learn `"dense"` from draws, and no `"low_rank"`.
        pool_warmup: let all chains learn one preconditioner and one step size together: better with many chains and
            a short warm-up; but then a chain's draws depend on the others.
        progress_bar: a bar in a terminal or notebook, one line per 10 s elsewhere.
        strict: raise `ChainFailedError` (carrying the draws) instead of warning when there is a problem.
        mesh: a `jax.sharding.Mesh`: the chains are spread over all its devices, on one host or, after
            `jax.distributed.initialize`, on several (every process then makes the same call and gets all draws).
            The draws do not depend on the layout, up to rounding; for elementwise energies not at all under
            `XLA_FLAGS=--xla_cpu_max_isa=AVX`.
        checkpoint: a directory to save the run to, about once a second; after a crash `ebm.resume(checkpoint, energy)`
            finishes it to the same bits. One that holds a run already is refused.
        store: a directory, `"draws.zarr"`, that draws and statistics are streamed to, so that memory holds one chunk
            of them, however many there are. `Draws.positions` and `Draws.stats` then are read-only memory maps:
            only what is looked at is read. `Draws.load(store)` opens it again; so does every reader of zarr's format
            3, `xarray.open_datatree(store, engine="zarr")` among them. What is there already is refused. With
            `checkpoint` too, a killed run goes on where its last save was.

    Returns:
        `Draws`; read `.ok` and `.problems` before anything else, then `ebm.diagnose(draws)`.

    Raises:
        KeyArgumentError: `key` is missing, an int, or several keys.
        EnergyShapeError: the energy is not a scalar of one event, or shapes do not match `event_shape`.
        EnergyDtypeError: positions or condition are not floating-point.
        NonFiniteEnergyError: energy or gradient is NaN or infinite at a starting position.
        NonDifferentiableEnergyError: the energy has no gradient.
        ValueError: a count or name is out of range.
        InsufficientMemoryError: a `MemoryError`; the draws or the chains would not fit. Nothing was allocated.
        ChainFailedError: `strict=True` and there is a problem.
        CheckpointError: checkpoint or store cannot be written, or is there already.

    Example:
        >>> import jax, ebm_ppl as ebm
        >>> energy = ebm.energies.DoubleWell(barrier=1.0, dim=1)
        >>> draws = ebm.sample(energy, key=jax.random.key(0), num_samples=2000, progress_bar=False)
        >>> draws
        Draws: 4 chains x 2000 draws of shape (1,), MALA, ok
        >>> bool(abs((draws.positions**2).mean() - 0.8327) < 0.1)        # the exact second moment
        True

    References:
        Hoffman, Gelman (2014). The no-U-turn sampler (dual averaging). JMLR 15, 1593-1623. arXiv:1111.4246
        Seyboldt, Carlson, Carpenter (2026). Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence
        (low rank). arXiv:2603.18845
        Zhang, Carpenter, Gelman, Vehtari (2022). Pathfinder: parallel quasi-Newton variational inference. JMLR 23(306),
        1-49. arXiv:2108.03782
        Lao, Cabezas et al. (2024). BlackJAX: composable Bayesian inference in JAX. arXiv:2402.10797
    """
    kernel = MALA() if kernel is None else kernel
    _check_settings(energy, kernel, precondition)
    check_init_strategy(init_strategy)
    counts: dict[str, Any] = {
        "num_chains": check_count("num_chains", num_chains),
        "num_warmup": check_count("num_warmup", num_warmup, 0),
        "num_samples": check_count("num_samples", num_samples),
        "thinning": check_count("thinning", thinning),
    }
    _check_length(counts)
    key = check_key(key)
    check_memory(
        num_chains=counts["num_chains"], num_samples=counts["num_samples"], event_shape=_packed_shape(energy),
        itemsize=jnp.result_type(float).itemsize, precondition=precondition, stored=store is not None,
    )  # fmt: skip
    condition = check_condition(condition, energy.condition_shape, counts["num_chains"])
    mesh = check_mesh(mesh, counts["num_chains"])
    if (checkpoint is not None or store is not None) and jax.process_count() > 1:
        raise NotImplementedError(
            "`checkpoint` or `store` with several processes; save the draws that every process gets instead."
        )
    inner = coordinate_energy(energy, _position_dtype(initial_positions))
    _check_callback(inner, checkpoint)
    positions, facts = _starts(inner, kernel, initial_positions, init_strategy, condition, key, counts["num_chains"])
    kernel = with_step_size(kernel, jnp.asarray(kernel.step_size, positions.dtype))
    target = chain_target(inner.target, condition, mesh)
    run = Run(kernel, target, positions, key, precondition, pool_warmup, **counts, **facts)
    if checkpoint is not None:
        run.checkpoint = Checkpoint(pathlib.Path(checkpoint), run_fingerprint(run))
        run.checkpoint.create()
    if store is not None:
        run.store = DrawStore(pathlib.Path(store).absolute(), run.num_samples)
        run.store.create()
    draws = run.go(progress_bar=progress_bar)
    if draws.problems and strict:
        raise ChainFailedError("; ".join(map(str, draws.problems)), draws)
    warn_problems(draws.problems, num_chains)
    return draws


def _check_length(counts: dict[str, int]) -> None:
    transitions = counts["num_warmup"] + counts["num_samples"] * counts["thinning"]
    if transitions >= MAX_TRANSITIONS:
        raise ValueError(
            "`num_warmup` + `num_samples` * `thinning` must be below 2**31, the number of keys of a chain; "
            f"got {transitions}."
        )


def _packed_shape(energy: AbstractEnergy) -> tuple[int, ...]:
    return Coordinates(energy.event_shape, energy.support).packed_shape


def _position_dtype(initial_positions: Any) -> Any:
    """Chains run in JAX's default precision (None); half precision is passed on, to be refused by name."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(initial_positions) if hasattr(leaf, "dtype")]
    return next((dtype for dtype in dtypes if dtype in (jnp.bfloat16, jnp.float16)), None)


def _check_callback(energy: CoordinateEnergy, checkpoint: object) -> None:
    if checkpoint is not None and energy.target.is_opaque:
        raise ValueError(
            "`checkpoint` must be None for an energy that calls back into Python (jax.pure_callback and the like), or "
            "whose derivative rules cannot be traced: what it computes cannot be recorded, so that another energy "
            "could be resumed unnoticed."
        )


def _starts(
    energy: CoordinateEnergy,
    kernel: AbstractKernel,
    initial_positions: Any,
    init_strategy: str,
    condition: Any,
    key: Array,
    num_chains: int,
) -> tuple[Array, dict[str, Any]]:
    """Where the chains start, and what is to be told of how they got there."""
    needs_gradient = kernel.uses_gradient or init_strategy != "uniform"
    positions, redraws = starting_positions(
        energy, initial_positions, condition, key=key, num_chains=num_chains, needs_gradient=needs_gradient
    )
    keys = chain_keys(jax.random.fold_in(key, SEARCHES), num_chains)
    positions, unfinished = improve_starts(init_strategy, energy, positions, condition, keys)
    return positions, {
        "redrawn_starts": redraws,
        "init_strategy": init_strategy,
        "unfinished_searches": unfinished,
    }


def _check_settings(energy: object, kernel: object, precondition: object) -> None:
    check_energy_type("energy", energy)
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"`kernel` must be an ebm.AbstractKernel such as ebm.MALA(); got {what_came(kernel)}.")
    check_precondition(precondition, kernel)
