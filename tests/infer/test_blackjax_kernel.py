"""`BlackJAXKernel`: the laws it samples, and everything `MCMC` can ask of a kernel.

Every run compiles three programs, so runs are shared where that does not hide anything.
"""

import os
import pickle
import subprocess
import sys
import textwrap

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Gibbs

import ebm_ppl as ebm
from tests.broken_kernels import BrokenMALA
from tests.foreign import standard_promotion
from tests.infer.models import (
    DATA,
    EFFECTS,
    assert_agree,
    eight_schools,
    latent_precision,
    logistic_regression,
    normal_mean,
    regression_data,
    run,
)
from tests.statistics import StatisticalError, assert_mean_close

PRECISION = 0.25 + len(DATA)
MEAN = float(DATA.sum()) / PRECISION
STATS = {"lp", "acceptance_rate", "step_size", "diverging", "nonfinite_proposal", "n_steps"}
NO_BAR = ("CI", "PYTEST_XDIST_WORKER")  # where NumPyro shows no progress bar


def small(kernel=None, precondition="none", **kwargs):
    settings = {"num_warmup": 150, "num_samples": 600, "num_chains": 2} | kwargs
    return run(ebm.BlackJAXKernel(normal_mean, kernel=kernel, precondition=precondition), DATA, **settings)


def assert_posterior(mcmc):
    samples = mcmc.get_samples(group_by_chain=True)
    draws = np.stack([samples["mu"], samples["sigma"]], -1)
    assert_mean_close(draws, [MEAN, 1.5])
    assert_mean_close((draws[..., 0] - MEAN) ** 2, 1 / PRECISION)
    np.testing.assert_allclose(samples["twice"], 2 * samples["mu"], rtol=1e-6)


# --- laws -------------------------------------------------------------------------------------------------------------

CASES = {
    "eight schools": (eight_schools, (EFFECTS,), ("mu", "tau", "theta")),
    "logistic regression": (logistic_regression, regression_data(), ("intercept", "slopes")),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    model, args, sites = CASES[request.param]
    with standard_promotion():
        return model, args, sites, run(NUTS(model), *args, key=1, num_warmup=400, num_samples=1000)


twin = pytest.mark.parametrize("case", ["logistic regression"], indirect=True)


@pytest.mark.optimized  # what four short warm-ups tune to depends on rounding
def test_agrees_with_nuts_of_numpyro_and_says_so_to_arviz(case):
    model, args, sites, reference = case
    mcmc = run(ebm.BlackJAXKernel(model), *args, num_warmup=500, num_samples=2500)
    assert_agree(mcmc, reference, sites)
    tree = az.from_numpyro(mcmc)
    assert set(tree.sample_stats.data_vars) >= STATS
    assert abs(float(tree.sample_stats["acceptance_rate"].mean()) - ebm.MALA().target_acceptance_rate) < 0.1
    potential = mcmc.get_extra_fields(group_by_chain=True)["potential_energy"]
    np.testing.assert_array_equal(tree.sample_stats["lp"], -potential)


@twin
def test_a_broken_kernel_does_not_agree(case):
    model, args, sites, reference = case
    broken = BrokenMALA(fault="no_correction")
    mcmc = run(ebm.BlackJAXKernel(model, kernel=broken, precondition="none"), *args, num_warmup=300, num_samples=2500)
    with pytest.raises(StatisticalError):
        assert_agree(mcmc, reference, sites)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [ebm.MALA(), ebm.HMC(), ebm.NUTS()])
@pytest.mark.parametrize("precondition", ["diagonal", "dense"])
def test_agrees_with_nuts_of_numpyro_at_length(case, kernel, precondition):
    model, args, sites, reference = case
    blackjax = ebm.BlackJAXKernel(model, kernel=kernel, precondition=precondition)
    assert_agree(run(blackjax, *args, num_warmup=1000, num_samples=20_000), reference, sites)


def gamma_moments():
    shape, rate = 2.0 + len(DATA) / 2, 1.0 + float(jnp.sum(DATA**2)) / 2
    return shape / rate, shape / rate**2


def test_the_posterior_of_a_latent_precision_is_the_conjugate_one():
    mcmc = run(ebm.BlackJAXKernel(latent_precision), DATA, num_samples=2500)
    w = np.asarray(mcmc.get_samples(group_by_chain=True)["w"])
    mean, variance = gamma_moments()
    assert_mean_close(np.stack([w, (w - mean) ** 2], -1), [mean, variance])


def test_without_log_z_the_posterior_of_a_latent_precision_is_another_one():
    """The same model as a potential, where nobody can see that log Z is missing: what the guard protects from."""

    def potential(z):
        w = jnp.exp(z)
        return -dist.Gamma(2.0, 1.0).log_prob(w) - z + w * jnp.sum(DATA**2) / 2

    kernel = ebm.BlackJAXKernel(potential_fn=potential)
    mcmc = run(kernel, num_samples=2500, init_params=jnp.zeros(4))
    w = np.exp(np.asarray(mcmc.get_samples(group_by_chain=True)))
    with pytest.raises(StatisticalError):
        assert_mean_close(w, gamma_moments()[0])
    assert_mean_close(w, 2.0 / (1.0 + float(jnp.sum(DATA**2)) / 2))  # as if no datum had been seen but their sum


def prior_energy(x):
    return 3 * x - jnp.log(x) + jnp.sin(4 * x)


def energy_prior(y):
    prior = ebm.EnergyDistribution(ebm.FunctionEnergy(prior_energy, ()), support=dist.constraints.positive)
    x = numpyro.sample("x", prior)
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_the_posterior_of_an_energy_prior_on_the_positive_half_line_is_that_of_quadrature():
    """No log Z is needed where the energy is fixed; the bijection's Jacobian is."""
    mcmc = run(ebm.BlackJAXKernel(energy_prior), DATA, num_samples=2500)
    tree = az.from_numpyro(mcmc, log_likelihood=True)
    assert tree.log_likelihood["y"].shape == (4, 2500, len(DATA))
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    grid = np.linspace(1e-6, 12, 200_001)
    log_prior = -(3 * grid - np.log(grid) + np.sin(4 * grid))
    log_posterior = log_prior - ((np.asarray(DATA)[:, None] - grid) ** 2).sum(0) / 2
    powers = np.stack([grid, grid**2])

    def expected(log_density):
        weights = np.exp(log_density - log_density.max())
        return (powers * weights).sum(1) / weights.sum()

    assert_mean_close(np.stack([x, x**2], -1), expected(log_posterior))
    for wrong in (log_prior, log_posterior - np.log(grid)):  # no data; no Jacobian
        with pytest.raises(StatisticalError):
            assert_mean_close(np.stack([x, x**2], -1), expected(wrong))


# --- what MCMC asks of a kernel ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectorized():
    with standard_promotion():
        return small(precondition="diagonal")


def assert_statistics(mcmc):
    fields = mcmc.get_extra_fields(group_by_chain=True)
    assert {fields[name].shape for name in STATS - {"lp"} | {"potential_energy"}} == {(2, 600)}
    assert_posterior(mcmc)


def test_vectorized_chains(vectorized):
    assert_statistics(vectorized)


@pytest.mark.parametrize(
    ("chain_method", "progress_bar"), [("sequential", False), ("sequential", True), ("vectorized", True)]
)
def test_other_chain_methods_with_and_without_progress_bar(chain_method, progress_bar, monkeypatch, capfd):
    for name in NO_BAR:
        monkeypatch.delenv(name, raising=False)
    assert_statistics(small(chain_method=chain_method, progress_bar=progress_bar))
    shown = capfd.readouterr().err
    assert ("750/750" in shown) == progress_bar
    assert ("acceptance rate 0." in shown) == (progress_bar and chain_method == "sequential")


def test_parallel_chains_with_and_without_progress_bar():
    """Needs two devices, so a process of its own."""
    program = """
        import jax, numpyro
        from numpyro.infer import MCMC
        import ebm_ppl as ebm
        from tests.infer.models import DATA, normal_mean
        for bar in (False, True):
            mcmc = MCMC(ebm.BlackJAXKernel(normal_mean), num_warmup=50, num_samples=100, num_chains=2,
                        chain_method="parallel", progress_bar=bar)
            mcmc.run(jax.random.key(0), DATA)
            draws = mcmc.get_samples(group_by_chain=True)["mu"]
            assert draws.shape == (2, 100) and len(draws.sharding.device_set) == 2, draws.sharding
            print(float(draws.mean()), float(mcmc.get_extra_fields()["acceptance_rate"].mean()))
    """
    environment = {name: value for name, value in os.environ.items() if name not in NO_BAR}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in done.stdout.splitlines():
        mean, rate = map(float, line.split())
        assert abs(mean - MEAN) < 0.3
        assert 0.3 < rate < 0.9


def test_resuming_and_pickling_are_bit_exact(vectorized):
    """600 draws are 200, and 400 of a copy that went through a file; the warm-up is not repeated."""
    mcmc = small(precondition="diagonal", num_samples=200)
    first = mcmc.get_samples(group_by_chain=True)["mu"]
    copy = pickle.loads(pickle.dumps(mcmc))
    np.testing.assert_array_equal(copy.get_samples(group_by_chain=True)["mu"], first)
    settings = {"num_samples": 400, "num_chains": 2, "chain_method": "vectorized", "progress_bar": False}
    rest = MCMC(copy.sampler, num_warmup=9999, **settings)
    rest.post_warmup_state = copy.last_state
    rest.run(copy.last_state.rng_key, DATA)
    both = np.concatenate([first, rest.get_samples(group_by_chain=True)["mu"]], 1)
    np.testing.assert_array_equal(both, vectorized.get_samples(group_by_chain=True)["mu"])


def test_extra_fields_and_refreshing_under_new_data():
    """BlackJAX's state caches log density and gradient: after a change of data a chain is frozen until refreshed."""
    kernel = ebm.BlackJAXKernel(normal_mean)
    mcmc = MCMC(kernel, num_warmup=50, num_samples=10, progress_bar=False)
    mcmc.run(jax.random.key(0), DATA, extra_fields=("z.sigma", "mean_acceptance_rate"))
    fields = mcmc.get_extra_fields()
    np.testing.assert_allclose(np.exp(fields["z.sigma"]), mcmc.get_samples()["sigma"], rtol=1e-5)
    np.testing.assert_allclose(fields["mean_acceptance_rate"][-1], fields["acceptance_rate"].mean(), rtol=1e-5)
    with pytest.raises(AttributeError, match="acceptance_rate"):
        _ = mcmc.last_state.acceptance
    stale, other = mcmc.last_state, DATA + 3.0
    state = kernel.refresh(stale, (other,), {})
    assert state.potential_energy > stale.potential_energy + 1
    np.testing.assert_array_equal(state.z["mu"], stale.z["mu"])
    back = kernel.refresh(state, (DATA,), {})
    np.testing.assert_allclose(back.potential_energy, stale.potential_energy, rtol=1e-5)
    with pytest.raises(RuntimeError, match="`init` must be called"):
        ebm.BlackJAXKernel(normal_mean).sample(stale, (DATA,), {})


def test_legacy_keys_thinning_collected_warmup_and_traced_arguments():
    settings = {"num_warmup": 60, "num_samples": 40, "thinning": 2, "progress_bar": False, "jit_model_args": True}
    mcmc = MCMC(ebm.BlackJAXKernel(normal_mean), **settings)
    mcmc.warmup(jax.random.PRNGKey(0), DATA, collect_warmup=True)
    assert mcmc.get_samples()["mu"].shape == (30,)
    assert len(np.unique(mcmc.get_extra_fields()["step_size"])) > 10
    mcmc.run(jax.random.PRNGKey(1), DATA)
    assert mcmc.get_samples()["mu"].shape == (20,)
    assert len(np.unique(mcmc.get_extra_fields()["step_size"])) == 1


def anisotropic():
    numpyro.sample("x", dist.Normal(jnp.zeros(2), jnp.array([0.1, 10.0])).to_event(1))


@pytest.mark.parametrize("precondition", ["diagonal", pytest.param("dense", marks=pytest.mark.slow)])
def test_warm_up_learns_the_scales(precondition):
    kernel = ebm.BlackJAXKernel(anisotropic, precondition=precondition)
    mcmc = run(kernel, num_warmup=600, num_samples=1500, num_chains=2)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"]) / [0.1, 10.0]
    assert_mean_close(np.concatenate([draws, draws**2], -1), [0, 0, 1, 1])
    scale = np.asarray(jax.vmap(lambda chain: chain.preconditioner.scale)(mcmc.last_state.chain))
    np.testing.assert_allclose(scale / [0.1, 10.0], np.ones((2, 2)), atol=0.5)


def test_kernels_without_acceptance_rate_do_not_report_one():
    mcmc = small(ebm.ULA(0.01), num_warmup=0, num_samples=20)
    fields = mcmc.get_extra_fields()
    assert "acceptance_rate" not in fields
    np.testing.assert_allclose(fields["step_size"], 0.01, rtol=1e-6)
    assert not fields["diverging"].any()
    assert "acceptance" not in mcmc.sampler.get_diagnostics_str(jax.tree.map(lambda leaf: leaf[0], mcmc.last_state))


def test_the_statistics_of_hamiltonian_kernels_reach_arviz():
    assert set(ebm.BlackJAXKernel(normal_mean, kernel=ebm.NUTS()).default_fields) >= {
        "energy",
        "tree_depth",
        "diverging",
    }
    mcmc = small(ebm.HMC(0.1), num_warmup=0, num_samples=20)
    assert set(az.from_numpyro(mcmc).sample_stats.data_vars) >= STATS | {"energy"}
    np.testing.assert_allclose(mcmc.get_extra_fields()["step_size"], 0.1, rtol=1e-6)


# --- Gibbs ------------------------------------------------------------------------------------------------------------


def two_blocks(y):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])))
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(a, 1.0))
    numpyro.deterministic("sum", a + b)
    numpyro.sample("counts", dist.Multinomial(9, weights), obs=jnp.array([2, 3, 4]))
    numpyro.sample("y", dist.Normal(b, 0.5), obs=y)


def test_a_block_of_gibbs_beside_nuts():
    """The block's sites are constrained (Gibbs starts it in constrained values) and correlated with the sibling's.

    With a cached density that is not refreshed when the sibling moves, the covariance comes out wrong.
    """
    kernel = Gibbs([(ebm.BlackJAXKernel(two_blocks), ["weights", "a"]), (NUTS(two_blocks), None)])
    mcmc = MCMC(kernel, num_warmup=300, num_samples=5000, progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.asarray(2.0))
    draws = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    covariance = np.linalg.inv(np.array([[2.0, -1.0], [-1.0, 5.0]]))
    a, b = (draws[name] - mean for name, mean in zip("ab", covariance @ np.array([0.0, 8.0]), strict=True))
    assert_mean_close(np.stack([a, b, a * a, a * b, b * b], -1), [0, 0, *covariance[np.triu_indices(2)]])
    assert_mean_close(draws["weights"], np.array([4.0, 6.0, 8.0]) / 18)
    np.testing.assert_allclose(draws["sum"], draws["a"] + draws["b"], rtol=1e-5)


# --- a potential instead of a model -----------------------------------------------------------------------------------


def quadratic(z):
    return jnp.sum(z["a"] ** 2) / 2 + (z["b"] - 1.0) ** 2


def test_a_potential_function_over_any_pytree():
    start = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}
    mcmc = run(ebm.BlackJAXKernel(potential_fn=quadratic), num_samples=1500, num_chains=2, init_params=start)
    draws = mcmc.get_samples(group_by_chain=True)
    columns = np.concatenate([np.asarray(draws["a"]), np.asarray(draws["b"])[..., None]], -1)
    assert_mean_close(columns, [0, 0, 0, 1])
    assert_mean_close((columns - [0, 0, 0, 1]) ** 2, [1, 1, 1, 0.5])
    assert set(az.from_numpyro(mcmc).sample_stats.data_vars) >= STATS


def test_starts_that_cannot_be_used():
    kernel = ebm.BlackJAXKernel(potential_fn=lambda z: -jnp.log(z))
    with pytest.raises(ValueError, match="`init_params` must be given"):
        run(kernel)
    with pytest.raises(ebm.NonFiniteEnergyError, match=r"potential is nan.*chain 1"):
        run(kernel, num_warmup=0, num_chains=2, init_params=jnp.array([1.0, -1.0]))
    kernel = ebm.BlackJAXKernel(potential_fn=jnp.sqrt)
    with pytest.raises(ebm.NonFiniteEnergyError, match="gradient"):
        kernel.init(jax.random.key(0), 0, jnp.zeros(()), (), {})


def test_misuse_is_refused_at_construction():
    for arguments in ({}, {"model": normal_mean, "potential_fn": quadratic}):
        with pytest.raises(ValueError, match="exactly one"):
            ebm.BlackJAXKernel(**arguments)
    with pytest.raises(TypeError, match=r"MALA|AbstractKernel"):
        ebm.BlackJAXKernel(normal_mean, kernel="mala")
    with pytest.raises(ValueError, match="`precondition` must be one of"):
        ebm.BlackJAXKernel(normal_mean, precondition="full")
    with pytest.raises(ValueError, match="needs a model"):
        ebm.BlackJAXKernel(potential_fn=quadratic).wrap_model(lambda model: model)
