"""The checks that need the sampler's statistics, the energy, or the record of the run."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import ebm_ppl as ebm
from ebm_ppl.errors import EnergyShapeError, Problem
from tests.compilation import count_lowerings
from tests.diagnostics import chains
from tests.diagnostics.test_to_datatree import make_draws
from tests.foreign import standard_promotion


@pytest.fixture
def gaussian():
    return ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))


def flags(chain, *draws):
    array = np.zeros((4, 500), bool)
    array[chain, list(draws)] = True
    return array


def only(report, code):
    found = [problem for problem in report.problems if problem.code == code]
    assert len(found) == 1, repr(report)
    return found[0]


def test_a_good_run_is_ok_and_an_unadjusted_one_is_told_so(gaussian, key):
    options = {"key": key, "num_samples": 1000, "progress_bar": False}
    adjusted = ebm.diagnose(ebm.sample(gaussian, ebm.MALA(), **options), gaussian)
    assert adjusted.ok, repr(adjusted)
    assert adjusted.notes == ()
    unadjusted = ebm.diagnose(ebm.sample(gaussian, ebm.ULA(0.3), **options), gaussian)
    assert unadjusted.ok, repr(unadjusted)
    assert "ULA is unadjusted" in unadjusted.notes[0]


def test_a_numpyro_run_is_judged_as_it_comes():
    def model():
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        numpyro.deterministic("unit", jnp.ones(()))
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        return scale

    kernel = NUTS(model)
    mcmc = MCMC(kernel, num_warmup=300, num_samples=400, num_chains=4, chain_method="vectorized", progress_bar=False)
    fields = ("energy", "diverging", "accept_prob", "num_steps", "potential_energy")
    with standard_promotion():
        mcmc.run(jax.random.key(1), extra_fields=fields)
        tree = az.from_numpyro(mcmc)
    report = ebm.diagnose(tree)
    assert report.ok, repr(report)
    assert "unit: one and the same value" in report.notes[-1]
    assert float(ebm.diagnostics.mixing(tree)["acceptance_rate"].mean()) > 0.5
    frozen = tree.copy(deep=True)
    frozen["posterior"]["x"][2] = 0.0
    frozen["posterior"]["scale"][2] = 1.0
    assert only(ebm.diagnose(frozen), "STUCK_CHAIN").chain == 2


def test_cut_trajectories_are_a_note():
    for name in ("reached_max_tree_depth", "reached_max_treedepth"):
        report = ebm.diagnose(make_draws(**{name: flags(0, 1, 2)}))
        assert report.ok
        assert "2 of 2000 trajectories were cut" in report.notes[0]


def test_zero_acceptance(gaussian):
    rates = np.full((4, 500), 0.6)
    rates[2] = 1e-30
    assert only(ebm.diagnose(make_draws(acceptance_rate=rates)), "ZERO_ACCEPTANCE").chain == 2
    rates[2] = np.nan
    assert only(ebm.diagnose(make_draws(acceptance_rate=rates)), "ZERO_ACCEPTANCE").chain == 2


@pytest.mark.parametrize(("name", "code"), [("diverging", "DIVERGED"), ("nonfinite_proposal", "NONFINITE_PROPOSAL")])
def test_flagged_transitions_are_counted_per_chain(name, code):
    problem = only(ebm.diagnose(make_draws(**{name: flags(1, 7, 8, 99)})), code)
    assert (problem.chain, problem.value) == (1, 3.0)
    assert "3 of 500" in problem.advice


def test_a_nonfinite_log_density_is_a_nonfinite_draw():
    log_density = np.zeros((4, 500))
    log_density[3, 10] = np.nan
    problem = only(ebm.diagnose(make_draws(lp=log_density)), "NONFINITE_DRAW")
    assert (problem.chain, problem.value) == (3, 1.0)


def test_low_e_bfmi_only_where_a_hamiltonian_is_stored(gaussian):
    rng = np.random.default_rng(0)
    slow = np.cumsum(rng.normal(size=(4, 500)), axis=1)
    slow[1:] = rng.normal(size=(3, 500))
    assert only(ebm.diagnose(make_draws(energy=slow)), "E_BFMI").chain == 0
    assert ebm.diagnose(make_draws(potential_energy=slow)).ok


def test_too_short_says_what_is_missing():
    rng = np.random.default_rng(0)
    assert "one chain cannot be compared" in only(ebm.diagnose(chains.independent(rng, 1, 1000)), "TOO_SHORT").advice
    assert "5 draws per chain" in only(ebm.diagnose(chains.independent(rng, 100, 5)), "TOO_SHORT").advice
    assert "200 draws in all" in only(ebm.diagnose(chains.independent(rng, 2, 100)), "TOO_SHORT").advice
    assert ebm.diagnose(np.zeros((4, 0, 2))).codes == ("TOO_SHORT",)
    assert ebm.diagnose(np.zeros((4, 1, 2))).codes == ("TOO_SHORT",)


def test_the_culprit_is_named_only_where_there_is_one():
    rng = np.random.default_rng(0)
    assert only(ebm.diagnose(chains.one_chain_scaled(rng)), "R_HAT").chain == 3
    assert only(ebm.diagnose(chains.two_modes(rng)), "R_HAT").chain is None


def test_worst_parameter_and_counts_are_named():
    rng = np.random.default_rng(0)
    draws = chains.independent(rng, 4, 1000, 5)
    draws[..., 3] = chains.two_modes(rng)
    problem = only(ebm.diagnose(draws), "R_HAT")
    assert "worst for x[3] (1 of 5 parameters are above 1.01)" in problem.advice
    assert problem.value == pytest.approx(1.73, abs=0.02)


def test_hundred_effective_draws_per_chain_are_asked_of_long_chains():
    rng = np.random.default_rng(0)
    draws = chains.autoregressive(rng, 0.9, 16, 1000)
    assert ebm.diagnose(draws).table["ess_bulk"]["x"] > 400
    assert "16000 draws are worth" in only(ebm.diagnose(draws), "ESS_BULK").advice


def test_what_the_sampler_recorded_is_carried_over_once():
    stopped = Problem("INTERRUPTED", "stopped by the user", None, 500.0)
    ran_away = Problem("DIVERGED", "became non-finite at transition 12", 1, 12.0)
    draws = make_draws(problems=(ran_away, stopped), diverging=flags(1, 5))
    assert ebm.diagnose(draws).problems == (ran_away, stopped)
    assert ebm.diagnose(ebm.to_datatree(draws)).problems == (ran_away, stopped)


def test_lp_of_the_right_energy_is_confirmed_and_of_a_wrong_one_refused(gaussian):
    draws = make_draws()
    report = ebm.diagnose(draws, gaussian)
    assert report.ok
    assert report.notes == ()
    wrong = ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=2.0 * jnp.eye(2))
    problem = only(ebm.diagnose(draws, wrong), "ENERGY_MISMATCH")
    assert problem.value > 1
    stale = make_draws()
    stale.stats["lp"] = np.roll(stale.stats["lp"], 1, axis=1)
    assert "stale" in only(ebm.diagnose(stale, gaussian), "ENERGY_MISMATCH").advice


def test_a_constant_offset_of_lp_is_another_normalizer_not_another_energy(gaussian):
    report = ebm.diagnose(make_draws(), ebm.ShiftedEnergy(gaussian, log_normalizer=3.5))
    assert report.ok
    assert "exceeds -E by the constant 3.5 nats" in report.notes[0]


def test_draws_where_the_energy_is_not_finite():
    wall = ebm.FunctionEnergy(lambda x: jnp.where(x[0] > 1, jnp.inf, 0.5 * jnp.sum(x**2)), (2,))
    report = ebm.diagnose(make_draws(), wall)
    assert [p.chain for p in report.problems if p.code == "NONFINITE_ENERGY"] == [0, 1, 2, 3]


def test_without_lp_the_energy_can_only_be_evaluated(gaussian):
    report = ebm.diagnose(chains.independent(np.random.default_rng(0), 4, 500, 2).astype(np.float32), gaussian)
    assert report.ok
    assert "no `lp`" in report.notes[0]


def test_conditional_energies_with_one_condition_or_one_per_chain():
    energy = ebm.FunctionEnergy(lambda x, condition: 0.5 * jnp.sum((x - condition) ** 2), (2,), condition_shape=(2,))
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(4, 500, 2)).astype(np.float32)
    shift = jnp.asarray([0.5, -0.5])
    lp = -0.5 * ((positions - np.asarray(shift)) ** 2).sum(-1)
    draws = make_draws(positions=positions, lp=lp)
    assert ebm.diagnose(draws, energy, condition=shift).ok
    assert ebm.diagnose(draws, energy, condition=jnp.tile(shift, (4, 1))).ok
    assert ebm.diagnose(draws, energy, condition=jnp.zeros(2)).codes == ("ENERGY_MISMATCH",)
    with pytest.raises(EnergyShapeError, match="`condition` is missing"):
        ebm.diagnose(draws, energy)


def test_the_variable_of_the_energy_must_be_unique(gaussian):
    rng = np.random.default_rng(0)
    same = {"a": rng.normal(size=(4, 500, 2)), "b": rng.normal(size=(4, 500, 2))}
    for draws in (same, {"a": rng.normal(size=(4, 500, 3))}):
        with pytest.raises(EnergyShapeError, match="exactly one variable must have the energy's `event_shape`"):
            ebm.diagnose(draws, gaussian)


def test_an_equal_energy_is_not_compiled_again(gaussian):
    draws = make_draws()
    ebm.diagnose(draws, gaussian)
    other = ebm.energies.Gaussian(mean=jnp.ones(2), covariance=jnp.eye(2))
    with count_lowerings() as compiled:
        ebm.diagnose(draws, other)
    assert not compiled
