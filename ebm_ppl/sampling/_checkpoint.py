"""Checkpoints of a run: a directory of checksummed files that a killed run can be continued from, bit by bit.

    manifest.json, manifest.previous.json     what there is, with SHA-256 of every file; the last two versions
    state-N.npz                               everything the next transition needs
    draws-N.npz                               draws N and on, written once each

Every file appears whole or not at all. No pickle: arrays only, and the user brings the energy's code.
"""

import dataclasses
import errno
import importlib.metadata
import io
import json
import os
import pathlib
import time
import warnings
from typing import Any

import jax
import numpy as np

from ebm_ppl._files import DAMAGE, atomic_write, read_file, sha256
from ebm_ppl.errors import CheckpointError

FORMAT_VERSION = 1
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
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(error.errno, f"cannot create: {error.strerror}", str(self.directory)) from error
        if (self.directory / "manifest.json").exists():
            message = "a checkpoint is there already; continue it with ebm.resume(path, energy) or choose another path"
            raise CheckpointError(errno.EEXIST, message, str(self.directory))

    def save(self, chains: Any, warmed: int, warm: bool, pieces: list[Piece]) -> None:  # noqa: FBT001
        """Write the draws not yet written, then the state, then the manifest that makes both count."""
        self._save_draws(pieces)
        drawn = self.saved_draws if self.store is None else self.store["drawn"]
        name = f"state-{warmed + drawn:012d}-{int(warm)}.npz"
        leaves = jax.tree.leaves(chains)
        state = self._write(name, {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves)})
        manifest = {
            "format": FORMAT_VERSION,
            "kind": "ebm_ppl.sample",
            "fingerprint": self.fingerprint,
            "warmed": warmed,
            "warm": warm,
            "state": state,
            "draws": self.files,
            "store": self.store,
        }
        current, previous = self.directory / "manifest.json", self.directory / "manifest.previous.json"
        if current.exists():
            atomic_write(previous, read_file(current), overwrite=True)
        text = json.dumps(manifest, sort_keys=True)
        atomic_write(current, json.dumps({"manifest": text, "sha256": sha256(text.encode())}).encode(), overwrite=True)
        self._forget_old_states()
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
        self.files.append(self._write(f"draws-{self.saved_draws:012d}.npz", arrays))
        self.saved_draws = total

    def _write(self, name: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays, allow_pickle=False)
        content = buffer.getvalue()
        atomic_write(self.directory / name, content, overwrite=True)
        return {"file": name, "sha256": sha256(content)}

    def _forget_old_states(self) -> None:
        """Keep the states that the last two manifests name."""
        kept = set()
        for name in ("manifest.json", "manifest.previous.json"):
            path = self.directory / name
            if path.exists():
                kept.add(json.loads(json.loads(path.read_bytes())["manifest"])["state"]["file"])
        for path in self.directory.glob("state-*.npz"):
            if path.name not in kept:
                path.unlink()


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
    if not (directory / "manifest.json").exists() and not (directory / "manifest.previous.json").exists():
        raise CheckpointError(errno.ENOENT, "no checkpoint here (no manifest.json)", str(directory))
    try:
        return _load(directory, "manifest.json")
    except CheckpointError as error:
        try:
            saved = _load(directory, "manifest.previous.json")
        except CheckpointError:
            raise error from None
        warnings.warn(f"{error}; going on from the checkpoint before it.", UserWarning, stacklevel=3)
        return saved


def _load(directory: pathlib.Path, name: str) -> Saved:
    path = directory / name
    content = read_file(path)
    try:
        outer = json.loads(content)
        text = outer["manifest"]
        if sha256(text.encode()) != outer["sha256"]:
            raise ValueError("its checksum does not match")
        manifest = json.loads(text)
        if manifest["kind"] != "ebm_ppl.sample" or manifest["format"] != FORMAT_VERSION:
            raise ValueError(f"it holds {manifest['kind']!r}, format {manifest['format']!r}")
    except DAMAGE as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    state = _read_arrays(directory, manifest["state"])
    leaves = [state[key] for key in sorted(state)]
    pieces = []
    for entry in manifest["draws"]:
        arrays = _read_arrays(directory, entry)
        stats = {key.removeprefix("stats/"): value for key, value in arrays.items() if key.startswith("stats/")}
        pieces.append((arrays["positions"], stats))
    return Saved(manifest, leaves, pieces)


def _read_arrays(directory: pathlib.Path, entry: dict[str, str]) -> dict[str, np.ndarray]:
    path = directory / pathlib.Path(entry["file"]).name  # never outside the directory
    content = read_file(path)
    if sha256(content) != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its checksum does not match.")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
