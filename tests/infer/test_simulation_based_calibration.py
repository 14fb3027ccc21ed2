"""Ranks of true values among posterior draws: their test against enumeration, and models right and wrong."""

import functools
import itertools

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import NUTS
from scipy import stats

import ebm_ppl as ebm
from ebm_ppl.infer._simulation_based_calibration import mixing_of_many
from ebm_ppl.infer._uniformity import holm, uniformity_p_value
from tests.infer.exact_kernel import Autoregressive, RandomWalk, location

calibrate = ebm.diagnostics.simulation_based_calibration


def exact(key, model=location, num_simulations=100, num_samples=100, kernel=None, **settings):
    settings = {"observed": ["y"], "num_warmup": 0, "progress_bar": False} | settings
    kernel = functools.partial(Autoregressive, **(kernel or {}))
    return calibrate(model, kernel, key=key, num_simulations=num_simulations, num_samples=num_samples, **settings)


def p_values(result):
    return dict(zip(result.table["quantity"].values.tolist(), result.table["p_value"].values.tolist(), strict=True))


# --- the test of uniformity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "num_draws"), [(4, 2), (6, 3), (3, 7)])
def test_p_values_are_those_of_enumeration(number, num_draws):
    """Over all equally likely outcomes: P(p <= p0) = p0 for every attainable p0."""
    outcomes = list(itertools.product(range(num_draws + 1), repeat=number))
    of_sorted = functools.cache(lambda ranks: uniformity_p_value(np.array(ranks), num_draws)[0])
    found = np.array([of_sorted(tuple(sorted(ranks))) for ranks in outcomes])
    for value in np.unique(found.round(10)):
        np.testing.assert_allclose(np.mean(found <= value + 1e-9), value, atol=1e-9)


def test_far_away_the_p_value_is_tiny_and_not_zero():
    p_value, difference = uniformity_p_value(np.zeros(200, int), 99)
    assert 0 < p_value < 1e-100
    assert difference == pytest.approx(0.95)


def test_holm_against_its_definition():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])


def test_mixing_of_many_agrees_with_arviz():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(6, 2, 200, 2))
    draws = np.stack([stats.zscore(np.cumsum(noise, 2) * share + noise, 2) for share in (0.0, 0.3)])[:, 0]
    draws[0, 1, :, 0] = 1.0  # a frozen chain
    ess, r_hat = mixing_of_many(draws)
    assert ess[0, 0] == 0
    assert np.isnan(r_hat[0, 0])
    for simulation, quantity in ((0, 1), (1, 0), (1, 1)):
        chains = draws[simulation, :, :, quantity]
        np.testing.assert_allclose(r_hat[simulation, quantity], float(az.rhat(chains)), rtol=1e-6)
        np.testing.assert_allclose(ess[simulation, quantity], float(az.ess(chains)), rtol=0.1)  # another truncation


# --- a conjugate model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def right():
    key = jax.random.key(3)
    return exact(key, var_names=["mu", "twice"], quantities={"error": lambda sites, data: sites["mu"] - data["y"]})


def test_the_right_posterior_passes(right):
    assert right.ok, right
    assert right.p_value > 0.001
    assert list(p_values(right)) == ["mu", "twice", "log_likelihood", "error"]
    assert right.ranks.shape == (100, 4)
    assert right.ranks.max() <= right.num_draws
    np.testing.assert_array_equal(right.ranks[:, 0], right.ranks[:, 1])  # a monotone function has the same ranks
    assert right.num_draws == 2 * (100 // right.thinning)
    assert right.diverging == 0
    assert repr(right).endswith("ok")


def test_thinning_leaves_as_many_draws_as_are_effective(right):
    """AR(.3) has n (1 - .3) / (1 + .3) effective draws of mu; of the likelihood, which is even, somewhat more."""
    expected = 200 * 0.7 / 1.3
    assert 0.5 * expected <= right.num_draws <= 1.1 * expected
    assert float(right.table["median_ess"].sel(quantity="mu")) == pytest.approx(expected, rel=0.15)


def test_pit_values_go_into_arviz_as_they_are(right):
    group = right.datatree["prior_sbc"]
    assert dict(group.sizes) == {"chain": 1, "draw": 100}
    pit = group["mu"].values.ravel()
    np.testing.assert_array_equal(np.floor(pit * (right.num_draws + 1)), right.ranks[:, 0])
    picture = az.plot_ecdf_pit(right.datatree, var_names=["mu"], backend="none")
    line = picture.viz["ecdf_lines"]["mu"].item()
    expected = np.searchsorted(np.sort(pit), line["x"], side="right") / 100 - line["x"]
    np.testing.assert_allclose(line["y"], expected, atol=1e-9)


def test_too_narrow_a_posterior_is_rejected(key):
    result = exact(key, kernel={"scale": 0.6})
    assert not result.ok
    assert p_values(result)["mu"] < 1e-4
    assert float(result.table["sd_pit"].sel(quantity="mu")) > 0.32
    assert "NOT ok" in repr(result)
    assert "mu: p =" in repr(result)


def test_a_posterior_that_ignores_the_data_is_seen_by_the_likelihood_only(key):
    """Modrák et al. (2023): ranks of the parameters are uniform then."""
    found = p_values(exact(key, kernel={"use_data": False}))
    assert found["mu"] > 0.001
    assert found["log_likelihood"] < 1e-6


def with_a_constant(sites, data):
    return jnp.stack([jnp.ones_like(sites["mu"]), sites["mu"]])


def test_what_is_constant_is_not_judged(key):
    """As the corner of a Cholesky factor. What the chains alone hold constant still is."""
    result = exact(key, quantities={"row": with_a_constant})
    assert result.ok, result
    assert [name for name, p in p_values(result).items() if np.isnan(p)] == ["row[0]"]
    assert result.num_draws > 50
    assert not exact(key, kernel={"memory": 1.0}).ok


def test_another_simulator_is_found(key):
    result = exact(key, simulator=lambda y=None: location(y, 3.0))
    assert not result.ok
    assert p_values(result)["mu"] < 1e-3


def test_batches_do_not_change_the_result(key):
    settings = {"num_simulations": 20, "num_samples": 20}
    whole, parts = exact(key, **settings), exact(key, batch_size=7, **settings)
    np.testing.assert_array_equal(whole.ranks, parts.ranks)


def test_correlated_draws_are_named(key):
    slow = exact(key, kernel={"memory": 0.8}, thinning=1, num_samples=400)
    assert [problem.code for problem in slow.problems] == ["ESS_BULK"]
    assert not slow.ok
    frozen = exact(key, kernel={"memory": 1.0}, num_simulations=20, num_samples=20)
    assert {problem.code for problem in frozen.problems} == {"R_HAT", "ESS_BULK", "TOO_SHORT"}


def test_draws_that_are_not_finite_never_pass(key):
    result = exact(key, kernel={"nan_above": 0.5}, num_simulations=20, num_samples=40)
    assert "NONFINITE_DRAW" in {problem.code for problem in result.problems}
    assert result.p_value == 0
    assert not result.ok


def heavy_prior(y=None):
    x = numpyro.sample("mu", ebm.EnergyDistribution(ebm.FunctionEnergy(lambda x: x**2 / 2, ())))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_prior_draws_stand_in_for_an_energy_without_sampler(key):
    with pytest.raises(NotImplementedError, match="cannot draw"):
        exact(key, heavy_prior)
    draws = np.random.default_rng(1).normal(size=100)
    assert exact(key, heavy_prior, prior={"mu": draws}).ok
    assert not exact(key, heavy_prior, prior={"mu": 3 * draws}).ok


def with_factor(y=None):
    location(y)
    numpyro.factor("more", jnp.zeros(()))


def nothing_latent(y=None):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observed": None}, "name the sites that are data"),
        ({"observed": ["z"]}, "`observed` must name sample sites"),
        ({"observed": ["twice"]}, "`observed` must name sample sites"),
        ({"var_names": ["z"]}, "`var_names` must be among"),
        ({"quantities": {"mu": len}}, "names of their own"),
        ({"model": with_factor}, "are factors"),
        ({"model": nothing_latent}, "no latent sites"),
        ({"simulator": nothing_latent}, "lacks \\['mu'\\]"),
        ({"num_simulations": 19}, "`num_simulations`"),
        ({"thinning": 101}, "`thinning`"),
        ({"level": 1.0}, "`level`"),
        ({"prior": {"mu": np.zeros(3)}}, "must lead with num_simulations"),
        ({"prior": {"mu": np.full(100, np.nan)}}, "non-finite"),
    ],
)
def test_misuse_is_named_before_anything_runs(key, settings, message):
    with pytest.raises(ValueError, match=message):
        exact(key, **settings)


def without_log_z(y=None):
    w = numpyro.sample("w", dist.LogNormal(0.0, 1.0))
    energy = ebm.FunctionEnergy(sech, (DIM,), w)
    numpyro.sample("y", ebm.EnergyDistribution(energy, sampler=draw_sech), obs=y)


def test_a_missing_log_z_is_refused_before_anything_runs(key):
    with pytest.raises(ebm.MissingLogNormalizerError, match="depends on 'w'"):
        calibrate(without_log_z, ebm.BlackJAXKernel, key=key, observed=["y"])


def test_a_kernel_must_be_one(key):
    with pytest.raises(TypeError, match="must be a numpyro"):
        calibrate(location, lambda model: model, key=key, observed=["y"])


def test_data_of_the_call_name_the_observed_sites_and_are_forgotten(key):
    settings = {"num_simulations": 20, "num_samples": 20}
    named = exact(key, **settings)
    called = exact(key, observed=None, model_args=(jnp.array(3.0),), **settings)
    np.testing.assert_array_equal(named.ranks, called.ranks)


# --- an energy prior whose log Z matters ------------------------------------------------------------------------------

DIM = 4


def sech(w, x):
    return jnp.sum(jnp.logaddexp(w * x, -w * x))


def draw_sech(energy, key, sample_shape):
    """By inversion of the distribution function, 2 / pi atan(exp(w x))."""
    return jnp.log(jnp.tan(jnp.pi / 2 * jax.random.uniform(key, sample_shape + energy.event_shape))) / energy.params


def energy_prior(y=None, exponent=1.0):
    """Z(w) = (pi / 2w)^d; with another exponent of w log Z is wrong, and nothing but SBC sees it."""
    w = numpyro.sample("w", dist.LogNormal(0.0, 0.5))
    log_z = DIM * (np.log(np.pi / 2) - exponent * jnp.log(w))
    energy = ebm.FunctionEnergy(sech, (DIM,), w)
    x = numpyro.sample("x", ebm.EnergyDistribution(energy, log_normalizer=log_z, sampler=draw_sech))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def study(key, kernel, exponent, **settings):
    settings = {"observed": ["y"], "progress_bar": False, "model_kwargs": {"exponent": exponent}} | settings
    return calibrate(energy_prior, kernel, key=key, **settings)


@pytest.mark.parametrize("exponent", [1.0, 0.0], ids=["right", "wrong"])
def test_a_wrong_log_z_is_found(key, exponent):
    kernel = functools.partial(RandomWalk, scales={"w": 0.5, "x": 0.5})
    result = study(key, kernel, exponent, num_simulations=80, num_warmup=150, num_samples=1000)
    assert not result.problems, result
    if exponent == 1.0:
        assert result.p_value > 0.001
    else:
        assert p_values(result)["w"] < 1e-3
        assert float(result.table["mean_pit"].sel(quantity="w")) > 0.6  # draws of w are too small


KERNELS = {
    "MALA": ebm.BlackJAXKernel,
    "HMC": functools.partial(ebm.BlackJAXKernel, kernel=ebm.HMC()),
    "NUTS of NumPyro": NUTS,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("exponent", [1.0, 0.8, 0.0])
def test_a_wrong_log_z_is_found_by_every_kernel(key, name, exponent):
    """0.8: log Z off by a fifth; 0: left out altogether."""
    result = study(key, KERNELS[name], exponent, num_simulations=1000, num_samples=1000)
    rounded = {label: float(f"{p:.2g}") for label, p in p_values(result).items()}
    print(name, exponent, f"p = {result.p_value:.2g}", f"num_draws = {result.num_draws}", rounded)  # noqa: T201
    assert not result.problems
    assert (result.p_value > 0.001) == (exponent == 1.0)


@pytest.mark.slow
def test_right_models_are_rejected_at_the_level():
    """400 studies of 50 simulations of the conjugate model, in one program, each judged by itself as a family."""
    result = exact(jax.random.key(5), num_simulations=20_000)
    studies = result.ranks.reshape(400, 50, -1)
    single = [[uniformity_p_value(column, result.num_draws)[0] for column in study.T] for study in studies]
    found = np.array([holm(np.array(row)).min() for row in single])
    print({level: float(np.mean(found < level)) for level in (0.01, 0.05, 0.1)}, result.num_draws)  # noqa: T201
    for level in (0.01, 0.05, 0.1):
        assert np.count_nonzero(found < level) <= stats.binom.isf(0.0005, 400, level)


def test_kernels_without_correction_are_not_calibrated():
    def model(y=None):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    def unadjusted(model):
        return ebm.BlackJAXKernel(model, kernel=ebm.ULA(0.1))

    for study in (ebm.infer.simulation_based_calibration, ebm.infer.geweke_joint_test):
        with pytest.raises(ValueError, match="`kernel` must leave its target exactly invariant"):
            study(model, unadjusted, key=jax.random.key(0), observed=["y"])
