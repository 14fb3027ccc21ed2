"""What effective draws cost, nested R-hat of many short chains, and drift of the energy."""

import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.diagnostics import mixing
from tests.diagnostics import chains
from tests.diagnostics.test_to_datatree import make_draws


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_autocorrelation_time_of_an_autoregression(rng):
    """(1 + c) / (1 - c) = 19 for AR(.9); relative sd sqrt(2 (2 M + 1) / n) for a window of M = 3 x 19 lags (Sokal)."""
    table = mixing(chains.autoregressive(rng, 0.9, 4, 20_000)).sel(parameter="x")
    assert float(table["integrated_autocorrelation_time"]) == pytest.approx(19, rel=4 * np.sqrt(2 * 115 / 80_000))
    np.testing.assert_allclose(
        table["integrated_autocorrelation_time_per_chain"], 19, rtol=4 * np.sqrt(2 * 115 / 20_000)
    )
    frozen = mixing(np.ones((2, 50)))
    assert np.isinf(frozen["integrated_autocorrelation_time"]).all()


def test_cost_per_gradient_and_per_second(rng):
    tree = ebm.to_datatree(make_draws(n_steps=np.full((4, 500), 3)))
    table = mixing(tree)
    np.testing.assert_allclose(table["ess_per_gradient"], table["ess_bulk"] / (4 * 500 * 3))
    tree["posterior"].attrs |= {"inference_library": "pymc", "sampling_time": 2.5}
    np.testing.assert_allclose(mixing(tree)["ess_per_second"], table["ess_bulk"] / 2.5)
    assert not {"ess_per_gradient", "ess_per_second", "energy_drift"} & set(mixing(rng.normal(size=(2, 50))))


def nested_by_hand(draws, groups):
    """Equation 8 of Margossian et al. on split chains, without ranks."""
    half = draws.shape[1] // 2
    split, groups = np.concatenate([draws[:, :half], draws[:, -half:]]), np.concatenate([groups, groups])
    means = [split[groups == k].mean() for k in np.unique(groups)]
    inside = [
        split[groups == k].var(axis=1, ddof=1).mean() + split[groups == k].mean(axis=1).var(ddof=1)
        for k in np.unique(groups)
    ]
    return np.sqrt(1 + np.var(means, ddof=1) / np.mean(inside))


def test_nested_r_hat_forgives_short_chains_but_not_modes(rng):
    groups = np.repeat(np.arange(8), 64)
    draws = chains.autoregressive(rng, 0.5, 512, 10)
    table = mixing(draws, superchains=groups + 5).sel(parameter="x")
    assert float(table["r_hat"]) > 1.1, "what many short chains do to R-hat"
    assert float(table["nested_r_hat"]) < 1.01
    assert float(table["nested_r_hat"]) == pytest.approx(nested_by_hand(draws, groups), abs=3e-3)
    assert "nested_r_hat" not in mixing(draws)
    apart = draws + 4.0 * (groups % 2)[:, None]  # superchains that have not left the mode they started in
    assert float(mixing(apart, superchains=groups)["nested_r_hat"][0]) > 1.5


@pytest.mark.parametrize("superchains", [[0, 1, 2], [0, 0, 0, 0], [0, 0, 0, 1]])
def test_superchains_must_be_equal_groups(rng, superchains):
    with pytest.raises(ValueError, match="`superchains`"):
        mixing(rng.normal(size=(4, 50)), superchains=superchains)


def test_energy_drift_is_a_z_score(rng):
    """Standard normal in equilibrium: 100 chains of AR(.5) have mean square 1 (a chi-square over 100, 4 sd)."""
    log_density = chains.autoregressive(rng, 0.5, 100, 2000)
    drift = mixing(_with_lp(log_density))["energy_drift"].values
    assert np.mean(drift**2) == pytest.approx(1.0, abs=4 * np.sqrt(2 / 100))
    falling = mixing(_with_lp(log_density + np.linspace(0, 3, 2000)))["energy_drift"].values
    assert (falling < -4).all(), "the log density rises: the energy falls"
    assert np.isnan(mixing(_with_lp(np.ones((2, 100))))["energy_drift"]).all()


def _with_lp(log_density):
    tree = ebm.to_datatree({"x": log_density})
    tree["sample_stats"] = tree["posterior"].to_dataset().rename(x="lp")
    return tree
