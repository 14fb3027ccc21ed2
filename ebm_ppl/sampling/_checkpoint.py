"""Checkpoints of a run: a directory of checksummed files that a killed run can be continued from, bit by bit.

    manifest.json, manifest.previous.json     what there is, with SHA-256 of every file; the last two versions
    state-N.npz                               everything the next transition needs
    draws-N.npz                               draws N and on, written once each

Every file appears whole or not at all. No pickle: arrays only, and the user brings the energy's code.
"""

import dataclasses
import errno
import importlib.metadata
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from ebm_ppl._checkpoints import (
    has_versions,
    make_directory,
    newest,
    read_arrays,
    read_version,
    write_arrays,
    write_version,
)
from ebm_ppl.errors import CheckpointError

FORMAT_VERSION = 1
KIND = "ebm_ppl.sample"
MIN_SECONDS = 1.0  # between two saves: keeps the price of fsync below two per cent
VERSIONS = ("ebm_ppl", "jax", "blackjax", "numpy")

type Piece = tuple[np.ndarray, dict[str, np.ndarray]]
"""Positions and statistics of some draws, `(draw, chain, ...)`."""


def library_versions() -> dict[str, str]:
    """Versions on which bit-exact continuation depends."""
    return {name: importlib.metadata.version(name) for name in VERSIONS}


@dataclasses.dataclass
class Checkpoint:
    """Where a run saves itself.

    Args:
        directory: created if needed.
        fingerprint: what the run is: settings, key, kernel, energy; JSON-able. Resuming demands the same.
    """

    directory: pathlib.Path
    fingerprint: dict[str, Any]
    saved_draws: int = 0
    files: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    last: float = dataclasses.field(default_factory=time.monotonic)
    store: dict[str, Any] | None = None  # where the draws are instead, when the run streams them to disk

    @property
    def due(self) -> bool:
        """Whether enough work has been done since the last save."""
        return time.monotonic() - self.last >= MIN_SECONDS

    def create(self) -> None:
        """Make the directory; one that already holds a run is not touched."""
        make_directory(self.directory)
        if has_versions(self.directory):
            message = "a checkpoint is there already; continue it with ebm.resume(path, energy) or choose another path"
            raise CheckpointError(errno.EEXIST, message, str(self.directory))

    def save(self, chains: Any, warmed: int, warm: bool, pieces: list[Piece]) -> None:  # noqa: FBT001
        """Write the draws not yet written, then the state, then the manifest that makes both count."""
        self._save_draws(pieces)
        drawn = self.saved_draws if self.store is None else self.store["drawn"]
        name = f"state-{warmed + drawn:012d}-{int(warm)}.npz"
        leaves = jax.tree.leaves(chains)
        state = write_arrays(self.directory, name, {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves)})
        manifest = {
            "format": FORMAT_VERSION,
            "kind": KIND,
            "fingerprint": self.fingerprint,
            "warmed": warmed,
            "warm": warm,
            "state": state,
            "draws": self.files,
            "store": self.store,
        }
        write_version(self.directory, manifest)
        self.last = time.monotonic()

    def _save_draws(self, pieces: list[Piece]) -> None:
        total = sum(len(positions) for positions, _ in pieces)
        if total == self.saved_draws:
            return
        fresh, skip = [], self.saved_draws
        for piece in pieces:
            length = len(piece[0])
            if skip < length:
                fresh.append(jax.tree.map(lambda rows, n=skip: rows[n:], piece))
            skip = max(0, skip - length)
        positions, stats = jax.tree.map(lambda *parts: np.concatenate(parts), *fresh)
        arrays = {"positions": positions} | {f"stats/{name}": values for name, values in stats.items()}
        self.files.append(write_arrays(self.directory, f"draws-{self.saved_draws:012d}.npz", arrays))
        self.saved_draws = total


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a checkpoint directory holds, verified."""

    manifest: dict[str, Any]
    leaves: list[np.ndarray]
    pieces: list[Piece]


def load_checkpoint(directory: str | os.PathLike[str]) -> Saved:
    """Read and verify the newest usable version; the previous one, with a warning, where the newest is damaged.

    Raises:
        CheckpointError: there is none, or neither version is whole. Nothing is half-loaded.
    """
    directory = pathlib.Path(directory)
    if not has_versions(directory):
        raise CheckpointError(errno.ENOENT, "no checkpoint here (no manifest.json)", str(directory))
    return newest(lambda name: _load(directory, name), stacklevel=3)


def _load(directory: pathlib.Path, name: str) -> Saved:
    manifest = read_version(directory, name, KIND, FORMAT_VERSION)
    state = read_arrays(directory, manifest["state"])
    leaves = [state[key] for key in sorted(state)]
    pieces = []
    for entry in manifest["draws"]:
        arrays = read_arrays(directory, entry)
        stats = {key.removeprefix("stats/"): value for key, value in arrays.items() if key.startswith("stats/")}
        pieces.append((arrays["positions"], stats))
    return Saved(manifest, leaves, pieces)
