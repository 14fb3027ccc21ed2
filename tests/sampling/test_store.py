"""Draws streamed to disk: the same draws, in little memory, readable by others, never half."""

import contextlib
import errno
import json
import os
import pathlib
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl._progress import Interruption
from ebm_ppl.sampling import _driver, _pace, _problems, _store

SETTINGS = {"num_chains": 3, "num_warmup": 60, "num_samples": 100, "progress_bar": False}


def energy():
    return ebm.energies.Gaussian(jnp.zeros(2), jnp.diag(jnp.array([1.0, 4.0])))


@pytest.fixture
def small(monkeypatch):
    """Pieces, zarr's chunks, checksums and what is looked at at once all have different small lengths."""
    monkeypatch.setattr(_pace, "FIRST_CHUNK", 7)
    monkeypatch.setattr(_pace, "CHUNK_SECONDS", 1e-9)
    monkeypatch.setattr(_store, "CHUNK_BYTES", 11 * 8)
    monkeypatch.setattr(_store, "MAX_BLOCKS", 3)
    monkeypatch.setattr(_problems, "BLOCK_NUMBERS", 13)


def assert_same(draws, expected):
    assert draws.stats.keys() == expected.stats.keys()
    assert np.array_equal(draws.positions, expected.positions)
    assert all(np.array_equal(draws.stats[name], values) for name, values in expected.stats.items())
    assert {name: values.dtype for name, values in draws.stats.items()} == {
        name: values.dtype for name, values in expected.stats.items()
    }
    assert np.array_equal(draws.scale, expected.scale)
    assert (draws.kernel, draws.problems) == (expected.kernel, expected.problems)
    assert draws.settings | {"seconds": 0} == expected.settings | {"seconds": 0}


@pytest.fixture(scope="module")
def whole():
    return ebm.sample(energy(), key=jax.random.key(5), **SETTINGS)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A store of many chunks."""
    path = tmp_path_factory.mktemp("store") / "draws.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_store, "CHUNK_BYTES", 11 * 8)
        return path, ebm.sample(energy(), key=jax.random.key(5), store=path, **SETTINGS)


def test_streamed_draws_are_the_draws(whole, small, tmp_path):
    draws = ebm.sample(energy(), key=jax.random.key(5), store=tmp_path / "draws.zarr", **SETTINGS)
    assert_same(draws, whole)
    assert_same(ebm.Draws.load(tmp_path / "draws.zarr"), whole)


def test_the_arrays_are_memory_maps_also_in_a_datatree(stored, whole):
    _, draws = stored
    assert isinstance(draws.positions, np.memmap)
    tree = ebm.to_datatree(draws)
    assert np.shares_memory(tree["posterior"]["x"].values, draws.positions)
    assert np.array_equal(tree["posterior"]["x"], whole.positions)
    assert set(tree["sample_stats"].data_vars) == set(whole.stats)


def test_an_independent_reader_of_the_format_finds_the_same(stored, whole):
    """TensorStore; zarr-python was tried by hand."""
    tensorstore = pytest.importorskip("tensorstore")
    path, _ = stored

    def read(name):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / name)}}
        return tensorstore.open(spec, open=True, read=True).result()

    array = read("posterior/x")
    assert array.chunk_layout.read_chunk.shape == (1, 11, 2)
    assert [dimension.label for dimension in array.domain] == ["chain", "draw", "x_dim_0"]
    assert np.array_equal(array.read().result(), whole.positions)
    assert np.array_equal(array[1, 30:50:3].read().result(), whole.positions[1, 30:50:3])
    for name, values in whole.stats.items():
        found = read(f"sample_stats/{name}").read().result()
        assert found.dtype == values.dtype
        assert np.array_equal(found, values)
    assert np.array_equal(read("warmup/scale").read().result(), whole.scale)
    assert np.array_equal(read("posterior/draw").read().result(), np.arange(100))


def test_an_interrupted_store_has_the_draws_so_far(whole, small, tmp_path, monkeypatch):
    class Pressed(Interruption):
        asked = 0

        def __init__(self):
            pass

        @property
        def requested(self):
            self.asked += 1
            return self.asked > 70

    monkeypatch.setattr(_driver, "deferred_interrupt", lambda: contextlib.nullcontext(Pressed()))
    with pytest.warns(ebm.SamplingWarning, match="INTERRUPTED"):
        part = ebm.sample(energy(), key=jax.random.key(5), store=tmp_path / "draws.zarr", **SETTINGS)
    assert 0 < part.num_draws < 100
    assert np.array_equal(part.positions, whole.positions[:, : part.num_draws])
    assert_same(ebm.Draws.load(tmp_path / "draws.zarr"), part)
    shape = json.loads((tmp_path / "draws.zarr/posterior/x/zarr.json").read_text())["shape"]
    assert shape == [3, part.num_draws, 2]


def test_what_is_there_already_is_refused_before_anything_runs(stored):
    path, _ = stored
    with pytest.raises(ebm.CheckpointError, match="already"):
        ebm.sample(energy(), key=jax.random.key(5), store=path, **SETTINGS)


def test_a_disk_that_takes_no_more_is_a_named_error(tmp_path):
    store = _store.DrawStore(tmp_path / "draws.zarr", 1000)
    store.create()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ebm.CheckpointError) as caught:
            store.append(np.zeros((5, 2, 300), np.float32), {"lp": np.zeros((5, 2), np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG


def test_damaged_and_unfinished_stores_are_refused(stored, whole, tmp_path):
    path, _ = stored
    for victim in ("posterior/x/c/0/0/0", "sample_stats/lp/c/0/0", "warmup/scale/c/0/0", "zarr.json"):
        file = path / victim
        content = file.read_bytes()
        data = len(content) if victim == "zarr.json" else min(len(content), whole.positions.nbytes // 2)
        for position in range(0, data, max(1, data // 5)):
            file.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
            with pytest.raises(ebm.CheckpointError, match="damaged"):
                ebm.Draws.load(path)
        file.write_bytes(content[:-1])
        with pytest.raises(ebm.CheckpointError, match="damaged"):
            ebm.Draws.load(path)
        file.write_bytes(content)
    assert_same(ebm.Draws.load(path), whole)
    _store.DrawStore(tmp_path / "new.zarr", 10).create()
    with pytest.raises(ebm.CheckpointError, match="unfinished"):
        ebm.Draws.load(tmp_path / "new.zarr")


MEMORY = """
import resource, sys, time, jax, jax.numpy as jnp
import ebm_ppl as ebm
energy = ebm.energies.Gaussian(jnp.zeros(100), jnp.eye(100))
started = time.perf_counter()
draws = ebm.sample(energy, ebm.MALA(0.1), key=jax.random.key(0), num_chains=4, num_warmup=100, num_samples=250_000,
                   precondition="none", store=sys.argv[1], progress_bar=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert draws.positions.shape == (4, 250_000, 100)
assert abs(float((draws.positions[:, ::50] ** 2).mean()) - 1) < 0.05
print(peak / 1024, time.perf_counter() - started)
"""


@pytest.mark.slow
def test_a_million_draws_of_100_dimensions_need_little_memory(tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(pathlib.Path(ebm.__file__).parent.parent))
    command = [sys.executable, "-c", MEMORY, tmp_path / "draws.zarr"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    peak, seconds = map(float, run.stdout.split())
    chunk = 64  # MiB: what the driver sizes its chunks to
    assert peak < 1.5 * chunk + 500, (peak, seconds)
    assert (tmp_path / "draws.zarr/posterior/x/c/0/0/0").stat().st_size >= 400_000_000
