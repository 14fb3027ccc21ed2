"""The examples of `ExchangeKernel`: `examples/04_autologistic.py` and `examples/06_conway_maxwell_poisson.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

import ebm_ppl as ebm
from tests.example_files import is_png, load, run_short
from tests.statistics import StatisticalError, assert_iid_mean_close

ising, counts = load("04_autologistic"), load("06_conway_maxwell_poisson")


@pytest.fixture(autouse=True)
def as_a_user_runs_it():
    """Examples broadcast, as NumPy does; the package's own tests forbid it."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("04_autologistic", ("49 states, 107 borders", "has no `log_normalizer`", "pseudo-likelihood", "beta > 0")),
        ("06_conway_maxwell_poisson", ("published estimates reproduced: yes", "exact posterior: ", "nu > 1")),
    ],
)
def test_the_short_run_compares_says_its_verdict_and_leaves_figure_and_draws(tmp_path, name, texts):
    output = run_short(name, tmp_path / "results")
    for text in (*texts, "verdict: exchange within 4 MCSE" if name.startswith("04") else "exchange within 4 MCSE"):
        assert text in output
    assert "diagnostics: ok" not in output  # far too few draws, and it is said
    stem = name[3:]
    assert is_png(tmp_path / "results" / f"{stem}.png")
    tree = ebm.diagnostics.load_datatree(tmp_path / "results" / f"{stem}.nc")
    assert dict(tree["posterior"].sizes)["chain"] == 4


# --- the election


def test_the_map_is_that_of_the_contiguous_states():
    pairs = {frozenset((ising.NAMES[i], ising.NAMES[j])) for i, j in ising.EDGES}
    assert len(ising.NAMES) == 49
    assert len(pairs) == len(ising.EDGES) == 107
    assert set(ising.TILES.split()) - {".."} == set(ising.NAMES) >= ising.BIDEN
    degree = {name: sum(name in pair for pair in pairs) for name in ising.NAMES}
    assert [degree[name] for name in ("MO", "TN", "KY", "CO", "DC", "ME")] == [8, 8, 7, 6, 2, 1]
    assert not pairs & {frozenset(pair) for pair in (("AZ", "CO"), ("NM", "UT"), ("MI", "IL"), ("NY", "RI"))}


def test_elimination_is_enumeration_and_an_edge_matters():
    rng = np.random.default_rng(0)
    edges = np.array([(i, j) for i in range(9) for j in range(i) if rng.uniform() < 0.4 and i != 4 != j])  # 4 is alone
    alpha, beta = rng.normal(size=(2, 6))
    expected = ising.enumerate_all(9, edges, alpha, beta)
    np.testing.assert_allclose(ising.eliminate(9, edges, alpha, beta), expected, rtol=1e-12)
    assert np.abs(ising.eliminate(9, edges[1:], alpha, beta) - expected).max() > 0.01


def test_the_posteriors_on_the_grid_are_those_of_the_energy():
    """Log ratios of two grid points; the pseudo-likelihood from flips of the energy."""
    exact, pseudo = ising.on_grid(5)
    found = {name: np.log(p.weights[1, 3] / p.weights[2, 1]) for name, p in (("exact", exact), ("pseudo", pseudo))}
    x = jnp.asarray(ising.RESULT)
    flipped = x * (1 - 2 * jnp.eye(len(x)))
    totals = []
    for i, j in ((1, 3), (2, 1)):
        params = {"alpha": jnp.asarray(exact.alpha[i]), "beta": jnp.asarray(exact.beta[j])}
        energy = float(ising.autologistic(params, x))
        gaps = np.asarray(jax.vmap(ising.autologistic, in_axes=(None, 0))(params, flipped)) - energy
        prior = -(exact.alpha[i] ** 2 + exact.beta[j] ** 2) / (2 * ising.PRIOR_SD**2)
        log_z = ising.eliminate(len(x), ising.EDGES, exact.alpha[[i]], exact.beta[[j]])[0]
        totals.append({"exact": prior - energy - log_z, "pseudo": prior + np.log(expit(gaps)).sum()})
    for name, value in found.items():
        assert value == pytest.approx(totals[0][name] - totals[1][name], abs=1e-4)


def test_the_comparison_sees_a_shift_of_a_tenth_of_a_standard_deviation():
    exact, _ = ising.on_grid(41)
    moments = exact.moments()
    noise = np.random.default_rng(0).normal(size=(4, 4000))
    honest = {name: mean + sd * noise for name, (mean, sd) in moments.items()}
    assert max(np.abs(row[1]).max() for row in ising.compare(honest, exact).values()) < 4
    shifted = honest | {"beta": honest["beta"] + moments["beta"][1] / 10}
    assert ising.compare(shifted, exact)["beta"][1, 0] > 4


# --- the counts


def test_maximum_likelihood_is_the_published_one():
    estimate, error = counts.maximum_likelihood()
    np.testing.assert_allclose(estimate, list(counts.PUBLISHED.values()), rtol=0, atol=6e-5)
    np.testing.assert_allclose(error, [6.2369, 0.6888, 2.5967], rtol=0, atol=6e-5)  # from a numerical Hessian


def test_draws_of_counts_have_the_moments_of_the_series(key):
    transfers, (rate, nu) = jnp.asarray(2.0), (12.0, 4.0)

    def draws(nu):
        params = {"intercept": jnp.asarray(rate - 2.0), "slope": jnp.asarray(1.0), "nu": jnp.asarray(nu)}
        energy = ebm.FunctionEnergy(counts.conway_maxwell_poisson, (), params, condition_shape=())
        return np.asarray(counts.draw_counts(energy, key, (20_000,), transfers))

    steps = rate + np.array([-1e-3, 0.0, 1e-3])  # the mean is d log Z / d log lambda, the variance its derivative
    low, middle, high = counts.log_series(steps, np.full(3, nu))
    mean, variance = (high - low) / 2e-3, (high - 2 * middle + low) / 1e-6
    assert_iid_mean_close(draws(nu), mean)
    assert_iid_mean_close((draws(nu) - mean) ** 2, variance)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close((draws(3.9) - mean) ** 2, variance)


def test_the_grid_of_the_exact_posterior_is_fine_enough():
    coarse, fine = counts.exact_posterior(31), counts.exact_posterior(45)
    for name in counts.PUBLISHED:
        moments = [[(w * v**power).sum() for power in (1, 2)] for v, w in (coarse[name], fine[name])]
        np.testing.assert_allclose(moments[0], moments[1], rtol=2e-3)
