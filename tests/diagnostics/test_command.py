"""`python -m ebm_ppl diagnose`: what it prints and the exit code a script acts on."""

import json

import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.__main__ import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draws")
    good = np.random.default_rng(0).normal(size=(4, 500))
    bad = good.copy()
    bad[2] = bad[2, 0]
    ebm.diagnostics.save_datatree(ebm.to_datatree(good), folder / "good.nc")
    ebm.diagnostics.save_datatree(ebm.to_datatree(bad), folder / "bad.nc")
    ebm.to_datatree(good).to_netcdf(folder / "foreign.nc", engine="h5netcdf")
    (folder / "broken.nc").write_bytes((folder / "good.nc").read_bytes()[:-100])
    return folder


def command(*words):
    return main(["diagnose", *map(str, words)])


def test_good_draws_exit_with_0(files, capsys):
    assert command(files / "good.nc") == 0
    assert "verdict: ok" in capsys.readouterr().out


def test_bad_draws_exit_with_1_and_are_named(files, capsys):
    assert command(files / "bad.nc") == 1
    assert "STUCK_CHAIN (chain 2)" in capsys.readouterr().out
    assert command(files / "bad.nc", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert report["problems"][0]["chain"] == 2


def test_files_of_others_are_read_when_told(files, capsys):
    assert command(files / "foreign.nc") == 2
    assert "--unverified" in capsys.readouterr().err
    assert command(files / "foreign.nc", "--unverified") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [(["broken.nc"], "truncated"), (["missing.nc"], "missing.nc"), (["good.nc", "--group", "prior"], "prior")],
)
def test_what_cannot_be_judged_exits_with_2(files, capsys, words, message):
    assert command(files / words[0], *words[1:]) == 2
    assert message in capsys.readouterr().err
