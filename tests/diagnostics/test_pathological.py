"""Ten sets of bad chains: `diagnose` is right on all of them; what `az.diagnose` says stands beside it."""

import contextlib
import io
import warnings

import arviz as az
import numpy as np
import pytest

import ebm_ppl as ebm
from tests.diagnostics import chains

# name: (the finding that comes first, those that must follow, the chain that must be named, what az.diagnose says)
TABLE = {
    "one_chain_scaled": ("R_HAT", {"ESS_TAIL"}, 3, True),
    "shifted_cauchy": ("R_HAT", {"ESS_BULK"}, 1, True),
    "two_modes": ("R_HAT", {"ESS_BULK", "ESS_TAIL"}, None, True),
    "frozen_apart": ("STUCK_CHAIN", set(), 0, True),
    "frozen_together": ("STUCK_CHAIN", set(), 0, False),
    "one_nan": ("NONFINITE_DRAW", set(), 1, False),
    "one_infinity": ("NONFINITE_DRAW", set(), 2, False),
    "sticky": (None, {"ESS_BULK"}, None, True),
    "drifting": ("R_HAT", {"ESS_BULK", "ESS_TAIL", "POSSIBLY_IMPROPER"}, None, True),
    "too_short": ("TOO_SHORT", set(), None, True),
}


def arviz_sees_a_problem(draws):
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # ArviZ divides by the zero variance of frozen chains
        found, _ = az.diagnose(az.from_dict({"posterior": {"x": draws}}), return_diagnostics=True)
    return found


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("seed", range(5))
def test_verdict(name, seed):
    first, others, chain, arviz = TABLE[name]
    draws = getattr(chains, name)(np.random.default_rng(seed))
    report = ebm.diagnose(draws)
    assert not report.ok
    assert first is None or report.codes[0] == first
    assert others <= set(report.codes)
    assert chain is None or chain == report.problems[0].chain
    assert arviz_sees_a_problem(draws) == arviz


def test_every_frozen_chain_is_named():
    for name in ("frozen_apart", "frozen_together"):
        report = ebm.diagnose(getattr(chains, name)(np.random.default_rng(0)))
        assert [problem.chain for problem in report.problems] == [0, 1, 2, 3]
        assert report.table["ess_bulk"]["x"] == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_good_draws_raise_no_alarm(seed):
    rng = np.random.default_rng(seed)
    for draws in (
        chains.independent(rng),
        chains.independent(rng, 4, 1000, 3),
        chains.autoregressive(rng, 0.5),
        chains.metropolis(rng, 0.4, num_draws=2000),
        rng.standard_cauchy(size=(4, 1000)),
        np.exp(2 * rng.normal(size=(4, 1000))),
        chains.independent(rng, 20, 50),
        chains.independent(rng, 1000, 20),
        chains.autoregressive(rng, 0.5, 1000, 20),
        rng.standard_cauchy(size=(1000, 20)),
    ):
        report = ebm.diagnose(draws)
        assert report.ok, repr(report)


def test_frozen_chains_are_told_from_unlucky_ones():
    """Of 1,000 Metropolis chains of 20 draws some never move by chance; a frozen one among lively ones is stuck."""
    rng = np.random.default_rng(3)
    slow = chains.metropolis(rng, 0.25, 1000, 20)
    assert (np.ptp(slow, axis=1) == 0).any()
    assert "STUCK_CHAIN" not in ebm.diagnose(slow).codes
    lively = chains.metropolis(rng, 0.7, 1000, 20)
    lively[5] = lively[5, 0]
    (problem,) = [problem for problem in ebm.diagnose(lively).problems if problem.code == "STUCK_CHAIN"]
    assert problem.chain == 5


@pytest.mark.parametrize("share", [1.0, 0.05, 0.02])
def test_many_short_chains_that_sit_in_modes_are_caught(share):
    """Their pool has thousands of "effective" draws: of the starting points, not of the target."""
    rng = np.random.default_rng(0)
    draws = chains.independent(rng, 1000, 20)
    count = int(1000 * share)
    draws[:count] += 8 * rng.choice([-1, 1], size=(count, 1))
    report = ebm.diagnose(draws)
    assert "R_HAT" in report.codes
    assert report.table["ess_bulk"]["x"] > 400


def test_many_short_chains_with_some_memory_are_explained():
    report = ebm.diagnose(chains.autoregressive(np.random.default_rng(0), 0.5, 1000, 20))
    assert report.ok
    assert report.table["r_hat"]["x"] > 1.05
    assert "chains that are short" in report.notes[0]


def test_many_short_chains_with_long_memory_are_not_excused():
    assert "R_HAT" in ebm.diagnose(chains.autoregressive(np.random.default_rng(0), 0.95, 1000, 20)).codes


def test_common_drift_of_many_chains_is_seen():
    """All chains move together: R-hat's excess is small, the pool's ESS in the thousands."""
    rng = np.random.default_rng(0)
    report = ebm.diagnose(chains.independent(rng, 1000, 20) + np.linspace(0, 0.6, 20))
    assert "DRIFT" in report.codes


def test_a_random_walk_is_possibly_improper():
    rng = np.random.default_rng(0)
    reports = [ebm.diagnose(np.cumsum(rng.normal(size=(8, 1000)), axis=1)) for _ in range(40)]
    assert not any(report.ok for report in reports)
    assert sum("POSSIBLY_IMPROPER" in report.codes for report in reports) >= 32  # measured: 95 %
