"""Draws on disk while they are made: a directory in zarr's format (version 3), written with bounded memory.

    draws.zarr/posterior/x          (chain, draw, *event)
    draws.zarr/sample_stats/NAME    (chain, draw)
    draws.zarr/warmup/scale         (chain, *event)

Every array is one uncompressed file (a zarr *shard*) whose bytes are the array in C order, followed by the table that
zarr readers find their chunks by. So a piece of draws is a few plain writes, and the array opens as a memory map.
Until the run ends the arrays have length zero: a store of a killed run never passes for a finished one.
"""

import dataclasses
import errno
import hashlib
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from ebm_ppl._files import DAMAGE, atomic_write, file_errors, read_file, sha256
from ebm_ppl.errors import CheckpointError

FORMAT_VERSION = 1
POSITIONS, STATS, SCALE = "posterior/x", "sample_stats/", "warmup/scale"
CHUNK_BYTES = 2**20  # of one chain: what a zarr reader must read at least
MAX_BLOCKS = 4096  # checksums of a store: each is of this part of the draws, or of one chunk
READ_BYTES = 2**25  # how much is read at once when checksums are verified


@dataclasses.dataclass
class DrawStore:
    """A growing store; `append` writes, `sync` makes it survive a crash, `close` makes it readable.

    Args:
        path: the directory.
        num_samples: draws of each chain when the run is complete.
        drawn: draws of each chain so far.
        layout: name -> shape of the whole array in its file (padded to whole chunks) and dtype, as JSON.
        blocks: SHA-256 of every complete block of draws.
    """

    path: pathlib.Path
    num_samples: int
    drawn: int = 0
    layout: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    blocks: list[str] = dataclasses.field(default_factory=list)
    _hashers: dict[str, Any] = dataclasses.field(default_factory=dict)

    def create(self) -> None:
        """Make the directory; one that is there already is not touched."""
        if self.path.exists():
            message = "something is there already; choose another path, or read it with ebm.Draws.load(path)"
            raise CheckpointError(errno.EEXIST, message, str(self.path))
        with file_errors("create", self.path):
            self.path.mkdir(parents=True)
        self._write_group("", {"ebm_ppl": {"complete": False}})

    def append(self, positions: np.ndarray, stats: dict[str, np.ndarray]) -> None:
        """Write draws, given as `(draw, chain, ...)`."""
        arrays = {POSITIONS: positions} | {STATS + name: values for name, values in stats.items()}
        if not self.layout:
            self._allocate(arrays)
        for name, rows in arrays.items():
            row_bytes = math.prod(rows.shape[2:]) * rows.dtype.itemsize
            with file_errors("write", self._file(name)), open(self._file(name), "r+b") as file:
                for chain in range(rows.shape[1]):
                    file.seek((chain * self._padded + self.drawn) * row_bytes)
                    file.write(np.ascontiguousarray(rows[:, chain], self.layout[name]["dtype"]).data)
        self._hash(arrays)
        self.drawn += len(positions)

    def sync(self) -> None:
        """Flush the draws to the disk."""
        for name in self.layout:
            with file_errors("write", self._file(name)), open(self._file(name), "r+b") as file:
                os.fsync(file.fileno())

    def record(self) -> dict[str, Any]:
        """What `reopen` needs to go on from here, as JSON."""
        return {
            "path": str(self.path),
            "num_samples": self.num_samples,
            "drawn": self.drawn,
            "layout": self.layout,
            "blocks": self.blocks + [_digest(self._hashers)] * bool(self._hashers),
        }

    @classmethod
    def reopen(cls, record: dict[str, Any]) -> "DrawStore":
        """The store at an earlier point: what was written after it is overwritten. Verifies every checksum."""
        store = cls(pathlib.Path(record["path"]), record["num_samples"], layout=record["layout"])
        for name in store.layout:
            _check_size(store._file(name), store.layout[name])
        arrays = {name: _Rows(store._file(name), entry) for name, entry in store.layout.items()}
        while store.drawn < record["drawn"]:
            count = min(record["drawn"] - store.drawn, store._block, _rows_at_once(store.layout))
            rows = {
                name: np.swapaxes(array[:, store.drawn : store.drawn + count], 0, 1) for name, array in arrays.items()
            }
            store._hash(rows)
            store.drawn += count
        if store.record()["blocks"] != record["blocks"]:
            raise CheckpointError(f"{store.path} is damaged: its draws do not match their checksums.")
        return store

    def arrays(self) -> tuple["_Rows", dict[str, "_Rows"]]:
        """Positions and statistics as `(chain, draw, ...)`, read piece by piece where they are indexed."""
        rows = {name: _Rows(self._file(name), entry, self.drawn) for name, entry in self.layout.items()}
        return rows.pop(POSITIONS), {name.removeprefix(STATS): values for name, values in rows.items()}

    def close(self, facts: dict[str, Any], scale: np.ndarray) -> None:
        """Give the arrays their length and the store what is known about the run."""
        self.sync()
        for group in ("posterior", "sample_stats", "warmup"):
            self._write_group(group, {})
        for name, entry in self.layout.items():
            self._write_array(name, [entry["shape"][0], self.drawn, *entry["shape"][2:]])
        self._write_small(SCALE, scale, ["chain", *_event_dims(scale.shape[1:])])
        for group in ("posterior", "sample_stats"):
            self._write_small(f"{group}/chain", np.arange(len(scale)), ["chain"])
            self._write_small(f"{group}/draw", np.arange(self.drawn), ["draw"])
        little = scale.astype(scale.dtype.newbyteorder("<"))
        known = {"format": FORMAT_VERSION, "scale": [little.dtype.str, sha256(little.tobytes()), list(little.shape)]}
        text = json.dumps(known | facts | {"record": self.record() | {"path": ""}}, sort_keys=True)
        self._write_group("", {"ebm_ppl": {"complete": True, "facts": text, "sha256": sha256(text.encode())}})

    def maps(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Positions and statistics as read-only memory maps: nothing is read before it is used."""
        found = {name: _map(self._file(name), entry)[:, : self.drawn] for name, entry in self.layout.items()}
        return found.pop(POSITIONS), {name.removeprefix(STATS): values for name, values in found.items()}

    @property
    def _padded(self) -> int:
        return self.layout[POSITIONS]["shape"][1]

    @property
    def _chunk(self) -> int:
        return self.layout[POSITIONS]["chunk"]

    @property
    def _block(self) -> int:
        """Draws per checksum."""
        return max(self._chunk, math.ceil(self._padded / MAX_BLOCKS))

    def _file(self, name: str) -> pathlib.Path:
        return self.path.joinpath(name, "c", *["0"] * len(self.layout[name]["shape"]))

    def _allocate(self, arrays: dict[str, np.ndarray]) -> None:
        """Files of their final size (holes cost no disk) with zarr's table of chunks at the end."""
        positions = arrays[POSITIONS]
        if positions.dtype not in (np.float16, np.float32, np.float64):
            raise ValueError(f"`store` holds float16, float32 or float64 positions; got {positions.dtype}.")
        row_bytes = math.prod(positions.shape[2:]) * positions.dtype.itemsize
        chunk = min(self.num_samples, max(1, CHUNK_BYTES // row_bytes))
        padded = math.ceil(self.num_samples / chunk) * chunk
        for name, rows in arrays.items():
            shape = [rows.shape[1], padded, *rows.shape[2:]]
            entry = {"shape": shape, "dtype": rows.dtype.newbyteorder("<").str, "chunk": chunk}
            self.layout[name] = entry
            size = math.prod([chunk, *shape[2:]]) * rows.dtype.itemsize
            count = shape[0] * padded // chunk
            table = np.stack([np.arange(count) * size, np.full(count, size)], axis=1).astype("<u8")
            with file_errors("write", self._file(name)):
                self._file(name).parent.mkdir(parents=True, exist_ok=True)
                with open(self._file(name), "wb") as file:
                    file.seek(count * size)
                    file.write(table.tobytes())
            self._write_array(name, [shape[0], 0, *shape[2:]])

    def _hash(self, arrays: dict[str, np.ndarray]) -> None:
        """Checksums of rows `(draw, chain, ...)`, which do not depend on the pieces they come in."""
        first, total = self.drawn, self.drawn + len(arrays[POSITIONS])
        while first < total:
            count = min(total, (first // self._block + 1) * self._block) - first
            if not self._hashers:
                self._hashers = {name: hashlib.sha256() for name in arrays}
            for name, rows in arrays.items():
                self._hashers[name].update(np.ascontiguousarray(rows[first - self.drawn :][:count]).data)
            first += count
            if first % self._block == 0:
                self.blocks.append(_digest(self._hashers))
                self._hashers = {}

    def _write_group(self, name: str, attributes: dict[str, Any]) -> None:
        self._write_json(name, {"zarr_format": 3, "node_type": "group", "attributes": attributes})

    def _write_array(self, name: str, shape: list[int]) -> None:
        entry = self.layout[name]
        whole, plain = entry["shape"], _bytes_codec(np.dtype(entry["dtype"]))
        codec = {
            "chunk_shape": [1, entry["chunk"], *whole[2:]],
            "codecs": [plain],
            "index_codecs": [_bytes_codec(np.dtype("<u8"))],
            "index_location": "end",
        }
        dims = ["chain", "draw", *_event_dims(whole[2:])]
        sharded = {"name": "sharding_indexed", "configuration": codec}
        self._write_json(name, _array_metadata(shape, np.dtype(entry["dtype"]), whole, sharded, dims))

    def _write_small(self, name: str, values: np.ndarray, dims: list[str]) -> None:
        values = values.astype(values.dtype.newbyteorder("<"))
        shape = [max(1, length) for length in values.shape]
        plain = _bytes_codec(values.dtype)
        with file_errors("write", self.path / name):
            self.path.joinpath(name, "c", *["0"] * (values.ndim - 1)).mkdir(parents=True, exist_ok=True)
        if values.size:
            atomic_write(self.path.joinpath(name, "c", *["0"] * values.ndim), values.tobytes(), overwrite=True)
        self._write_json(name, _array_metadata(list(values.shape), values.dtype, shape, plain, dims))

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        with file_errors("write", self.path / name):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, allow_nan=False)
        atomic_write(self.path / name / "zarr.json", text.encode(), overwrite=True)


class _Rows:
    """An array in a file, indexed by `chain` or `chain(s), slice of draws`.

    Read, not mapped: the system maps far more of a file than is looked at, and all of it counts as memory in use.
    """

    def __init__(self, file: pathlib.Path, entry: dict[str, Any], drawn: int | None = None) -> None:
        self._file, self._entry = file, entry
        self.shape = (entry["shape"][0], entry["shape"][1] if drawn is None else drawn, *entry["shape"][2:])

    def __getitem__(self, index: Any) -> np.ndarray:
        chains, draws = index if isinstance(index, tuple) else (index, slice(None))
        start, stop, step = draws.indices(self.shape[1])
        if isinstance(chains, int):
            return self._read(chains, start, stop, step)
        return np.stack([self._read(c, start, stop, step) for c in range(*chains.indices(self.shape[0]))])

    def _read(self, chain: int, start: int, stop: int, step: int) -> np.ndarray:
        dtype, event_shape = np.dtype(self._entry["dtype"]), self.shape[2:]
        size = math.prod(event_shape)
        first, count = chain * self._entry["shape"][1], max(0, stop - start)
        pieces = [(start, count)] if step == 1 else [(draw, 1) for draw in range(start, stop, step)]
        with file_errors("read", self._file), open(self._file, "rb") as file:
            found = []
            for draw, length in pieces:
                file.seek((first + draw) * size * dtype.itemsize)
                found.append(np.fromfile(file, dtype, length * size).reshape(length, *event_shape))
        return np.concatenate(found) if len(found) != 1 else found[0]


def load_store(path: pathlib.Path) -> tuple[DrawStore, dict[str, Any], np.ndarray]:
    """A finished store, every byte of it verified, with the facts given to `close` and the scale.

    Raises:
        CheckpointError: it is not one of ours, not finished, or damaged.
    """
    try:
        found = json.loads(read_file(path / "zarr.json"))["attributes"]["ebm_ppl"]
        if not found["complete"]:
            raise CheckpointError(
                f"{path} is unfinished: its run was killed, or is still under way; a run with `checkpoint=` can be "
                "finished by ebm.resume."
            )
        facts = json.loads(found["facts"])
        if sha256(found["facts"].encode()) != found["sha256"] or facts["format"] != FORMAT_VERSION:
            raise ValueError("its facts do not match their checksum, or it has another format")
        store = DrawStore.reopen(facts["record"] | {"path": str(path)})
        dtype, checksum, shape = facts["scale"]
        scale = read_file(path.joinpath(SCALE, "c", *["0"] * len(shape)))
        if sha256(scale) != checksum:
            raise ValueError("the scale does not match its checksum")
        values = np.frombuffer(scale, np.dtype(dtype)).reshape(shape)
    except CheckpointError:
        raise
    except DAMAGE as error:
        raise CheckpointError(f"{path} is damaged or was not written by `ebm.sample(store=...)`: {error}") from error
    return store, facts, values


def _digest(hashers: dict[str, Any]) -> str:
    return sha256("".join(f"{name}:{hashers[name].hexdigest()};" for name in sorted(hashers)).encode())


def _rows_at_once(layout: dict[str, dict[str, Any]]) -> int:
    whole = layout[POSITIONS]["shape"]
    return max(1, READ_BYTES // (8 * whole[0] * math.prod(whole[2:])))


def _map(file: pathlib.Path, entry: dict[str, Any]) -> np.ndarray:
    return np.memmap(file, np.dtype(entry["dtype"]), "r", shape=tuple(entry["shape"]))


def _check_size(file: pathlib.Path, entry: dict[str, Any]) -> None:
    # A map of a file that is too short would kill the process at the first look behind its end.
    count = entry["shape"][0] * entry["shape"][1] // entry["chunk"]
    expected = math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize + 16 * count
    with file_errors("read", file):
        size = file.stat().st_size
    if size != expected:
        raise CheckpointError(f"{file} is damaged: it has {size} bytes; expected {expected}.")


def _event_dims(event_shape: Any) -> list[str]:
    return [f"x_dim_{axis}" for axis in range(len(event_shape))]


def _bytes_codec(dtype: np.dtype) -> dict[str, Any]:
    return {"name": "bytes"} | ({"configuration": {"endian": "little"}} if dtype.itemsize > 1 else {})


def _array_metadata(
    shape: list[int], dtype: np.dtype, chunk: list[int], codec: dict[str, Any], dims: list[str]
) -> dict[str, Any]:
    fill = {"f": "NaN", "b": False}.get(dtype.kind, 0)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [codec],
        "dimension_names": dims,
        "attributes": {},
    }
