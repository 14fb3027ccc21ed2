"""Checkpoints of `fit`: a directory of checksummed files that a killed run goes on from, to the same bits.

    manifest.json, manifest.previous.json     what there is, with SHA-256 of every file; the last two versions
    state-N.npz                               everything that step N + 1 needs
    metrics-M-N.npz                           metrics of steps M + 1 to N, written once each

Every file appears whole or not at all. No pickle: arrays only; model, objective and optimiser are the caller's code.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ebm_ppl._checkpoints import make_directory, newest, read_arrays, read_version, write_arrays, write_version
from ebm_ppl.errors import CheckpointError
from ebm_ppl.training._loop import TrainState

FORMAT_VERSION = 1
KIND = "ebm_ppl.fit"
MIN_SECONDS = 1.0  # between two saves
PRICE = 20.0  # and this many times what the last save took: large models are not saved all the time
VERSIONS = ("ebm_ppl", "jax", "optax", "equinox", "numpy")


def library_versions() -> dict[str, str]:
    """Versions on which bit-exact continuation depends."""
    return {name: importlib.metadata.version(name) for name in VERSIONS}


@dataclasses.dataclass
class TrainingCheckpoint:
    """Where a run saves itself.

    Args:
        directory: created if needed.
        fingerprint: what the run is, JSON-able. Going on demands the same.
    """

    directory: pathlib.Path
    fingerprint: dict[str, Any]
    saved_steps: int = 0
    files: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    last: float = dataclasses.field(default_factory=time.monotonic)
    cost: float = 0.0

    @property
    def due(self) -> bool:
        """Whether enough work has been done since the last save."""
        return time.monotonic() - self.last >= max(MIN_SECONDS, PRICE * self.cost)

    def create(self) -> None:
        """Make the directory."""
        make_directory(self.directory)

    def save(self, state: TrainState, history: dict[str, list[np.ndarray]]) -> None:
        """Write the metrics not yet written, then the state, then the manifest that makes both count."""
        began, step = time.monotonic(), int(state.step)
        self._save_metrics(step, history)
        leaves = {f"{i:06d}": _encode(leaf) for i, leaf in enumerate(_array_leaves(state))}
        entry = write_arrays(self.directory, f"state-{step:012d}.npz", leaves)
        manifest = {
            "format": FORMAT_VERSION,
            "kind": KIND,
            "fingerprint": self.fingerprint,
            "step": step,
            "state": entry,
            "metrics": self.files,
        }
        write_version(self.directory, manifest)
        self.last = time.monotonic()
        self.cost = self.last - began

    def _save_metrics(self, step: int, history: dict[str, list[np.ndarray]]) -> None:
        if step == self.saved_steps:
            return
        fresh = {name: np.concatenate(values)[self.saved_steps : step] for name, values in history.items()}
        name = f"metrics-{self.saved_steps:012d}-{step:012d}.npz"
        self.files = [*self.files, write_arrays(self.directory, name, fresh)]
        self.saved_steps = step


@dataclasses.dataclass(frozen=True)
class SavedTraining:
    """What a checkpoint directory holds, verified."""

    manifest: dict[str, Any]
    leaves: list[np.ndarray]
    history: dict[str, list[np.ndarray]]


def load_training(directory: pathlib.Path) -> SavedTraining:
    """Read and verify the newest usable version; the previous one, with a warning, where the newest is damaged.

    Raises:
        CheckpointError: neither version is whole. Nothing is half-loaded.
    """
    return newest(lambda name: _load(directory, name), stacklevel=4)


def refuse_differences(recorded: dict[str, Any], given: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Another run is not continued; what differs is named.

    Raises:
        CheckpointError: recorded and given fingerprints differ.
    """
    different = sorted(_differences(recorded, given))
    if different:
        raise CheckpointError(
            f"{os.fspath(path)} was written by another run: it differs in {', '.join(different)}. Call `fit` as then, "
            "or choose another path."
        )


def restore(saved: SavedTraining, template: TrainState) -> TrainState:
    """The saved leaves put into the structure that this run has.

    Raises:
        CheckpointError: they do not fit.
    """
    arrays, rest = eqx.partition(template, eqx.is_array)
    leaves, treedef = jax.tree.flatten(arrays)
    expected = [_encode(leaf) for leaf in leaves]
    if [(leaf.shape, leaf.dtype) for leaf in expected] != [(leaf.shape, leaf.dtype) for leaf in saved.leaves]:
        raise CheckpointError("the saved state does not fit this model, objective and optimiser.")
    decoded = [_decode(host, leaf) for host, leaf in zip(saved.leaves, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(treedef, decoded), rest)


def _differences(recorded: Any, given: Any, prefix: str = "") -> list[str]:
    if not (isinstance(recorded, dict) and isinstance(given, dict)):
        return [] if recorded == given else [prefix]
    names = recorded.keys() | given.keys()
    path = f"{prefix}." if prefix else ""
    return [part for name in names for part in _differences(recorded.get(name), given.get(name), f"{path}{name}")]


def _array_leaves(state: TrainState) -> list[jax.Array]:
    return jax.tree.leaves(eqx.filter(state, eqx.is_array))


def _encode(leaf: Any) -> np.ndarray:
    """An array that npz can hold: keys as their data, dtypes beyond NumPy's (bfloat16) as bytes."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    host = np.asarray(leaf)
    return host.view(np.dtype(f"u{host.dtype.itemsize}")) if host.dtype.kind == "V" else host


def _decode(host: np.ndarray, like: Any) -> jax.Array:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(host), impl=jax.random.key_impl(like))
    return jax.device_put(host.view(like.dtype), like.sharding)


def _load(directory: pathlib.Path, name: str) -> SavedTraining:
    manifest = read_version(directory, name, KIND, FORMAT_VERSION)
    state = read_arrays(directory, manifest["state"])
    history: dict[str, list[np.ndarray]] = {}
    for entry in manifest["metrics"]:
        for metric, values in read_arrays(directory, entry).items():
            history.setdefault(metric, []).append(values)
    ordered = sorted(history.items(), key=lambda item: item[0] != "loss")
    return SavedTraining(manifest, [state[key] for key in sorted(state)], dict(ordered))
