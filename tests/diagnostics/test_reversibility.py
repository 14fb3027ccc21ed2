"""Reversible chains are rejected at the stated rate, circulating ones always."""

import numpy as np
import pytest
from scipy import stats

from ebm_ppl.diagnostics import Verdict, reversibility
from tests.diagnostics import chains


def gibbs_sweeps(rng, correlation, num_chains, num_draws, *, random_scan):
    """A bivariate normal law, its coordinates updated in a fixed order or one at random."""
    scale = np.sqrt(1 - correlation**2)
    x = rng.multivariate_normal(np.zeros(2), [[1, correlation], [correlation, 1]], num_chains)
    draws = np.empty((num_chains, num_draws, 2))
    for t in range(num_draws):
        order = (rng.integers(0, 2),) if random_scan else (0, 1)
        for i in order:
            x[:, i] = correlation * x[:, 1 - i] + scale * rng.normal(size=num_chains)
        draws[:, t] = x
    return draws


@pytest.mark.parametrize("shape", [(4, 1000), (24, 40)])
def test_reversible_chains_are_rejected_at_the_stated_rate(shape):
    rng = np.random.default_rng(1)
    rejected = 0
    for _ in range(30):
        pair = [chains.autoregressive(rng, 0.5, *shape) for _ in range(2)]
        rejected += not reversibility(np.exp(np.stack(pair, axis=-1)), level=0.05).ok
    assert rejected <= stats.binom.isf(1e-3, 30, 0.05)
    assert reversibility(gibbs_sweeps(rng, 0.8, *shape, random_scan=True), level=1e-4).ok


@pytest.mark.parametrize("shape", [(4, 2000), (24, 400)])
def test_a_sweep_in_fixed_order_is_not_reversible(shape):
    draws = gibbs_sweeps(np.random.default_rng(2), 0.8, *shape, random_scan=False)
    verdict = reversibility({"x": draws})
    assert not verdict.ok
    assert not verdict.problems
    assert verdict.p_value < 1e-3
    assert verdict.table["estimate"].sizes["pair"] == 6
    assert reversibility(draws[..., :1], level=1e-3).ok  # one coordinate of it is a reversible AR(1)


def test_chains_that_cannot_be_judged_do_not_pass():
    rng = np.random.default_rng(0)
    cases = {
        "NONFINITE_DRAW": chains.one_nan(rng),
        "STUCK_CHAIN": chains.frozen_apart(rng),
        "TOO_SHORT": rng.normal(size=(2, 40)),
    }
    for code, draws in cases.items():
        verdict = reversibility(draws)
        assert isinstance(verdict, Verdict)
        assert not verdict.ok
        assert verdict.problems[0].code == code
    with pytest.raises(ValueError, match="`level` must be between 0 and 1"):
        reversibility(cases["TOO_SHORT"], level=2.0)


def test_many_parameters_are_mixed_into_few_directions():
    verdict = reversibility(np.random.default_rng(5).normal(size=(24, 30, 50)), level=1e-4)
    assert verdict.ok
    assert verdict.table.sizes["pair"] == 16 * 15 / 2
