"""A directory that holds the last two versions of a growing result, whole or not at all.

    manifest.json, manifest.previous.json     what there is, with SHA-256 of every file; the last two versions
    state-*.npz                               what a version needs to go on; those of older versions are removed
    *.npz                                     what has been added since, written once each

No pickle: arrays only.
"""

import io
import json
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ebm_ppl._files import DAMAGE, atomic_write, read_file, sha256
from ebm_ppl.errors import CheckpointError

MANIFEST, PREVIOUS = "manifest.json", "manifest.previous.json"


def make_directory(directory: pathlib.Path) -> None:
    """`directory`, created if needed; a `CheckpointError` where it cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(error.errno, f"cannot create: {error.strerror}", str(directory)) from error


def has_versions(directory: pathlib.Path) -> bool:
    """Whether something was saved there."""
    return any((directory / name).exists() for name in (MANIFEST, PREVIOUS))


def write_arrays(directory: pathlib.Path, name: str, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Write one file of arrays; what a manifest says of it."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    atomic_write(directory / name, content, overwrite=True)
    return {"file": name, "sha256": sha256(content)}


def read_arrays(directory: pathlib.Path, entry: dict[str, str]) -> dict[str, np.ndarray]:
    """The arrays of one file, after its checksum."""
    path = directory / pathlib.Path(entry["file"]).name  # never outside the directory
    content = read_file(path)
    if sha256(content) != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its checksum does not match.")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def write_version(directory: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Make `manifest` the current version, the current one the previous, and forget the states of older ones."""
    current = directory / MANIFEST
    if current.exists():
        atomic_write(directory / PREVIOUS, read_file(current), overwrite=True)
    text = json.dumps(manifest, sort_keys=True)
    atomic_write(current, json.dumps({"manifest": text, "sha256": sha256(text.encode())}).encode(), overwrite=True)
    _forget_old_states(directory)


def read_version(directory: pathlib.Path, name: str, kind: str, format_version: int) -> dict[str, Any]:
    """One manifest, verified.

    Raises:
        CheckpointError: it is missing, damaged, or of something else.
    """
    path = directory / name
    content = read_file(path)
    try:
        outer = json.loads(content)
        text = outer["manifest"]
        if sha256(text.encode()) != outer["sha256"]:
            raise ValueError("its checksum does not match")
        manifest = json.loads(text)
        if manifest["kind"] != kind or manifest["format"] != format_version:
            raise ValueError(f"it holds {manifest['kind']!r}, format {manifest['format']!r}")
    except DAMAGE as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return manifest


def newest[T](load: Callable[[str], T], *, stacklevel: int) -> T:
    """`load(name of a manifest)` of the newest version that is whole; a warning where that is the previous one.

    Raises:
        CheckpointError: neither version is whole. Nothing is half-loaded.
    """
    try:
        return load(MANIFEST)
    except CheckpointError as error:
        try:
            saved = load(PREVIOUS)
        except CheckpointError:
            raise error from None
        warnings.warn(f"{error}; going on from the checkpoint before it.", UserWarning, stacklevel=stacklevel + 1)
        return saved


def _forget_old_states(directory: pathlib.Path) -> None:
    """Keep the states that the last two manifests name; all of them where one cannot be read."""
    kept = set()
    for name in (MANIFEST, PREVIOUS):
        path = directory / name
        if path.exists():
            try:
                kept.add(json.loads(json.loads(read_file(path))["manifest"])["state"]["file"])
            except DAMAGE:
                return
    for path in directory.glob("state-*.npz"):
        if path.name not in kept:
            path.unlink()
