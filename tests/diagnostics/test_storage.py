"""NetCDF files are whole or absent, and a damaged one is refused before the C parser sees it."""

import errno
import os

import arviz as az
import numpy as np
import pytest
import xarray as xr

import ebm_ppl as ebm
from ebm_ppl.diagnostics import load_datatree, save_datatree
from ebm_ppl.errors import CheckpointError
from tests.diagnostics.test_to_datatree import make_draws


@pytest.fixture
def tree():
    return ebm.to_datatree(make_draws(), dims=["axis"], coords={"axis": ["left", "right"]})


def test_round_trip_keeps_values_types_and_attributes(tree, tmp_path):
    path = save_datatree(tree, tmp_path / "draws.nc")
    loaded = load_datatree(path)
    assert loaded.identical(tree)
    assert loaded["sample_stats"]["diverging"].dtype == bool
    assert loaded["posterior"]["x"].dtype == np.float32
    os.unlink(path)  # the tree is in memory, the file closed
    assert float(loaded["posterior"]["x"].mean()) == float(tree["posterior"]["x"].mean())


def test_other_programs_read_the_file(tree, tmp_path):
    path = save_datatree(tree, tmp_path / "draws.nc")
    with az.from_netcdf(path) as loaded:
        assert loaded["posterior"]["x"].equals(tree["posterior"]["x"])


def test_scalars_empty_arrays_and_text_can_be_stored(tmp_path):
    odd = xr.DataTree.from_dict({"a": xr.Dataset({"s": 1.5, "e": ("k", np.zeros(0)), "t": ("m", ["x", "yy"])})})
    assert load_datatree(save_datatree(odd, tmp_path / "odd.nc")).equals(odd)


def test_numeric_variables_carry_checksums_of_their_own(tree, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(save_datatree(tree, tmp_path / "draws.nc")) as file:
        assert file["posterior/x"].fletcher32
        assert file["sample_stats/lp"].fletcher32


def test_no_overwriting_unless_told(tree, tmp_path):
    path = save_datatree(tree, tmp_path / "draws.nc")
    with pytest.raises(CheckpointError) as caught:
        save_datatree(tree, path)
    assert caught.value.errno == errno.EEXIST
    save_datatree(tree, path, overwrite=True)


def test_a_full_disk_leaves_the_old_file_and_the_tree(tree, tmp_path, monkeypatch):
    path = save_datatree(tree, tmp_path / "draws.nc")
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        save_datatree(tree, path, overwrite=True)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["draws.nc"]
    assert float(tree["posterior"]["x"].std()) > 0


def test_every_flipped_byte_and_every_truncation_is_refused(tmp_path):
    path = save_datatree(ebm.to_datatree(np.arange(40.0).reshape(2, 20)), tmp_path / "draws.nc")
    content = path.read_bytes()
    damaged = tmp_path / "damaged.nc"
    for position in range(0, len(content), 97):
        changed = bytearray(content)
        changed[position] ^= 0x10
        damaged.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"damaged|does not end with a checksum"):
            load_datatree(damaged)
    for length in np.linspace(0, len(content) - 1, 50).astype(int):
        damaged.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            load_datatree(damaged)


def test_files_of_others_only_on_request(tmp_path):
    foreign = tmp_path / "foreign.nc"
    xr.DataTree.from_dict({"posterior": xr.Dataset({"x": (("chain", "draw"), np.ones((2, 3)))})}).to_netcdf(foreign)
    with pytest.raises(CheckpointError, match="verify=False"):
        load_datatree(foreign)
    assert float(load_datatree(foreign, verify=False)["posterior"]["x"].sum()) == 6.0
    text = tmp_path / "text.nc"
    text.write_text("not a NetCDF file")
    with pytest.raises(CheckpointError, match="not a readable NetCDF-4 file"):
        load_datatree(text, verify=False)
    with pytest.raises(CheckpointError) as caught:
        load_datatree(tmp_path / "absent.nc")
    assert caught.value.errno == errno.ENOENT


def test_only_trees_are_saved(tmp_path):
    with pytest.raises(TypeError, match="DataTree"):
        save_datatree(np.zeros((2, 3)), tmp_path / "draws.nc")
