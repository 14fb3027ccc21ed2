"""A report reads well, prints as HTML and travels as JSON."""

import json

import numpy as np
import pytest

import ebm_ppl as ebm
from tests.diagnostics import chains


@pytest.fixture
def bad():
    draws = chains.independent(np.random.default_rng(0), 10, 500, 2)
    draws[3:] = draws[3:, :1]
    return ebm.diagnose(ebm.to_datatree(draws, var_name="<theta>"))


def test_repr_groups_chains_and_ends_with_a_verdict(bad):
    lines = repr(bad).splitlines()
    assert lines[0] == "Report on posterior: 10 chains x 500 draws, 2 parameters"
    assert lines[1].startswith("  STUCK_CHAIN (7 of 10 chains: 3, 4, 5, 6, 7, 8, 9): the chain never moved")
    assert lines[-1] == "  verdict: NOT ok (STUCK_CHAIN)"
    assert "ess_bulk 0 (<theta>[0])" in lines[-2]
    good = ebm.diagnose(chains.independent(np.random.default_rng(0)))
    assert repr(good).splitlines()[-1] == "  verdict: ok, no problems found"


def test_html_is_escaped(bad):
    text = bad._repr_html_()
    assert "<theta>" not in text
    assert "&lt;theta&gt;[0]" in text
    assert "<b>STUCK_CHAIN" in text


def test_json_fits_into_attributes(bad):
    draws = ebm.to_datatree(chains.one_nan(np.random.default_rng(0)))
    report = ebm.diagnose(draws)
    draws.attrs["diagnosis"] = report.to_json()
    content = json.loads(draws.attrs["diagnosis"], parse_constant=lambda name: pytest.fail(name))
    assert content["ok"] is False
    assert content["problems"][0]["code"] == "NONFINITE_DRAW"
    assert content["table"]["x"]["r_hat"] == "nan"
    assert (content["num_chains"], content["num_draws"], content["group"]) == (4, 1000, "posterior")


def test_reports_are_frozen_and_ok_is_a_bool(bad):
    assert bad.ok is False
    with pytest.raises(AttributeError):
        bad.problems = ()
