"""`resume`: go on where a killed or interrupted run stopped, to the same bits."""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ebm_ppl import kernels
from ebm_ppl._checks import check_condition
from ebm_ppl.energies import AbstractEnergy, Target
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.errors import ChainFailedError, CheckpointError, warn_problems
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.sampling._checkpoint import Checkpoint, Saved, library_versions, load_checkpoint
from ebm_ppl.sampling._draws import Draws
from ebm_ppl.sampling._driver import Journey, Run
from ebm_ppl.sampling._fingerprint import array_fingerprint, kernel_fingerprint, target_fingerprint
from ebm_ppl.sampling._mesh import check_mesh, place_chains, to_host
from ebm_ppl.sampling._run_chains import Chains, chain_target, log_densities
from ebm_ppl.sampling._store import DrawStore

LOG_DENSITY_TOLERANCE = 1e-3  # relative to 1 + |log density|: rounding of another compilation stays far below it


def run_fingerprint(run: Run) -> dict[str, Any]:
    """Everything that decides a run's draws, as JSON."""
    condition = run.target.condition
    return {
        "energy": target_fingerprint(run.target.density),
        "kernel": kernel_fingerprint(run.kernel),
        "condition": None if condition is None else array_fingerprint(condition),
        "key": {"data": np.asarray(jax.random.key_data(run.key)).tolist(), "impl": str(jax.random.key_impl(run.key))},
        "precondition": run.precondition,
        "pool_warmup": run.pool_warmup,
        "num_chains": run.num_chains,
        "num_warmup": run.num_warmup,
        "num_samples": run.num_samples,
        "thinning": run.thinning,
        "init_strategy": run.init_strategy,
        "redrawn_starts": run.redrawn_starts,
        "unfinished_searches": run.unfinished_searches,
        "devices": 1 if run.target.mesh is None else run.target.mesh.devices.size,
        "dtype": str(run.positions.dtype),
        "coordinates": list(run.positions.shape[1:]),
        "versions": library_versions(),
    }


def resume(
    checkpoint_path: str | os.PathLike[str],
    energy: AbstractEnergy,
    *,
    kernel: AbstractKernel | None = None,
    condition: Any = None,
    mesh: Mesh | Any = None,
    progress_bar: bool = True,
    strict: bool = False,
) -> Draws:
    """Finish a run that was started with `ebm.sample(..., checkpoint=path)` and was killed or interrupted.

    The result is, byte for byte, that of the uninterrupted run, on the same machine and library versions. Energy and
    condition must be the same ones: the traced program and the values of all arrays it uses, those that it closes over
    or finds in globals among them, are compared with what was recorded, and so is the log density at every chain's
    position. How the function is written or named does not matter. A run that was complete is simply returned.

    Args:
        checkpoint_path: the directory given to `sample`.
        energy: the energy; its code is yours, never read from a file.
        kernel: only for a kernel class of your own; ours are rebuilt from the record.
        condition: the condition given to `sample`, if any.
        mesh: a mesh of as many devices as `sample` was given, if any: rounding depends on their number.
        progress_bar: as in `sample`.
        strict: as in `sample`.

    Returns:
        `Draws`, as `sample` would have returned them.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged beyond the last two versions, or energy, condition,
            kernel, number of devices or library versions differ (the message says which).
        ChainFailedError: `strict=True` and there is a problem.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     draws = ebm.sample(energy, key=jax.random.key(0), checkpoint=directory, progress_bar=False)
        ...     again = ebm.resume(directory, energy, progress_bar=False)
        >>> bool((again.positions == draws.positions).all())
        True
    """
    check_energy_type("energy", energy)
    saved = load_checkpoint(checkpoint_path)
    run = _rebuild(saved, energy, kernel, condition, mesh)
    _refuse_differences(saved.manifest["fingerprint"], run_fingerprint(run), checkpoint_path)
    journey = _journey(run, saved)
    _check_log_density(run, journey)
    drawn = journey.drawn
    files = saved.manifest["draws"]
    run.checkpoint = Checkpoint(pathlib.Path(checkpoint_path), saved.manifest["fingerprint"], drawn, list(files))
    if saved.manifest.get("store") is not None:
        run.checkpoint.store = saved.manifest["store"]
        run.store = DrawStore.reopen(saved.manifest["store"])
        journey.stored = run.store.drawn
    draws = run.go(journey, progress_bar=progress_bar)
    if draws.problems and strict:
        raise ChainFailedError("; ".join(map(str, draws.problems)), draws)
    warn_problems(draws.problems, draws.num_chains)
    return draws


def _rebuild(saved: Saved, energy: AbstractEnergy, kernel: AbstractKernel | None, condition: Any, mesh: Any) -> Run:
    record = saved.manifest["fingerprint"]
    dtype = np.dtype(record["dtype"])
    kernel = _recorded_kernel(record["kernel"]) if kernel is None else kernel
    kernel = with_step_size(kernel, jnp.asarray(kernel.step_size, dtype))
    condition = check_condition(condition, energy.condition_shape, record["num_chains"])
    key = jax.random.wrap_key_data(jnp.asarray(record["key"]["data"], jnp.uint32), impl=record["key"]["impl"])
    positions = jnp.zeros((record["num_chains"], *record["coordinates"]), dtype)
    density = Target(energy, dtype=dtype)
    if list(density.shape) != record["coordinates"]:
        raise CheckpointError(
            f"the run was written for an energy with coordinates of shape {tuple(record['coordinates'])}; this one has "
            f"{density.shape}: it differs in event_shape or support."
        )
    return Run(
        kernel,
        chain_target(density, condition, check_mesh(mesh, record["num_chains"])),
        positions,
        key,
        record["precondition"],
        record["pool_warmup"],
        record["num_chains"],
        record["num_warmup"],
        record["num_samples"],
        record["thinning"],
        record["redrawn_starts"],
        init_strategy=record["init_strategy"],
        unfinished_searches=record["unfinished_searches"],
    )


def _recorded_kernel(record: dict[str, Any]) -> AbstractKernel:
    fields = dict(record)
    kernel_class = getattr(kernels, fields.pop("class"), None)
    if kernel_class is None:
        raise CheckpointError(f"kernel {record['class']!r} is not one of ebm_ppl's: pass `kernel=`.")
    return kernel_class(**fields)


def _refuse_differences(recorded: dict[str, Any], given: dict[str, Any], path: str | os.PathLike[str]) -> None:
    different = [
        f"{name}.{part}" if isinstance(value, dict) else name
        for name, value in recorded.items()
        for part in (value if isinstance(value, dict) else [None])
        if (value[part] != given[name].get(part) if isinstance(value, dict) else value != given[name])
    ]
    if different:
        raise CheckpointError(f"{os.fspath(path)} was written by another run: it differs in {', '.join(different)}.")


def _check_log_density(run: Run, journey: Journey) -> None:
    """The stored log densities of the chains must be those of this energy, up to rounding.

    Kernels that store something else (another temperature, a minibatch) are not compared.
    """
    chain = journey.chains.chain
    if not run.kernel.adjusted:
        return
    found = to_host(log_densities(run.target, chain))
    stored = to_host(chain.inner.logdensity)
    off = ~(np.abs(found - stored) <= LOG_DENSITY_TOLERANCE * (1 + np.abs(stored)))
    if off.any():
        first = int(np.argmax(off))
        raise CheckpointError(
            f"the energy is another one: at the position of chain {first} the run stored the log density "
            f"{stored[first]:.6g}, and this energy gives {found[first]:.6g}."
        )


def _journey(run: Run, saved: Saved) -> Journey:
    """The saved leaves put back into the structure that this run would have at that point."""
    warm = saved.manifest["warm"]
    begun = run.begin().chains  # only its structure is used
    template = Chains(begun.chain, None) if warm else begun
    leaves, treedef = jax.tree.flatten(template)
    shapes = [(leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves]
    found = [(leaf.shape, leaf.dtype) for leaf in saved.leaves]
    if shapes != found:
        raise CheckpointError("the saved state does not fit this kernel and energy.")
    chains = jax.tree.unflatten(treedef, [place_chains(jnp.asarray(leaf), run.target.mesh) for leaf in saved.leaves])
    return Journey(chains, saved.manifest["warmed"], warm, list(saved.pieces))
