"""The mixing table is ArviZ's where ArviZ is right, and 0 where chains are frozen."""

import arviz as az
import numpy as np
import pytest
import xarray as xr

import ebm_ppl as ebm
from ebm_ppl.diagnostics import mixing
from ebm_ppl.diagnostics._agreement import FALSE_ALARM, r_hat_limit
from ebm_ppl.diagnostics._arviz import rank_r_hat
from tests.diagnostics import chains
from tests.diagnostics.test_to_datatree import make_draws


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_equals_arviz_on_good_draws_of_several_variables(rng):
    tree = az.from_dict(
        {"posterior": {"a": rng.normal(size=(4, 300, 2, 2)), "b": rng.normal(size=(4, 300))}},
        coords={"k": ["p", "q"]},
        dims={"a": ["k", "l"]},
    )
    table, summary = mixing(tree), az.summary(tree, round_to="none")
    assert list(table["parameter"].values) == list(summary.index) == ["a[p, 0]", "a[p, 1]", "a[q, 0]", "a[q, 1]", "b"]
    for name in ("r_hat", "ess_bulk", "ess_tail", "mcse_mean"):
        np.testing.assert_allclose(table[name].values, summary[name].values, rtol=1e-12)
    report = ebm.diagnose(tree)
    assert list(report.table.columns) == list(summary.columns)
    np.testing.assert_allclose(report.table.values, summary.values, rtol=1e-9)
    one = az.ess(tree.sel(chain=[2]), method="bulk")
    np.testing.assert_allclose(table["ess_bulk_per_chain"].sel(chain=2, parameter="b"), one["b"], rtol=1e-12)


def test_effective_sample_size_of_an_autoregression(rng):
    """ESS = N (1 - c) / (1 + c): 4 x 20,000 draws at c = .9 are worth 4,211, each chain 1,053."""
    table = mixing(chains.autoregressive(rng, 0.9, 4, 20_000)).sel(parameter="x")
    assert float(table["ess_bulk"]) == pytest.approx(80_000 * 0.1 / 1.9, rel=0.15)
    np.testing.assert_allclose(table["ess_bulk_per_chain"], 20_000 * 0.1 / 1.9, rtol=0.3)
    assert float(table["mcse_mean"]) == pytest.approx(np.sqrt(1.9 / 0.1 / 80_000), rel=0.15)


def test_frozen_chains_have_no_effective_draws(rng):
    draws = chains.independent(rng, 4, 1000)
    draws[1] = 0.3
    assert float(az.ess(draws[1:2])) == 1000.0, "ArviZ credits a constant chain with all its draws"
    table = mixing(draws).sel(parameter="x")
    assert list(table["frozen"].values) == [False, True, False, False]
    assert float(table["ess_bulk_per_chain"][1]) == 0.0
    assert float(table["ess_bulk"]) == float(table["ess_tail"]) == 0.0
    assert np.isnan(table["mcse_mean"])
    np.testing.assert_array_equal(table["distinct_fraction"], [1.0, 0.001, 1.0, 1.0])
    np.testing.assert_array_equal(table["moved_fraction"], [1.0, 0.0, 1.0, 1.0])
    assert (table["ess_bulk_per_chain"][[0, 2, 3]] > 700).all()


def test_a_chain_that_stops_half_way_is_frozen(rng):
    draws = chains.independent(rng, 4, 1000)
    draws[3, 400:] = draws[3, 400]
    table = mixing(draws).sel(parameter="x")
    assert list(table["frozen"].values) == [False, False, False, True]
    assert float(table["distinct_fraction"][3]) == 0.401


def test_distinct_values_count_values_not_moves(rng):
    draws = np.tile([0.0, 1.0], (2, 50))
    table = mixing(draws).sel(parameter="x")
    np.testing.assert_array_equal(table["distinct_fraction"], 0.02)
    np.testing.assert_array_equal(table["moved_fraction"], 1.0)


def test_one_bad_chain_leaves_the_others_their_numbers(rng):
    draws = chains.independent(rng, 3, 200)
    draws[0, 3] = np.inf
    table = mixing(draws).sel(parameter="x")
    assert np.isnan(table["ess_bulk"])
    assert np.isnan(table["r_hat"])
    assert list(np.isnan(table["ess_bulk_per_chain"].values)) == [True, False, False]


def test_acceptance_and_chain_labels_of_the_sampler(rng):
    rates = np.repeat([[0.5], [0.6], [0.7], [0.8]], 500, axis=1)
    tree = ebm.to_datatree(make_draws(acceptance_rate=rates)).sel(chain=[1, 3])
    table = mixing(tree)
    assert list(table["chain"].values) == [1, 3]
    np.testing.assert_allclose(table["acceptance_rate"], [0.6, 0.8])
    assert "acceptance_rate" not in mixing(rng.normal(size=(2, 50)))


def test_output_of_other_libraries_with_discrete_and_constant_sites(rng):
    """A NumPyro tree: a correlation matrix has a constant diagonal, a class label rests for long."""
    corner = np.zeros((4, 500, 2, 2))
    corner[..., 0, 0] = corner[..., 1, 1] = 1.0
    corner[..., 0, 1] = corner[..., 1, 0] = rng.uniform(-1, 1, size=(4, 500))
    label = (rng.random((4, 500)) < 0.02).astype(int)
    tree = az.from_dict(
        {"posterior": {"correlation": corner, "label": label}}, attrs={"posterior": {"inference_library": "numpyro"}}
    )
    table = mixing(tree)
    assert not table["frozen"].any()
    assert np.isnan(table["ess_bulk"].sel(parameter="correlation[0, 0]"))
    assert float(table["ess_bulk"].sel(parameter="correlation[0, 1]")) > 1000
    report = ebm.diagnose(tree)
    assert "STUCK_CHAIN" not in report.codes
    assert "correlation[0, 0], correlation[1, 1]: one and the same value" in report.notes[0]
    ours = ebm.to_datatree({"correlation": corner})
    assert ebm.diagnose(ours).codes == ("STUCK_CHAIN",), "in draws of one energy nothing is constant by design"


def test_a_coordinate_that_only_one_chain_never_updates(rng):
    draws = chains.independent(rng, 4, 500, 3)
    draws[2, :, 1] = 0.0
    report = ebm.diagnose(draws)
    (problem,) = report.problems
    assert (problem.code, problem.chain) == ("STUCK_CHAIN", 2)
    assert "x[1] never moved in this chain" in problem.advice
    assert report.table["ess_bulk"]["x[1]"] == 0.0
    assert report.table["ess_bulk"]["x[0]"] > 1000


def test_short_and_single_chains_give_nan_not_nonsense(rng):
    assert np.isnan(mixing(rng.normal(size=(1, 100)))["r_hat"]).all()
    assert np.isnan(mixing(rng.normal(size=(4, 3)))["ess_bulk"]).all()
    empty = mixing(np.zeros((2, 0)))
    assert np.isnan(empty["ess_bulk"]).all()
    assert np.isnan(empty["moved_fraction"]).all()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (xr.Dataset(), "no variables"),
        (xr.Dataset({"x": ("draw", np.zeros(3))}), "dimensions chain and draw"),
        (xr.Dataset({"x": (("chain", "draw"), np.full((2, 3), "a"))}), "real numbers"),
        (xr.Dataset({"x": (("chain", "draw"), np.zeros((0, 3)))}), "no chains"),
    ],
)
def test_unusable_groups_are_named(dataset, message):
    with pytest.raises(ValueError, match=message):
        mixing(dataset)


@pytest.mark.parametrize(("num_chains", "num_draws"), [(2, 200), (4, 100), (20, 50), (100, 20)])
def test_the_chance_limit_of_r_hat_is_calibrated(rng, num_chains, num_draws):
    """Independent draws exceed the limit with probability 1e-3: at most 10 of 1,500 (binomial tail 1e-6)."""
    limit = r_hat_limit(num_chains, num_draws, 1)
    exceeded = sum(rank_r_hat(rng.normal(size=(num_chains, num_draws))) > limit for _ in range(1500))
    assert FALSE_ALARM == 1e-3
    assert exceeded <= 10
    assert r_hat_limit(num_chains, 10_000, 1) == 1.01
