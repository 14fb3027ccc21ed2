"""Draws of energies by chains and by tempering, against exact laws; what fails is NaN, and named."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer import Predictive
from scipy import special, stats

import ebm_ppl as ebm
from ebm_ppl.distributions import ChainSampler, TemperedSampler
from tests.statistics import StatisticalError, assert_close, assert_iid_mean_close

SHORT = ChainSampler(num_warmup=100, num_steps=40)
HASTY = ChainSampler(ebm.MALA(0.01), num_warmup=0, num_steps=2)
ALPHA = np.array([2.0, 3.0, 4.0])


def gamma(x):
    """Gamma(3, 1)."""
    return x - 2 * jnp.log(x)


def dirichlet(alpha, x):
    return -jnp.sum((alpha - 1) * jnp.log(x))


def von_mises(x):
    """A tenth of the mass lies beyond the cut at pi."""
    return -6 * jnp.cos(x - 2.6)


def modes(x):
    """3/4 N(-4, 1) + 1/4 N(4, 1), times an unknown constant."""
    return -jnp.logaddexp(-((x - 4) ** 2) / 2, jnp.log(3.0) - (x + 4) ** 2 / 2)


def with_squares(x):
    x = np.asarray(x, float).reshape(len(x), -1)
    return np.concatenate([x, x**2], axis=1)


def ordered_means(number, low):
    """Means of the ordered ones of `number` (half-)normals, by quadrature; `low` is -inf for normals, 0 for half."""
    x, step = np.linspace(max(low, -12), 12, 200_001, retstep=True)
    density = stats.norm.pdf(x) / stats.norm.sf(low)
    below = (stats.norm.cdf(x) - stats.norm.cdf(low)) / stats.norm.sf(low)
    weights = [number * special.comb(number - 1, k) * below**k * (1 - below) ** (number - 1 - k) for k in range(number)]
    return [float(np.sum(x * density * weight) * step) for weight in weights]


TOTAL = ALPHA.sum()
CASES = {
    "gamma": (ebm.FunctionEnergy(gamma, ()), constraints.positive, with_squares, [3.0, 12.0]),
    "dirichlet": (
        ebm.FunctionEnergy(dirichlet, (3,), jnp.asarray(ALPHA, float)),
        constraints.simplex,
        lambda x: with_squares(x)[:, [0, 1, 3, 4]],
        [*(ALPHA / TOTAL)[:2], *(ALPHA * (ALPHA + 1) / TOTAL / (TOTAL + 1))[:2]],
    ),
    "von Mises": (
        ebm.FunctionEnergy(von_mises, ()),
        constraints.circular,
        lambda x: np.stack([np.cos(x - 2.6), np.sin(x - 2.6)], axis=1),
        [special.i1(6) / special.i0(6), 0.0],
    ),
    "ordered": (  # the smaller and the larger of two standard normals
        ebm.FunctionEnergy(lambda x: jnp.sum(x**2) / 2, (2,)),
        constraints.ordered_vector,
        with_squares,
        [-1 / np.sqrt(np.pi), 1 / np.sqrt(np.pi), 1.0, 1.0],
    ),
    "positive and ordered": (
        ebm.FunctionEnergy(lambda x: jnp.sum(x**2) / 2, (3,)),
        constraints.positive_ordered_vector,
        lambda x: np.asarray(x, float),
        ordered_means(3, 0.0),
    ),
    "normal": (
        ebm.energies.Gaussian(jnp.array([1.0, -2.0]), jnp.array([[2.0, 0.5], [0.5, 1.0]])),
        constraints.real,
        with_squares,
        [1.0, -2.0, 3.0, 5.0],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_chains_draw_from_the_exact_law_and_too_few_steps_do_not(name, key):
    energy, support, moments, truth = CASES[name]

    def draw(sampler):
        return ebm.EnergyDistribution(energy, support=support, sampler=sampler).sample(key, (4000,))

    good = draw(SHORT)
    assert good.shape == (4000, *energy.event_shape)
    assert_iid_mean_close(moments(good), truth)
    if name in ("gamma", "dirichlet"):
        with pytest.raises(StatisticalError):
            assert_iid_mean_close(moments(draw(HASTY)), truth)


def test_without_the_jacobian_the_law_would_be_another(key):
    def twin(energy, key, sample_shape):
        return jnp.exp(SHORT(ebm.FunctionEnergy(lambda u: energy(jnp.exp(u)), ()), key, sample_shape))

    draws = ebm.EnergyDistribution(CASES["gamma"][0], support=constraints.positive, sampler=twin).sample(key, (4000,))
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(draws, 3.0)
    assert_iid_mean_close(draws, 2.0)  # Gamma(2, 1): the density of log x, taken for that of x


def test_chains_that_cannot_cross_the_cut_of_the_circle_draw_another_law(key):
    """What NumPyro's bijection onto (-pi, pi) would give; and a pair of angles."""
    energy, support, moments, truth = CASES["von Mises"]
    cut = constraints.interval(-np.pi, np.pi)
    draws = ebm.EnergyDistribution(energy, support=cut, sampler=SHORT).sample(key, (4000,))
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(moments(draws), truth)
    pair = ebm.FunctionEnergy(lambda x: jnp.sum(von_mises(x)), (2,))
    draws = ebm.EnergyDistribution(pair, support=support, sampler=SHORT).sample(key, (4000,))
    assert draws.shape == (4000, 2)
    assert_iid_mean_close(moments(draws[:, 0]), truth)
    assert_iid_mean_close(moments(draws[:, 1]), truth)


def test_a_few_long_chains_draw_too(key):
    energy, support, moments, truth = CASES["gamma"]
    sampler = ChainSampler(num_warmup=100, num_steps=40, num_chains=50)
    draws = sampler(energy, key, (2, 2000), support=support)
    assert draws.shape == (2, 2000)
    assert_iid_mean_close(moments(draws.ravel()), truth)
    assert len(np.unique(draws)) > 3990  # no draw is handed out twice


def test_tempering_weighs_modes_and_chains_alone_do_not(key):
    energy = ebm.FunctionEnergy(modes, ())
    tempered = TemperedSampler(ebm.Barker(), 6, num_warmup=30, num_iterations=20)
    alone = ChainSampler(ebm.MALA(0.5), num_warmup=100, num_steps=40)
    left = [
        np.asarray(ebm.EnergyDistribution(energy, sampler=sampler).sample(key, (1000,)) < 0, float)
        for sampler in (tempered, alone)
    ]
    assert_iid_mean_close(left[0], 0.75)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(left[1], 0.75)
    draws = tempered.draws(energy, key=key, num_draws=60)
    assert draws.ok, draws
    value, error = draws.tempering.log_normalizer
    assert_close(value, np.log(4 * np.sqrt(2 * np.pi)), error)
    with pytest.warns(ebm.SamplingWarning, match="CORRELATED_DRAWS"):
        assert not alone.draws(energy, key=key).ok


# --- in programs ------------------------------------------------------------------------------------------------------


def precision(x, condition):
    return condition * x**2 / 2


def test_batches_conditions_jit_and_keys_of_both_kinds(key):
    scales = jnp.array([0.25, 1.0, 4.0])
    energy = ebm.FunctionEnergy(precision, (), condition_shape=())
    prior = ebm.EnergyDistribution(energy, condition=scales, sampler=SHORT)
    draws = prior.sample(key, (1000,))
    assert draws.shape == (1000, 3)
    assert_iid_mean_close(np.asarray(draws) ** 2, 1 / np.asarray(scales))
    jitted = jax.jit(lambda prior, key: prior.sample(key, (1000,)))(prior, jax.random.key_data(key))
    np.testing.assert_allclose(jitted, draws, rtol=2e-2, atol=2e-2)  # rounding, carried through 140 transitions
    assert prior.sample(key, (0,)).shape == (0, 3)


@pytest.mark.usefixtures("numpyro_rules")
def test_prior_predictive_of_a_hierarchy_serial_and_parallel():
    def model():
        w = numpyro.sample("w", dist.Gamma(6.0, 2.0))
        energy = ebm.FunctionEnergy(lambda x: w * x**2 / 2, ())  # closes over a latent variable
        x = numpyro.sample("x", ebm.EnergyDistribution(energy, log_normalizer=-jnp.log(w) / 2, sampler=SHORT))
        numpyro.sample("y", dist.Normal(x, 0.1))

    key = jax.random.PRNGKey(1)
    for parallel, number in ((False, 60), (True, 2000)):
        draws = Predictive(model, num_samples=number, parallel=parallel)(key)
        assert_iid_mean_close(np.asarray(draws["x"]) ** 2 * np.asarray(draws["w"]), 1.0)
        assert_iid_mean_close(np.asarray(draws["y"]) - np.asarray(draws["x"]), 0.0)


def test_without_a_sampler_it_refuses_and_says_how(key):
    with pytest.raises(NotImplementedError, match=r"sampler=ebm\.distributions\.ChainSampler\(\)"):
        ebm.EnergyDistribution(ebm.FunctionEnergy(gamma, ()), support=constraints.positive).sample(key)


# --- failures ---------------------------------------------------------------------------------------------------------


def walled(x):
    return jnp.where(jnp.sum(x) > -1, jnp.sum(x**2), jnp.nan)


def test_draws_of_failed_chains_are_nan_and_named(key):
    quadratic = ebm.FunctionEnergy(lambda x: jnp.sum(x**2) / 2, (2,))
    frozen = ChainSampler(ebm.MALA(1e4), num_warmup=0, num_steps=30, precondition="none")
    assert np.isnan(frozen(quadratic, key, (3,))).all()
    with pytest.warns(ebm.SamplingWarning):
        draws = frozen.draws(quadratic, key=key, num_draws=20)
    assert {problem.code for problem in draws.problems} == {"ZERO_ACCEPTANCE"}
    assert not ebm.diagnose(draws).ok
    diverging = ChainSampler(ebm.ULA(5.0), num_warmup=0, num_steps=50)
    assert np.isnan(diverging(quadratic, key, (3,))).all()
    never = ebm.FunctionEnergy(lambda x: jnp.sum(x) * jnp.nan, (2,))
    assert np.isnan(SHORT(never, key, (3,))).all()
    assert np.isfinite(SHORT(ebm.FunctionEnergy(walled, (2,)), key, (200,))).all()  # starts are sought inside


def test_a_proposal_that_is_refused_is_no_failure(key):
    """A transition or two between draws: to drop those that accept little would drop the tails, or half of all."""
    energy, support, moments, truth = CASES["gamma"]
    for num_chains in (None, 500):
        sampler = ChainSampler(ebm.RandomWalk(), num_warmup=200, num_steps=1, num_chains=num_chains)
        draws = sampler(energy, key, (4000,), support=support)
        assert np.isfinite(draws).all()
        if num_chains is None:
            assert_iid_mean_close(moments(draws), truth)
    frozen = ChainSampler(ebm.MALA(1e4), num_warmup=0, num_steps=1, num_chains=5, precondition="none")
    assert np.isnan(frozen(ebm.FunctionEnergy(lambda x: jnp.sum(x**2) / 2, (2,)), key, (150,))).all()


def test_barker_climbs_out_of_steep_tails(key):
    """A Gumbel law far from where chains start: exp(8) nats there, and a gradient of as much."""
    energy = ebm.FunctionEnergy(lambda x: x - 6 + jnp.exp(6 - x), ())
    draws = SHORT(energy, key, (2000,))
    assert_iid_mean_close(draws, 6 + np.euler_gamma)
    assert_iid_mean_close((draws - 6 - np.euler_gamma) ** 2, np.pi**2 / 6)
    stopped = ChainSampler(ebm.MALA(2.0), num_warmup=0, num_steps=40)
    share = np.isnan(stopped(energy, key, (2000,))).mean()
    assert share > 0.5  # they never left


def test_the_same_chains_looked_at(key):
    energy, support, _, _ = CASES["dirichlet"]
    draws = SHORT.draws(energy, key=key, num_draws=150, support=support)
    assert draws.ok
    np.testing.assert_allclose(draws.positions.sum(-1), 1.0, rtol=1e-5)
    assert ebm.diagnose(draws, energy).ok  # lp is -E on the support, without any Jacobian
    tree = ebm.to_datatree(draws, group="prior")
    assert set(tree.children) == {"prior", "sample_stats_prior"}
    stalling = ChainSampler(ebm.MALA(0.5), num_warmup=100, num_steps=40)
    with pytest.warns(ebm.SamplingWarning, match="STALLED_DRAWS"):
        steep = stalling.draws(CASES["ordered"][0], key=key, num_chains=100, num_draws=20, support=CASES["ordered"][1])
    assert "STALLED_DRAWS" in {problem.code for problem in steep.problems}
    slow = ChainSampler(ebm.MALA(0.05), num_warmup=0, num_steps=2)
    with pytest.warns(ebm.SamplingWarning, match="CORRELATED_DRAWS"):
        assert "CORRELATED_DRAWS" in str(slow.draws(energy, key=key, num_draws=150, support=support))


def test_a_ladder_without_round_trips_is_named(key):
    far = ebm.FunctionEnergy(lambda x: 500 * (x - 30) ** 2, ())
    with pytest.warns(ebm.SamplingWarning):
        draws = TemperedSampler(inverse_temperatures=2, num_warmup=0, num_iterations=2).draws(
            far, key=key, num_draws=20
        )
    assert "NO_ROUND_TRIPS" in {problem.code for problem in draws.problems}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ChainSampler("nuts"), TypeError, "`kernel` must be an ebm.AbstractKernel"),
        (lambda: ChainSampler(ebm.MALA), TypeError, r"got the class MALA: make an instance, MALA\(...\)"),
        (lambda: ChainSampler(num_steps=0), ValueError, "`num_steps`"),
        (lambda: ChainSampler(num_warmup=-1), ValueError, "`num_warmup`"),
        (lambda: ChainSampler(num_chains=0), ValueError, "`num_chains`"),
        (lambda: ChainSampler(precondition="full"), ValueError, "`precondition`"),
        (lambda: TemperedSampler(inverse_temperatures=(0.1, 1.0)), ValueError, "`inverse_temperatures`"),
        (lambda: TemperedSampler(num_iterations=0), ValueError, "`num_iterations`"),
        (lambda: TemperedSampler(reference=ebm.MALA()), TypeError, "`reference` must be"),
    ],
)
def test_misuse_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_cannot_be_drawn_is_refused(key):
    with pytest.raises(NotImplementedError, match="bijection"):
        SHORT(ebm.FunctionEnergy(gamma, ()), key, support=constraints.boolean)
    wide = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    with pytest.raises(ebm.EnergyShapeError, match="event_shape of the energy"):
        TemperedSampler(reference=wide)(ebm.FunctionEnergy(gamma, ()), key)
    bounds = constraints.greater_than(jnp.zeros(3))
    with pytest.raises(ebm.EnergyShapeError, match="one event"):
        SHORT(ebm.FunctionEnergy(gamma, ()), key, support=bounds)


def test_samplers_are_hashable_and_equal_ones_are_one():
    assert hash(ChainSampler()) == hash(ChainSampler())
    assert ChainSampler() == ChainSampler()
    assert TemperedSampler() == TemperedSampler()
    assert ChainSampler(num_steps=5) != ChainSampler()
