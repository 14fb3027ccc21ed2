"""Prior predictive, calibration, posterior, posterior predictive, LOO, prior sensitivity: with standard calls only.

One model with an energy as prior (its posterior is normal) and one with an energy as likelihood (its posterior is one
integral). Every step is compared with the exact answer, or with a twin that must fail it.
"""

import functools
from typing import NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, Predictive
from scipy import special, stats

import ebm_ppl as ebm
from ebm_ppl.distributions import ChainSampler
from tests.foreign import standard_promotion
from tests.statistics import StatisticalError, assert_close, assert_iid_mean_close, assert_mean_close

SAMPLER = ChainSampler(num_warmup=100, num_steps=40)
HASTY = ChainSampler(ebm.MALA(0.01), num_warmup=0, num_steps=2)  # draws that are nearly where chains start
GROUPS = {
    "posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior", "prior_predictive", "observed_data",
}  # fmt: skip

# --- an energy as prior: N(m, S) of the weights of a regression, given up to a constant -------------------------------

MEAN, PRECISION = np.array([1.0, -1.0]), np.array([[6.0, 2.4], [2.4, 3.0]])
TIMES, NOISE = np.linspace(-1, 1, 12), 1.0
ROWS = np.stack([np.ones(12), TIMES], axis=1)
Y = ROWS @ np.array([1.6, -1.4]) + NOISE * np.random.default_rng(1).normal(size=12)


def weights_energy(x):
    residual = x - jnp.asarray(MEAN, x.dtype)
    return residual @ jnp.asarray(PRECISION, x.dtype) @ residual / 2 + 50.0


def regression(y=None, sampler=SAMPLER, slope=1.0):
    energy = ebm.FunctionEnergy(weights_energy, (2,))
    w = numpyro.sample("w", ebm.EnergyDistribution(energy, sampler=sampler))
    with numpyro.plate("time", 12):
        numpyro.sample("y", dist.Normal(w[0] + slope * w[1] * jnp.asarray(TIMES), NOISE), obs=y)


def regression_posterior(rows, y, power=1.0):
    """Mean and covariance of the weights, with the prior to a power."""
    precision = power * PRECISION + rows.T @ rows / NOISE**2
    covariance = np.linalg.inv(precision)
    return covariance @ (power * PRECISION @ MEAN + rows.T @ y / NOISE**2), covariance


def regression_elpd(slope):
    rows = ROWS * np.array([1.0, slope])
    total = 0.0
    for i in range(12):
        mean, covariance = regression_posterior(np.delete(rows, i, 0), np.delete(Y, i))
        total += stats.norm.logpdf(Y[i], rows[i] @ mean, np.sqrt(rows[i] @ covariance @ rows[i] + NOISE**2))
    return total


# --- an energy as likelihood: a Gumbel law about mu, given up to a constant -------------------------------------------

DATA = np.random.default_rng(2).gumbel(0.5, 1.0, 12)
PRIOR_SCALE = 2.0
GRID = np.linspace(-8, 8, 4001)
OFFSET = 7.0


def gumbel(sign, x):
    """Skewed to the right; mirrored with sign -1."""
    return sign * x + jnp.exp(-sign * x) + OFFSET


LOG_Z = ebm.normalizers.quadrature(ebm.FunctionEnergy(gumbel, (), jnp.ones(())))


def shifted(params, x):
    return gumbel(params["sign"], x - params["mu"])


def skewed(y=None, sampler=SAMPLER, sign=1.0, log_normalizer=LOG_Z):
    mu = numpyro.sample("mu", dist.Normal(0.0, PRIOR_SCALE))
    energy = ebm.FunctionEnergy(shifted, (), {"mu": mu, "sign": jnp.asarray(sign)})
    noise = ebm.EnergyDistribution(
        energy, log_normalizer=log_normalizer, constant_log_normalizer_in="mu", sampler=sampler
    )
    with numpyro.plate("n", 12):
        numpyro.sample("y", noise, obs=y)


def skewed_log_density(sign, y):
    """log p(y | mu), `(grid, n)`."""
    z = sign * (y[None, :] - GRID[:, None])
    return -z - np.exp(-z)


def on_grid(log_weights):
    log_weights = log_weights - GRID**2 / (2 * PRIOR_SCALE**2)
    return np.exp(log_weights - special.logsumexp(log_weights))


def skewed_elpd(sign):
    density = skewed_log_density(sign, DATA)
    parts = [on_grid(np.delete(density, i, 1).sum(1)) @ np.exp(density[:, i]) for i in range(12)]
    return float(np.log(parts).sum())


# --- the steps, the same for both -------------------------------------------------------------------------------------


class Case(NamedTuple):
    model: object
    data: np.ndarray
    rival: dict
    site: str
    prior_moments: list  # mean and second moment of `site`
    elpd: object


COVARIANCE = np.linalg.inv(PRECISION)
CASES = {
    "prior": Case(
        regression, Y, {"slope": -1.0}, "w", [*MEAN, *(MEAN**2 + np.diag(COVARIANCE))],
        {"right": regression_elpd(1.0), "wrong": regression_elpd(-1.0)},
    ),
    "likelihood": Case(
        skewed, DATA, {"sign": -1.0}, "mu", [0.0, PRIOR_SCALE**2],
        {"right": skewed_elpd(1.0), "wrong": skewed_elpd(-1.0)},
    ),
}  # fmt: skip


def calibrate(model, key, **settings):
    settings = {"num_simulations": 60, "num_warmup": 150, "num_samples": 400} | settings
    return ebm.diagnostics.simulation_based_calibration(
        model, ebm.BlackJAXKernel, key=key, observed=["y"], progress_bar=False, **settings
    )


def fit(model, data, **settings):
    mcmc = MCMC(
        ebm.BlackJAXKernel(functools.partial(model, **settings)),
        num_warmup=300, num_samples=500, num_chains=4, chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(0), jnp.asarray(data, float))
    return mcmc


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def prior(case):
    with standard_promotion():
        return Predictive(case.model, num_samples=1500, batch_ndims=2, parallel=True)(jax.random.key(1))


@pytest.fixture(scope="module")
def tree(case, prior):
    y = jnp.asarray(case.data, float)
    with standard_promotion():
        mcmc = fit(case.model, case.data)
        samples = mcmc.get_samples(group_by_chain=True)
        predictive = Predictive(case.model, samples, batch_ndims=2, parallel=True)(jax.random.key(2))
        tree = az.from_numpyro(mcmc, prior=prior, posterior_predictive=predictive, log_likelihood=True)
        log_prior = ebm.infer.log_prior(case.model, samples, y, batch_ndims=2)
        tree["log_prior"] = ebm.to_datatree(log_prior, group="log_prior")["log_prior"]
    return tree


def test_prior_predictive(case, prior):
    draws = np.asarray(prior[case.site], float).reshape(1500, -1)
    assert_iid_mean_close(np.concatenate([draws, draws**2], axis=1), case.prior_moments)
    y = np.asarray(prior["y"])[0]
    if case.model is regression:
        truth = ROWS @ MEAN, np.einsum("ij,jk,ik->i", ROWS, COVARIANCE, ROWS) + NOISE**2
    else:
        truth = np.full(12, np.euler_gamma), np.full(12, PRIOR_SCALE**2 + np.pi**2 / 6)
    assert_iid_mean_close(y, truth[0])
    assert_iid_mean_close((y - truth[0]) ** 2, truth[1])


def test_calibration_passes_and_fails_with_a_hasty_sampler(case, key):
    with standard_promotion():
        right = calibrate(case.model, key)
        wrong = calibrate(case.model, key, model_kwargs={"sampler": HASTY})
    assert not right.problems, right
    assert right.p_value > 0.001
    assert wrong.p_value < 1e-3, wrong


@pytest.mark.slow
def test_calibration_of_the_default_sampler_and_of_one_that_stops_a_little_early(case, key):
    early = ChainSampler(ebm.Barker(0.3), num_warmup=0, num_steps=5)
    settings = {"num_simulations": 1000, "num_warmup": 300, "num_samples": 1000}
    with standard_promotion():
        right = calibrate(case.model, key, model_kwargs={"sampler": ChainSampler()}, **settings)
        wrong = calibrate(case.model, key, model_kwargs={"sampler": early}, **settings)
    print(right, wrong, sep="\n")  # noqa: T201
    assert not right.problems, right
    assert right.p_value > 0.001
    assert wrong.p_value < 1e-3, wrong


def test_all_groups_are_there_and_read_by_arviz(case, tree):
    assert set(tree.children) == GROUPS | {"log_prior"}
    assert dict(tree["prior"].sizes)["draw"] == 1500
    assert set(tree["prior_predictive"].data_vars) == set(tree["posterior_predictive"].data_vars) == {"y"}
    assert tree["log_likelihood"]["y"].shape == (4, 500, 12)
    assert ebm.diagnose(tree).ok
    summary = az.summary(tree)
    assert (summary["r_hat"].astype(float) < 1.02).all()


def test_the_posterior_and_what_it_predicts(case, tree):
    draws = tree["posterior"][case.site].values
    y = tree["posterior_predictive"]["y"].values
    if case.model is regression:
        mean, covariance = regression_posterior(ROWS, Y)
        assert_mean_close(draws, mean)
        assert_mean_close((draws - mean) ** 2, np.diag(covariance))
        spread = np.einsum("ij,jk,ik->i", ROWS, covariance, ROWS) + NOISE**2
        assert_mean_close(y, ROWS @ mean)
        assert_mean_close((y - ROWS @ mean) ** 2, spread)
    else:
        weights = on_grid(skewed_log_density(1.0, DATA).sum(1))
        mean = weights @ GRID
        assert_mean_close(draws, mean)
        assert_mean_close((draws - mean) ** 2, weights @ (GRID - mean) ** 2)
        assert_mean_close(y, np.full(12, mean + np.euler_gamma))
        with pytest.raises(StatisticalError):
            assert_mean_close(y, np.full(12, mean - np.euler_gamma))  # the mirrored law


def test_leave_one_out_is_exact_and_the_rival_loses(case, tree):
    with standard_promotion():
        rival = az.from_numpyro(fit(case.model, case.data, **case.rival), log_likelihood=True)
    table = az.compare({"right": tree, "wrong": rival})
    assert table.index[0] == "right"
    for name, one in {"right": tree, "wrong": rival}.items():
        # Its own Monte Carlo error, and what is left of the bias of Pareto-smoothed weights.
        assert az.loo(one).elpd == pytest.approx(case.elpd[name], abs=0.25)


def test_prior_sensitivity(case, tree):
    table = az.psense_summary(tree)
    assert np.isfinite(table[["prior", "likelihood"]].to_numpy(float)).all()
    if case.model is regression:
        for power in (0.8, 1.25):  # the draws, reweighted, against the exact posterior under the prior to this power
            log_weights = tree["log_prior"]["w"].azstats.power_scale_lw(alpha=power, dim=["chain", "draw"])
            weights = np.exp(log_weights.values)[..., None]
            weights = weights / weights.sum()
            draws = tree["posterior"]["w"].values
            found = (weights * draws).sum((0, 1))
            error = 2 * np.sqrt(((weights - 1 / 2000) ** 2 * (draws - found) ** 2).sum((0, 1)))  # 1 of 4 is effective
            shift = found - draws.mean((0, 1))
            mean = regression_posterior(ROWS, Y)[0]
            assert_close(shift, regression_posterior(ROWS, Y, power)[0] - mean, error)
            with pytest.raises(StatisticalError):
                assert_close(shift, regression_posterior(ROWS, Y, 1 / power)[0] - mean, error)


# --- what is not known is refused -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("numpyro_rules")
def test_without_log_z_there_is_no_comparison():
    mcmc = fit(skewed, DATA, log_normalizer=None)
    with pytest.raises(ebm.MissingLogNormalizerError, match="log_normalizer"):
        az.from_numpyro(mcmc, log_likelihood=True)


def hierarchy(log_z=True, y=None):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 2.0))
    log_normalizer = jnp.log(scale) + 0.5 * np.log(2 * np.pi) if log_z else None
    energy = ebm.FunctionEnergy(lambda scale, x: (x / scale) ** 2 / 2, (), scale)
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", ebm.EnergyDistribution(energy, log_normalizer=log_normalizer))
    numpyro.deterministic("twice", 2 * x)
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def test_log_prior_is_that_of_the_closed_form_and_refused_without_log_z(key):
    samples = {"scale": jnp.array([[0.5, 2.0]]), "x": jax.random.normal(key, (1, 2, 3)), "twice": jnp.zeros((1, 2, 3))}
    for parallel in (False, True):
        found = ebm.infer.log_prior(hierarchy, samples, y=jnp.zeros(3), batch_ndims=2, parallel=parallel)
        assert set(found) == {"scale", "x"}
        np.testing.assert_allclose(found["scale"], stats.gamma.logpdf(samples["scale"], 2, scale=0.5), rtol=1e-5)
        expected = stats.norm.logpdf(samples["x"], 0, np.asarray(samples["scale"])[..., None])
        np.testing.assert_allclose(found["x"], expected, rtol=1e-5)
    with pytest.raises(ebm.MissingLogNormalizerError, match=r"'x'.*varies with 'scale'"):
        ebm.infer.log_prior(hierarchy, samples, False, y=jnp.zeros(3), batch_ndims=2)


def test_log_prior_takes_params_from_the_draws_and_as_constants_where_there_are_none():
    def model(log_normalizer=None):
        mean = numpyro.param("mean", 1.0)
        energy = ebm.FunctionEnergy(lambda mean, x: (x - mean) ** 2 / 2, (), mean)
        numpyro.sample("x", ebm.EnergyDistribution(energy, log_normalizer=log_normalizer))

    x, means = {"x": jnp.zeros(2)}, {"mean": jnp.array([0.0, 3.0])}
    np.testing.assert_allclose(ebm.infer.log_prior(model, x)["x"], -0.5)  # a constant: no log Z is needed
    with pytest.raises(ebm.MissingLogNormalizerError, match="varies with 'mean'"):
        ebm.infer.log_prior(model, x | means)
    np.testing.assert_allclose(ebm.infer.log_prior(model, x | means, 0.0)["x"], [0.0, -4.5])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"scale": np.ones(2)}, r"\['x'\] are missing"),
        ({"scale": np.ones(2), "x": np.ones((4, 3))}, "same leading 1 axes"),
    ],
)
def test_unusable_draws_are_named(samples, message):
    with pytest.raises(ValueError, match=message):
        ebm.infer.log_prior(hierarchy, samples, y=jnp.zeros(3))
