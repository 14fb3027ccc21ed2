"""`ExchangeKernel` against posteriors that quadrature, enumeration or conjugacy give, and against its own misuse."""

import functools
import itertools

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import NUTS, Gibbs
from scipy import special

import ebm_ppl as ebm
from ebm_ppl.infer._auxiliary import EnergySite
from tests.infer.models import half_square, run
from tests.statistics import StatisticalError, assert_mean_close

# --- Gaussian precision: Gamma(7, 7.25) -------------------------------------------------------------------------------

Y = jnp.sqrt(1.25) * jnp.array([1.0, -1.0] * 5)
MEAN, VARIANCE = 7 / 7.25, 7 / 7.25**2


def precision_model(y, log_normalizer=None, sampler=None):
    w = numpyro.sample("w", dist.Gamma(2.0, 1.0))
    energy = ebm.FunctionEnergy(half_square, (), w)
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", ebm.EnergyDistribution(energy, log_normalizer=log_normalizer, sampler=sampler), obs=y)


def draw_normal(energy, key, sample_shape):
    return jax.random.normal(key, sample_shape) / jnp.sqrt(energy.params)


exactly = functools.partial(precision_model, sampler=draw_normal)
ROUTES = {
    "double Metropolis-Hastings": (precision_model, {"inner_kernel": ebm.Barker(0.5), "num_inner_steps": 40}),
    "bridged": (precision_model, {"inner_kernel": ebm.Barker(0.5), "num_inner_steps": 40, "num_bridges": 3}),
    "exact draws": (exactly, {}),
}
SLOW = {"bridged"}


def assert_posterior(draws, mean, variance):
    draws = np.asarray(draws, float)
    assert_mean_close(draws, mean)
    assert_mean_close((draws - mean) ** 2, variance)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ROUTES]
)
def gaussian(request):
    model, settings = ROUTES[request.param]
    return run(ebm.ExchangeKernel(model, **settings), Y, key=1, num_samples=1500)


def test_gaussian_precision(gaussian):
    """Means, variances; and everything ArviZ asks for, with a verdict."""
    draws = gaussian.get_samples(group_by_chain=True)["w"]
    assert_posterior(draws, MEAN, VARIANCE)
    tree = az.from_numpyro(gaussian)
    assert {"lp", "acceptance_rate", "auxiliary_acceptance_rate", "auxiliary_memory"} <= set(tree.sample_stats)
    report = ebm.diagnose(tree)
    assert not {"AUXILIARY_NOT_MIXED", "AUXILIARY_REJECTED", "DIVERGED", "R_HAT"} & set(report.codes), repr(report)


def test_warm_up_of_the_inner_chains_ends_with_warm_up(gaussian):
    """New coordinates in warm-up do not start it anew: then inner steps were tuned, and memory unseen, in the draws."""
    state = gaussian.last_state
    np.testing.assert_array_equal(state.chain.inner.num_transitions, state.i)
    memory = np.asarray(gaussian.get_extra_fields(group_by_chain=True)["auxiliary_memory"])
    has_inner_chains = gaussian.sampler._inner_kernel is not None
    assert (np.isfinite(memory[:, 100:]) == has_inner_chains).all()  # exact draws have nothing to remember


def test_the_naive_posterior_fails():
    """The twin: log Z passed off as constant. Gamma(2, 7.25) instead."""
    mcmc = run(ebm.BlackJAXKernel(functools.partial(precision_model, log_normalizer=0.0)), Y, num_samples=500)
    draws = mcmc.get_samples(group_by_chain=True)["w"]
    with pytest.raises(StatisticalError):
        assert_posterior(draws, MEAN, VARIANCE)
    assert_posterior(draws, 2 / 7.25, 2 / 7.25**2)


@pytest.mark.parametrize(
    ("inner", "code"),
    [
        (ebm.MALA(1e-4), "AUXILIARY_NOT_MIXED"),
        pytest.param(ebm.MALA(300.0), "AUXILIARY_REJECTED", marks=pytest.mark.slow),
    ],
)
def test_bad_inner_chains_are_wrong_and_reported(inner, code):
    """Too small a step: the data cancel themselves, and the prior Gamma(2, 1) comes out. Too large: nothing moves."""
    kernel = ebm.ExchangeKernel(precision_model, inner_kernel=inner, num_inner_steps=10, tune_inner=False)
    mcmc = run(kernel, Y, num_samples=500, num_warmup=100)
    if code == "AUXILIARY_NOT_MIXED":
        draws = mcmc.get_samples(group_by_chain=True)["w"]
        with pytest.raises(StatisticalError):
            assert_posterior(draws, MEAN, VARIANCE)
    report = ebm.diagnose(az.from_numpyro(mcmc))
    assert not report.ok
    assert code in report.codes


# --- Conway-Maxwell-Poisson: two parameters, exact draws by inversion -------------------------------------------------

COUNTS = jnp.array([0, 1, 1, 2, 2, 2, 3, 3, 4, 5])
LARGEST = 60


def poisson_energy(params, y):
    return -y * params["log_rate"] + params["dispersion"] * jax.scipy.special.gammaln(y + 1)


def draw_count(energy, key, sample_shape):
    log_p = -jax.vmap(energy)(jnp.arange(LARGEST, dtype=jnp.float32))
    return jax.random.categorical(key, log_p, shape=sample_shape).astype(jnp.float32)


def conway_maxwell_poisson(y):
    log_rate = numpyro.sample("log_rate", dist.Normal(0.0, 1.0))
    dispersion = numpyro.sample("dispersion", dist.LogNormal(0.0, 0.5))
    energy = ebm.FunctionEnergy(poisson_energy, (), {"log_rate": log_rate, "dispersion": dispersion})
    support = dist.constraints.nonnegative_integer
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", ebm.EnergyDistribution(energy, support=support, sampler=draw_count), obs=y)


def quadrature_moments():
    log_rate, log_dispersion = np.meshgrid(np.linspace(-4, 6, 401), np.linspace(-3, 3, 301), indexing="ij")
    dispersion, y = np.exp(log_dispersion), np.arange(LARGEST)
    terms = y * log_rate[..., None] - dispersion[..., None] * special.gammaln(y + 1)
    log_z = special.logsumexp(terms, axis=-1)
    counts = np.asarray(COUNTS)
    log_p = log_rate * counts.sum() - dispersion * special.gammaln(counts + 1).sum() - len(counts) * log_z
    log_p += -(log_rate**2) / 2 - log_dispersion**2 / (2 * 0.5**2)
    weight = np.exp(log_p - special.logsumexp(log_p))
    means = [(weight * x).sum() for x in (log_rate, dispersion)]
    return means, [(weight * (x - mean) ** 2).sum() for x, mean in zip((log_rate, dispersion), means, strict=True)]


def test_conway_maxwell_poisson():
    """Shmueli et al. (2005), A useful distribution for fitting discrete data, doi:10.1111/j.1467-9876.2005.00474.x."""
    mcmc = run(ebm.ExchangeKernel(conway_maxwell_poisson), COUNTS, num_samples=2000)
    for site, mean, variance in zip(("log_rate", "dispersion"), *quadrature_moments(), strict=True):
        assert_posterior(mcmc.get_samples(group_by_chain=True)[site], mean, variance)


# --- the 4 x 4 Ising model, enumerated --------------------------------------------------------------------------------


def bonds(spins):
    return (spins[..., 1:, :] * spins[..., :-1, :]).sum((-2, -1)) + (spins[..., 1:] * spins[..., :-1]).sum((-2, -1))


def ising_energy(coupling, spins):
    return -coupling * bonds(spins)


def ising(lattices, prior=0.5):
    coupling = numpyro.sample("coupling", dist.Normal(0.0, prior))
    with numpyro.plate("n", len(lattices)):
        numpyro.sample("s", ebm.EnergyDistribution(ebm.FunctionEnergy(ising_energy, (4, 4), coupling)), obs=lattices)


@pytest.fixture(scope="module")
def enumerated():
    """Three lattices drawn exactly at coupling .4, and the moments of their posterior."""
    states = np.array(list(itertools.product([-1, 1], repeat=16)), np.int8).reshape(-1, 4, 4)
    counts = bonds(states.astype(int))
    p = np.exp(0.4 * counts)
    lattices = states[np.random.default_rng(5).choice(len(states), 3, p=p / p.sum())]
    values, multiplicity = np.unique(counts, return_counts=True)
    grid = np.linspace(-2, 2.5, 4001)
    log_z = special.logsumexp(grid[:, None] * values + np.log(multiplicity), axis=1)
    log_p = grid * bonds(lattices.astype(int)).sum() - 3 * log_z - grid**2 / (2 * 0.5**2)
    weight = np.exp(log_p - special.logsumexp(log_p))
    mean = (weight * grid).sum()
    return jnp.asarray(lattices, jnp.float32), mean, (weight * (grid - mean) ** 2).sum()


def test_ising(enumerated):
    lattices, mean, variance = enumerated
    kernel = ebm.ExchangeKernel(ising, inner_kernel=ebm.kernels.BinaryGibbs(), num_inner_steps=20)
    mcmc = run(kernel, lattices, num_samples=1500)
    assert_posterior(mcmc.get_samples(group_by_chain=True)["coupling"], mean, variance)
    assert "AUXILIARY_NOT_MIXED" not in ebm.diagnose(az.from_numpyro(mcmc)).codes


# --- beside other kernels, and what is refused ------------------------------------------------------------------------


@pytest.mark.slow
def test_as_a_block_beside_nuts():
    """Location by NUTS, precision by exchange: y - m ~ N(0, 1/w), the joint posterior by quadrature."""

    def square(params, y):
        return params["w"] * (y - params["m"]) ** 2 / 2

    def model(y):
        w = numpyro.sample("w", dist.Gamma(2.0, 1.0))
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        energy = ebm.FunctionEnergy(square, (), {"w": w, "m": m})
        numpyro.sample("y", ebm.EnergyDistribution(energy, constant_log_normalizer_in="m").expand([10]), obs=y)

    data = Y + 0.5
    exchange = ebm.ExchangeKernel(model, inner_kernel=ebm.Barker(0.5), num_inner_steps=40)
    mcmc = run(Gibbs([(exchange, ["w"]), (NUTS(model), None)]), data, num_samples=1500, chain_method=jax.vmap)
    w, m = np.meshgrid(np.linspace(1e-3, 5, 600), np.linspace(-2, 3, 601), indexing="ij")
    squares = ((np.asarray(data)[:, None, None] - m) ** 2).sum(0)
    log_p = 6 * np.log(w) - w - w * squares / 2 - m**2 / 2
    weight = np.exp(log_p - special.logsumexp(log_p))
    samples = mcmc.get_samples(group_by_chain=True)
    for site, grid in (("w", w), ("m", m)):
        mean = (weight * grid).sum()
        assert_posterior(samples[site], mean, (weight * (grid - mean) ** 2).sum())


def latent_energy(y):
    w = numpyro.sample("w", dist.Gamma(2.0, 1.0))
    numpyro.sample("x", ebm.EnergyDistribution(ebm.FunctionEnergy(half_square, (), w)))


def scaled(y):
    with numpyro.handlers.scale(scale=2.0):
        precision_model(y)


def no_sampler(y):
    precision_model(y)


def nothing_to_do(y):
    precision_model(y, log_normalizer=0.0)


@pytest.mark.parametrize(
    ("model", "settings", "error", "message"),
    [
        (latent_energy, {"inner_kernel": ebm.MALA()}, NotImplementedError, "two blocks"),
        (scaled, {"inner_kernel": ebm.MALA()}, NotImplementedError, "scaled"),
        (no_sampler, {}, NotImplementedError, "sampler"),
        (nothing_to_do, {"inner_kernel": ebm.MALA()}, ValueError, "BlackJAXKernel"),
        (exactly, {"num_bridges": 2}, ValueError, "`inner_kernel`"),
        (exactly, {"inner_kernel": "mala"}, TypeError, "`inner_kernel`"),
        (exactly, {"min_inner_acceptance": 1.0}, ValueError, "`min_inner_acceptance`"),
        (exactly, {"num_inner_steps": 0}, ValueError, "`num_inner_steps`"),
    ],
)
def test_misuse_is_refused(model, settings, error, message):
    with pytest.raises(error, match=message):
        run(ebm.ExchangeKernel(model, **settings), Y, num_warmup=2, num_samples=2)


@pytest.mark.slow
def test_masked_and_batched_events_count_as_they_should():
    """Masked events must drop out of the auxiliary data as well: the posterior is that of the other five."""

    def masked(y):
        w = numpyro.sample("w", dist.Gamma(2.0, 1.0))
        energy = ebm.EnergyDistribution(ebm.FunctionEnergy(half_square, (), w), sampler=draw_normal)
        numpyro.sample("y", energy.expand([2, 5]).to_event(1).mask(jnp.array([True, False])), obs=y)

    missing = Y.reshape(2, 5).at[1].set(jnp.nan)  # what is masked out may be anything
    mcmc = run(ebm.ExchangeKernel(masked), missing, num_warmup=150, num_samples=1000)
    rate = 1 + 5 * 1.25 / 2
    assert_posterior(mcmc.get_samples(group_by_chain=True)["w"], 4.5 / rate, 4.5 / rate**2)
    inner = ebm.ExchangeKernel(masked, inner_kernel=ebm.MALA(0.5), num_inner_steps=20)
    mcmc = run(inner, missing, num_warmup=50, num_samples=200)
    assert np.isfinite(mcmc.get_extra_fields()["auxiliary_memory"][-1])


def quartic(p, x):
    return p * x**2 / 2 + x**4 / 4


@pytest.mark.slow
def test_light_tails_where_tuning_every_inner_chain_by_itself_was_wrong():
    """Chains that start far out then learnt the worst step sizes, and kept their x^2: a mean 8 MCSE too low."""
    x, step = np.linspace(-6, 6, 2001, retstep=True)
    p = np.linspace(-1, 5, 1201)
    log_z = special.logsumexp(-quartic(p[:, None], x), axis=1) + np.log(step)
    distribution = np.exp(-quartic(1.5, x)).cumsum()
    y = np.interp((np.arange(150) + 0.5) / 150, distribution / distribution[-1], x)
    log_posterior = -(p**2) / 18 - quartic(p[:, None], y).sum(1) - 150 * log_z
    weight = np.exp(log_posterior - special.logsumexp(log_posterior))
    mean = weight @ p

    def model(y):
        p = numpyro.sample("p", dist.Normal(0.0, 3.0))
        with numpyro.plate("n", 150):
            numpyro.sample("y", ebm.EnergyDistribution(ebm.FunctionEnergy(quartic, (), p)), obs=y)

    def draws(**settings):
        kernel = ebm.ExchangeKernel(model, inner_kernel=ebm.MALA(0.3), **settings)
        mcmc = run(kernel, jnp.asarray(y, jnp.float32), num_samples=1500)
        return mcmc.get_samples(group_by_chain=True)["p"]

    assert_posterior(draws(num_inner_steps=30), mean, weight @ (p - mean) ** 2)
    with pytest.raises(StatisticalError):
        assert_posterior(draws(num_inner_steps=2), mean, weight @ (p - mean) ** 2)


def test_masked_events_have_no_part_in_what_the_inner_chains_report():
    distribution = ebm.EnergyDistribution(ebm.FunctionEnergy(jnp.square, ()), log_normalizer=0.0)
    site = EnergySite(distribution, jnp.zeros(3), jnp.array([True, False, True]))
    np.testing.assert_allclose(site.mean(jnp.array([0.2, jnp.nan, 0.6])), 0.4)
    np.testing.assert_array_equal(site.counted(jnp.full((3, 2), jnp.nan).at[::2].set(1), event_dim=1)[:, 0], [1, 0, 1])


def test_inner_kernels_without_correction_are_refused():
    with pytest.raises(ValueError, match="`inner_kernel` must leave its target exactly invariant, which ULA does not"):
        ebm.ExchangeKernel(lambda: None, inner_kernel=ebm.ULA(0.1))
