"""The result of sampling: draws, statistics, and whether they can be vouched for."""

import dataclasses
import html
import io
import json
import os
import pathlib
from typing import Any

import equinox as eqx
import numpy as np

from ebm_ppl import kernels
from ebm_ppl._files import DAMAGE, atomic_write, read_file, sha256
from ebm_ppl.energies._coordinates import unpack
from ebm_ppl.errors import CheckpointError, Problem
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.sampling._store import load_store
from ebm_ppl.sampling._tempering_report import Tempering

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """Draws of one energy by several chains, on the host, with what is needed to judge them.

    Args:
        positions: draws, shape `(chain, draw, *event_shape)`, a dictionary of such arrays for events with named parts;
            of a run with `store=`, a memory map of the file.
        stats: one `(chain, draw)` array per statistic, under ArviZ names: `lp` (= -E, nats), `acceptance_rate`,
            `step_size`, `diverging`, `n_steps`, `nonfinite_proposal`, ...
        kernel: the kernel as tuned; its `step_size` is the mean over chains.
        problems: every reason not to trust the draws; empty when there is none.
        settings: what was asked for, as JSON-able values.
        scale: the scale of each real coordinate learnt in warm-up, `(chain, *event_shape)`, or `(chain, coordinate)`
            for an energy with a support or named parts.
        tempering: ladder, swaps, round trips and log Z of a `parallel_tempering` run; None otherwise.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))
        >>> draws = ebm.sample(energy, ebm.MALA(), key=jax.random.key(1), progress_bar=False)
        >>> draws
        Draws: 4 chains x 1000 draws of shape (2,), MALA, ok
        >>> draws.ok, draws.problems
        (True, ())
    """

    positions: np.ndarray | dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    kernel: AbstractKernel
    problems: tuple[Problem, ...]
    settings: dict[str, Any]
    scale: np.ndarray
    tempering: Tempering | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the draws. Convergence is judged by `ebm.diagnose`."""
        return not self.problems

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return _first(self.positions).shape[0]

    @property
    def num_draws(self) -> int:
        """Number of draws of each chain."""
        return _first(self.positions).shape[1]

    @property
    def event_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """Shape of one draw, or the shapes of its named parts."""
        if isinstance(self.positions, dict):
            return {name: part.shape[2:] for name, part in self.positions.items()}
        return self.positions.shape[2:]

    def __repr__(self) -> str:
        """Size, kernel and verdict; one line per problem."""
        verdict = "ok" if self.ok else f"NOT ok, {len(self.problems)} problem(s)"
        head = (
            f"Draws: {self.num_chains} chains x {self.num_draws} draws of shape {self.event_shape}, "
            f"{type(self.kernel).__name__}, {verdict}"
        )
        shown = [f"  {problem}" for problem in self.problems[:8]]
        if self.tempering is not None:
            shown.insert(0, f"  {self.tempering}")
        more = [f"  ... and {len(self.problems) - 8} more"] if len(self.problems) > 8 else []
        return "\n".join([head, *shown, *more])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> pathlib.Path:
        """Write everything to one checksummed `.npz` file, atomically; no pickle.

        Args:
            path: where to write.
            overwrite: whether an existing file may be replaced.

        Returns:
            The path written.

        Raises:
            CheckpointError: the file exists, the disk is full, ... (`errno` says which).
        """
        arrays = {"scale": self.scale}
        if isinstance(self.positions, dict):
            arrays |= {f"positions/{name}": part for name, part in self.positions.items()}
        else:
            arrays["positions"] = self.positions
        arrays |= {f"stats/{name}": values for name, values in self.stats.items()}
        arrays |= {f"kernel/{name}": np.asarray(value) for name, value in _kernel_fields(self.kernel).items()}
        if self.tempering is not None:
            arrays |= {f"tempering/{name}": np.asarray(value) for name, value in vars(self.tempering).items()}
        manifest = {
            "format": FORMAT_VERSION,
            "kind": "ebm_ppl.Draws",
            "kernel": type(self.kernel).__name__,
            "settings": self.settings,
            "parts": list(self.positions) if isinstance(self.positions, dict) else None,
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
            "sha256": {name: _fingerprint(values) for name, values in arrays.items()},
        }
        text = json.dumps(manifest, sort_keys=True).encode()
        arrays["manifest"] = np.frombuffer(text, np.uint8)
        arrays["manifest_sha256"] = np.frombuffer(sha256(text).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays, allow_pickle=False)
        return atomic_write(path, buffer.getvalue(), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, kernel: AbstractKernel | None = None) -> "Draws":
        """Read what `save`, or `ebm.sample(..., store=path)`, wrote, checking every checksum.

        Args:
            path: the file; or the store, whose arrays then are read-only memory maps.
            kernel: the kernel, where it is a class of your own or holds an energy (`EllipticalSlice`): those are not
                written.

        Returns:
            The draws, equal to those saved.

        Raises:
            CheckpointError: the file is missing, damaged, or not such a file. Nothing is half-loaded.
        """
        if pathlib.Path(path).is_dir():
            return _from_store(cls, pathlib.Path(path), kernel)
        manifest, arrays = _read(pathlib.Path(path))
        fields = _group(arrays, "kernel/")
        if kernel is None:
            kernel = _rebuilt(path, manifest["kernel"], {name: value.tolist() for name, value in fields.items()})
        problems = tuple(Problem(**problem) for problem in manifest["problems"])
        ladder: dict[str, Any] = {
            name: value.item() if value.ndim == 0 else value for name, value in _group(arrays, "tempering/").items()
        }
        parts = manifest["parts"]
        return cls(
            arrays["positions"] if parts is None else {name: arrays[f"positions/{name}"] for name in parts},
            _group(arrays, "stats/"),
            kernel,
            problems,
            manifest["settings"],
            arrays["scale"],
            Tempering(**ladder) if ladder else None,
        )


def _rebuilt(path: Any, name: str, fields: dict[str, Any]) -> AbstractKernel:
    """The recorded kernel, from its class and its numbers."""
    kernel_class = getattr(kernels, name, None)
    if kernel_class is None:
        raise CheckpointError(f"{path}: kernel {name!r} is not one of ebm_ppl's: pass `kernel=`.")
    try:
        return kernel_class(**fields)
    except TypeError as error:  # a field that holds an energy, and was not written
        raise CheckpointError(f"{path}: kernel {name!r} cannot be rebuilt from its numbers: pass `kernel=`.") from error


def _from_store(draws_class: type[Draws], path: pathlib.Path, kernel: AbstractKernel | None) -> Draws:
    store, facts, scale = load_store(path)
    fields = dict(facts["kernel"])
    name = fields.pop("class")
    kernel = _rebuilt(path, name, fields) if kernel is None else kernel
    problems = tuple(Problem(**problem) for problem in facts["problems"])
    packed, stats = store.maps()
    shapes = facts["settings"]["event_shape"]
    named = bool(shapes) and isinstance(shapes[0], list)
    positions = unpack({name: tuple(shape) for name, shape in shapes} if named else tuple(shapes), packed)
    return draws_class(positions, stats, kernel, problems, facts["settings"], scale)


def _first(positions: Any) -> np.ndarray:
    return next(iter(positions.values())) if isinstance(positions, dict) else positions


def _group(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _kernel_fields(kernel: AbstractKernel) -> dict[str, Any]:
    """Numbers and names; a field that is an energy has no place in a file."""
    fields = {field.name: getattr(kernel, field.name) for field in dataclasses.fields(kernel)}
    return {name: value for name, value in fields.items() if eqx.is_array_like(value) or isinstance(value, str)}


def _fingerprint(values: np.ndarray) -> str:
    header = f"{values.dtype.str}{values.shape}".encode()
    return sha256(header + np.ascontiguousarray(values).tobytes())


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    content = read_file(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        text = arrays.pop("manifest").tobytes()
        if arrays.pop("manifest_sha256").tobytes().decode() != sha256(text):
            raise ValueError("the manifest does not match its checksum")
        manifest = json.loads(text)
    except DAMAGE as error:
        raise CheckpointError(f"{path} is damaged or was not written by `Draws.save`: {error}") from error
    if manifest.get("kind") != "ebm_ppl.Draws" or manifest.get("format") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} holds {manifest.get('kind')!r}, format {manifest.get('format')!r}; expected Draws."
        )
    damaged = [name for name, values in arrays.items() if manifest["sha256"].get(name) != _fingerprint(values)]
    if damaged or set(manifest["sha256"]) != set(arrays):
        raise CheckpointError(f"{path} is damaged: {sorted(damaged) or 'arrays are missing'} do not match.")
    return manifest, arrays
