"""Saving and loading draws: complete or refused, never half."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm


@pytest.fixture(scope="module")
def draws():
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    result = ebm.sample(
        energy, ebm.HMC(0.2, 3), key=jax.random.key(0), num_warmup=30, num_samples=20, num_chains=2, progress_bar=False
    )
    return dataclasses.replace(result, problems=(ebm.Problem("STUCK_CHAIN", "made up", chain=1, value=1.0),))


def test_round_trip(draws, tmp_path):
    loaded = ebm.Draws.load(draws.save(tmp_path / "draws.npz"))
    assert np.array_equal(loaded.positions, draws.positions)
    assert loaded.stats.keys() == draws.stats.keys()
    assert all(np.array_equal(loaded.stats[name], draws.stats[name]) for name in draws.stats)
    assert (loaded.kernel, loaded.problems, loaded.settings) == (draws.kernel, draws.problems, draws.settings)
    assert np.array_equal(loaded.scale, draws.scale)
    assert not loaded.ok


def test_an_existing_file_is_not_overwritten(draws, tmp_path):
    path = draws.save(tmp_path / "draws.npz")
    before = path.read_bytes()
    with pytest.raises(ebm.CheckpointError, match="exists"):
        draws.save(path)
    assert path.read_bytes() == before
    draws.save(path, overwrite=True)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ebm.CheckpointError):
        ebm.Draws.load(tmp_path / "nothing.npz")
    for content in (b"", b"text", b"PK\x03\x04"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ebm.CheckpointError, match="bad"):
            ebm.Draws.load(tmp_path / "bad")


def test_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "trap.npz", manifest=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ebm.CheckpointError):
        ebm.Draws.load(tmp_path / "trap.npz")


def test_every_flip_and_every_truncation_is_seen(draws, tmp_path):
    content = draws.save(tmp_path / "draws.npz").read_bytes()
    silent = []
    path = tmp_path / "damaged.npz"
    reference = ebm.Draws.load(tmp_path / "draws.npz")
    for position in range(0, len(content), 97):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        if _loads_something_else(path, reference):
            silent.append(position)
    for length in np.linspace(0, len(content) - 1, 50).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(ebm.CheckpointError):
            ebm.Draws.load(path)
    assert silent == []


def _loads_something_else(path, reference):
    """A flip in a field that zip does not use (a time stamp) may load, but only to the same draws."""
    try:
        loaded = ebm.Draws.load(path)
    except ebm.CheckpointError:
        return False
    same = np.array_equal(loaded.positions, reference.positions) and loaded.settings == reference.settings
    return not (same and all(np.array_equal(loaded.stats[name], reference.stats[name]) for name in reference.stats))


def test_a_manifest_that_does_not_match_is_refused(draws, tmp_path):
    path = draws.save(tmp_path / "draws.npz")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    arrays["positions"] = arrays["positions"] + np.float32(1)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ebm.CheckpointError, match="positions"):
        ebm.Draws.load(path)


def test_kernels_that_hold_an_energy_are_asked_for(tmp_path):
    base = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    kernel = ebm.kernels.EllipticalSlice(base)
    settings = {"key": jax.random.key(0), "num_warmup": 0, "num_samples": 5, "progress_bar": False}
    draws = ebm.sample(base, kernel, store=tmp_path / "draws.zarr", **settings)
    for path in (draws.save(tmp_path / "draws.npz"), tmp_path / "draws.zarr"):
        with pytest.raises(ebm.CheckpointError, match=r"EllipticalSlice.*pass `kernel=`"):
            ebm.Draws.load(path)
        again = ebm.Draws.load(path, kernel=kernel)
        assert np.array_equal(again.positions, draws.positions)


def test_kernels_with_arrays_and_names_come_back(tmp_path):
    kernel = ebm.kernels.AnnealedLangevin([0.5, 1.0], 0.1, over="inverse_temperature", num_steps=1)
    settings = {"num_warmup": 1, "num_samples": 5, "progress_bar": False}
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    ebm.sample(
        energy, kernel, key=jax.random.key(0), store=tmp_path / "draws.zarr", checkpoint=tmp_path / "run", **settings
    )
    again = ebm.Draws.load(tmp_path / "draws.zarr").kernel
    assert (again.over, again.levels.tolist()) == ("inverse_temperature", [0.5, 1.0])
    assert ebm.resume(tmp_path / "run", energy, progress_bar=False).num_draws == 5
