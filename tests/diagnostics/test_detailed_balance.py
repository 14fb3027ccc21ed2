"""Right kernels pass at the stated rate, each broken one fails the part of the battery that should see it."""

import itertools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ebm_ppl as ebm
from ebm_ppl.diagnostics import detailed_balance
from ebm_ppl.diagnostics._family import holm
from ebm_ppl.diagnostics._features import features_of
from ebm_ppl.diagnostics._gandy_scott import SequentialControl
from ebm_ppl.diagnostics._randomisation import bernoulli_p_value, sign_flip_p_value
from ebm_ppl.diagnostics._references import references
from ebm_ppl.diagnostics._violation import violation
from ebm_ppl.errors import EnergyShapeError, InvalidDataError
from tests.broken_kernels import BrokenMALA
from tests.diagnostics.kernels_on_trial import (
    CORRELATED,
    HEAVY,
    SKEWED,
    STANDARD,
    Adaptive,
    BlackJAXWalk,
    GibbsSweep,
    HiddenNoise,
    UndeclaredSweep,
    p_values,
)
from tests.kernels.targets import log_gamma_energy, truncated_energy
from tests.statistics import StatisticalError, assert_close

LOG_GAMMA = ebm.FunctionEnergy(log_gamma_energy, (2,))
TRUNCATED = ebm.FunctionEnergy(truncated_energy, (2,))
# The fault, and the rows of the table of which one must see it.
SEEN_BY = {
    "wrong_sign": ("ratio_identity", "accepted_flux"),
    "no_proposal_ratio": ("ratio_identity", "accepted_flux"),
    "state_dependent_step": ("ratio_identity", "accepted_flux"),
    "no_correction": ("acceptance", "one_step"),
    "rejections_dropped": ("acceptance", "one_step"),
    "half_noise": ("accepted_flux", "one_step"),
    "stale_gradient": ("cached_values", "ratio_identity"),
    "nan_accepted": ("finite", "ratio_identity"),
}


def most_rejections(runs, rate):
    """Rejections that a test of size `rate` exceeds with probability 1e-3."""
    return int(stats.binom.isf(1e-3, runs, rate))


def log_gamma_draws(key, count):
    return jnp.log(jax.random.gamma(key, 2.0, (count, 2)))


def truncated_draws(key, count):
    one, other = jax.random.split(key)
    return jnp.stack([jax.random.truncated_normal(one, -8.0, 3.0, (count,)) - 2, jax.random.normal(other, (count,))], 1)


def try_broken(fault, key, num_pairs, energy=TRUNCATED):
    draw_key, key = jax.random.split(key)
    draws = (truncated_draws if energy is TRUNCATED else log_gamma_draws)(draw_key, 2 * num_pairs)
    kernel = BrokenMALA(0.5, fault)
    return detailed_balance(energy, kernel, draws, key=key, log_proposal="langevin", num_pairs=num_pairs)


@pytest.mark.parametrize(
    ("kernel", "ratio"),
    [
        (ebm.MALA(0.2), "pass"),
        (ebm.Barker(1.0), "pass"),
        (ebm.RandomWalk(1.0), "pass"),
        (ebm.HMC(0.5, 3), "pass"),
        (ebm.kernels.AdjustedMCLMC(0.5), "not applicable"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_right_kernels_are_reversible(kernel, ratio, key):
    report = detailed_balance(HEAVY, kernel, key=key, num_pairs=2000, level=1e-4)
    assert report.ok, report
    assert report.verdict == "reversible"
    assert report["ratio_identity"].verdict == ratio
    if ratio == "pass":
        assert report["ratio_identity"].statistic < 0.1
        assert report["violation"].statistic == 0
    # The small version of the study below: 60 runs with 200 pairs, on the same compiled programs.
    tables = [p_values(HEAVY, kernel, key=jax.random.fold_in(key, i), runs=10, pairs=200) for i in range(6)]
    table = {test: np.concatenate([one[test] for one in tables]) for test in tables[0]}
    assert {"acceptance", "accepted_flux", "one_step", "two_sample", "rank", "exchangeability"} == set(table)
    for test, values in table.items():
        assert (values <= 0.05).sum() <= most_rejections(60, 0.05), test
    family = [holm(np.array(row), 0.05).any() for row in zip(*table.values(), strict=True)]
    assert sum(family) <= most_rejections(60, 0.05)


@pytest.mark.parametrize("fault", ["", *SEEN_BY])
def test_broken_kernels_are_caught_by_the_part_that_should_see_them(fault, key):
    report = try_broken(fault, key, 4000)
    if not fault:
        assert report.ok, report
        return
    assert not report.ok
    assert report.verdict == "broken"
    for test in SEEN_BY[fault]:
        assert report[test].verdict == "FAIL", (test, report)


def test_adaptation_and_hidden_noise_are_seen_by_structure(key):
    report = detailed_balance(CORRELATED, Adaptive(), key=key, num_pairs=1000)
    assert report.codes == ("ADAPTATION_ON",)
    assert "log_step" in report.problems[0].advice
    assert report["one_step"].verdict == "pass"
    harmless = detailed_balance(CORRELATED, Adaptive(gain=0.0), key=key, num_pairs=1000, level=1e-4)
    assert harmless.ok, harmless
    hidden = detailed_balance(CORRELATED, HiddenNoise(), key=key, num_pairs=1000)
    assert "NOT_A_FUNCTION" in hidden.codes


def test_a_proposal_that_is_the_outcome_is_not_taken_for_one(key):
    report = detailed_balance(
        CORRELATED, BlackJAXWalk(), key=key, num_pairs=1000, log_proposal="random_walk", level=1e-4
    )
    assert report.ok, report
    assert report["accepted_flux"].verdict == report["ratio_identity"].verdict == "not applicable"
    assert report["acceptance"].p_value is not None


def test_irreversible_kernels_are_invariant(key):
    for kernel in (GibbsSweep(), ebm.kernels.GeneralizedHMC(0.4)):
        report = detailed_balance(CORRELATED, kernel, key=key, num_pairs=2000, level=1e-4)
        assert report.ok, report
        assert report.verdict == "invariant, not reversible"
        assert report["entropy_production"].statistic > 0.01
    undeclared = detailed_balance(CORRELATED, UndeclaredSweep(), key=key, num_pairs=2000, level=1e-4)
    assert undeclared.verdict == "invariant, not reversible"
    assert undeclared.codes == ("NOT_REVERSIBLE",)
    wrong = detailed_balance(CORRELATED, GibbsSweep(0.7), key=key, num_pairs=2000)
    assert wrong.verdict == "broken"
    assert wrong["two_sample"].verdict == "FAIL"


def test_unadjusted_kernels_are_judged_by_their_bias(key):
    small = detailed_balance(CORRELATED, ebm.MCLMC(0.2), key=key, num_pairs=4000, bias_budget=0.15)
    assert small.verdict == "unadjusted"
    assert small.ok, small
    large = detailed_balance(CORRELATED, ebm.MCLMC(2.0), key=key, num_pairs=4000)
    assert large.codes == ("BIAS",)
    unclear = detailed_balance(CORRELATED, ebm.MCLMC(0.2), key=key, num_pairs=4000, bias_budget=1e-3)
    assert unclear.codes == ("BIAS_UNRESOLVED",)


@pytest.fixture(scope="module")
def ula_reports():
    """ULA on N(0, 1) at several step sizes: one compiled program."""
    steps = (0.05, 0.1, 0.2, 0.5, 1.0)
    keys = jax.random.split(jax.random.key(20), len(steps))
    return {
        h: detailed_balance(STANDARD, ebm.ULA(h), key=k, num_pairs=20_000) for h, k in zip(steps, keys, strict=True)
    }


def mala_rejects(h, dim=1):
    """1 - a on N(0, I_d): the log ratio is (h / 4) (|x|^2 - |y|^2)."""
    q = np.sqrt(h**4 + 8 * h)
    return 1 - 2 * stats.f.sf((q + h**2) / (q - h**2), dim, dim)


def test_violation_of_ula_against_its_closed_form(ula_reports):
    assert abs(mala_rejects(0.5) - (1 - 0.920833151679)) < 1e-9
    steps = np.array(list(ula_reports))
    for name, truth in (
        ("violation", np.array([mala_rejects(h) for h in steps])),
        ("entropy_production", steps**3 / 4),
    ):
        found = [report[name] for report in ula_reports.values()]
        value, error = (np.array([getattr(f, what) for f in found]) for what in ("statistic", "standard_error"))
        assert_close(value, truth, error, what=name)
        assert (np.abs(value - truth) <= 4 * error).all()
        assert name != "violation" or (error < 0.1 * truth).all()
        with pytest.raises(StatisticalError):
            assert_close(value, 1.1 * truth, error)


def test_bias_of_ula_against_quadrature(ula_reports):
    """The stationary variance is 1 / (1 - h / 2); bounded statistics of it by quadrature."""
    x = np.linspace(-12, 12, 20_001)[:, None]
    exact = stats.norm.ppf((np.arange(4001) + 0.5) / 4001)[:, None]
    features = features_of(exact, exact[:, 0] ** 2 / 2)
    values = features(x, x[:, 0] ** 2 / 2)

    def moments(h):
        weight = stats.norm.pdf(x[:, 0], scale=1 / np.sqrt(1 - h / 2)) * (x[1, 0] - x[0, 0])
        return weight @ values, weight @ values**2

    mean, square = moments(0.0)
    for h in (0.2, 0.5, 1.0):
        truth = np.abs((moments(h)[0] - mean) / np.sqrt(square - mean**2)).max()
        found = ula_reports[h]["bias"]
        assert_close(found.statistic, truth, found.standard_error, alpha=1e-3)
    assert ula_reports[1.0].codes == ("BIAS",)
    assert ula_reports[0.05].ok
    assert ula_reports[0.5]["two_sample"].verdict == "FAIL"


def test_violation_of_a_kernel_in_detailed_balance_is_zero():
    log_ratio = np.array([-2.0, 0.5, np.nan, -np.inf])
    rate = np.array([np.exp(-2.0), 1.0, 0.0, 0.0])
    assert violation(log_ratio, rate)[0].statistic == violation(log_ratio, rate)[1].statistic == 0
    always = violation(log_ratio, np.ones(4), np.ones(4, bool))[0].statistic
    assert always == pytest.approx((1 - np.exp(-2.0) + 2) / 4)


def test_sign_flips_against_enumeration():
    columns = np.random.default_rng(3).normal(0.4, 1.0, (10, 3))
    z, p_value = sign_flip_p_value(columns, np.random.default_rng(0))
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=10)))
    norms = np.sqrt((columns**2).sum(axis=0))
    every = np.abs(signs @ columns / norms).max(axis=1)
    exact = (every >= z.max() - 1e-9).mean()
    assert abs(p_value - exact) < 4.5 * np.sqrt(exact * (1 - exact) / 2000)
    far = np.full((4000, 1), 1.0)
    assert sign_flip_p_value(far, np.random.default_rng(0))[1] < 1e-100


def test_bernoulli_p_value_against_the_binomial_test():
    accepted = (np.arange(400) < 225).astype(float)
    _, p_value = bernoulli_p_value(accepted, np.full(400, 0.5), np.random.default_rng(0))
    exact = stats.binomtest(225, 400).pvalue
    assert abs(p_value - exact) < 4.5 * np.sqrt(exact * (1 - exact) / 2000)
    assert bernoulli_p_value(accepted, np.ones(400), np.random.default_rng(0))[1] == 0


def test_holm_and_sequential_control():
    assert holm(np.array([0.02, 0.001, 0.04]), 0.05).tolist() == [True, True, True]
    assert holm(np.array([0.03, 0.03, 0.04]), 0.05).tolist() == [False, False, False]
    assert holm(np.array([0.001, 0.03, 0.04]), 0.05).tolist() == [True, False, False]
    rng = np.random.default_rng(0)

    def errs(level):
        control = SequentialControl(level, 7)
        while True:
            p = rng.uniform(size=5)
            if not control.goes_on(p):
                return p.min() * 5 <= control.threshold, control.round

    outcomes = np.array([errs(0.05) for _ in range(10_000)])
    assert outcomes[:, 0].sum() <= most_rejections(10_000, 0.05)
    assert 1 < outcomes[:, 1].mean() < 1.7


def test_sequential_control_ends_at_the_first_clear_answer(key):
    one, other = jax.random.split(key)
    right = detailed_balance(HEAVY, ebm.RandomWalk(1.0), key=one, num_pairs=2000, level=1e-5, max_rounds=7)
    assert right.ok, right
    wrong = detailed_balance(CORRELATED, GibbsSweep(0.7), key=other, num_pairs=2000, level=1e-5, max_rounds=7)
    assert wrong.verdict == "broken"


def test_a_kernel_that_never_moves_is_no_kernel(key):
    report = detailed_balance(HEAVY, ebm.RandomWalk(1e9), key=key, num_pairs=2000)
    assert report.codes == ("STUCK_CHAIN",)
    assert report["one_step"].verdict == "not applicable"


def test_reference_draws_of_all_kinds(key):
    independent = np.asarray(CORRELATED.sample(key, (4, 1000)))
    chains = np.repeat(independent, 3, axis=1)  # as if two of three proposals had been rejected
    report = detailed_balance(CORRELATED, GibbsSweep(), chains, key=key, num_pairs=2000, level=1e-4)
    assert report.ok, report
    assert "effective draws" in report.notes[0]
    assert 1000 < report.num_pairs <= 2000
    with pytest.raises(InvalidDataError, match="must be draws from exp"):
        detailed_balance(TRUNCATED, BrokenMALA(0.5), 3 + truncated_draws(key, 8000), key=key, num_pairs=4000)
    with pytest.raises(EnergyShapeError, match="`reference_draws` must have shape"):
        detailed_balance(CORRELATED, ebm.RandomWalk(1.0), jnp.zeros((500, 3)), key=key)
    with pytest.raises(EnergyShapeError, match="at least 200 independent draws"):
        detailed_balance(CORRELATED, ebm.RandomWalk(1.0), jnp.zeros((150, 2)), key=key)


def test_what_was_wrong_with_the_run_of_the_reference_draws_is_said(key):
    problem = ebm.Problem("R_HAT", "the chains disagree.")
    positions = np.asarray(CORRELATED.sample(key, (4, 100)))
    draws = ebm.Draws(positions, {}, ebm.MALA(), (problem,), {}, np.ones((4, 2)))
    assert references(CORRELATED, draws, 100, key, None, 1).problem is problem
    assert references(CORRELATED, positions, 100, key, None, 1).problem is None


def test_arguments_are_checked(key):
    for arguments, match in (
        ({"level": 0.0}, "`level` must be between 0 and 1"),
        ({"num_pairs": 10}, "`num_pairs` must be an integer >= 100"),
        ({"num_steps": 1}, "`num_steps` must be an integer >= 2"),
        ({"max_rounds": 0}, "`max_rounds` must be an integer >= 1"),
        ({"bias_budget": 0.0}, "`bias_budget` must be positive"),
        ({"log_proposal": "normal"}, "`log_proposal` must be one of"),
    ):
        with pytest.raises(ValueError, match=match):
            detailed_balance(STANDARD, ebm.MALA(), key=key, **arguments)
    with pytest.raises(TypeError, match="`kernel` must be an ebm"):
        detailed_balance(STANDARD, "MALA", key=key)
    with pytest.raises(TypeError, match="`energy` must be an ebm"):
        detailed_balance(lambda x: x, ebm.MALA(), key=key)


def test_report_prints_and_serialises(ula_reports):
    report = ula_reports[1.0]
    assert repr(report).endswith("verdict: unadjusted, NOT ok (BIAS)")
    assert "<b>verdict: unadjusted" in report._repr_html_()
    content = json.loads(report.to_json())
    assert content["ok"] is False
    assert content["findings"][0]["test"] == "finite"
    assert list(report.table.columns) == ["part", "statistic", "p_value", "standard_error", "verdict", "detail"]
    with pytest.raises(KeyError, match="there is no test"):
        report["nothing"]


STUDY = {  # step sizes that accept about as often as one would tune for
    "MALA": lambda s: ebm.MALA(s[0]),
    "HMC": lambda s: ebm.HMC(s[1], 3),
    "NUTS": lambda s: ebm.NUTS(s[1], 4),
    "Barker": lambda s: ebm.Barker(s[2]),
    "RandomWalk": lambda s: ebm.RandomWalk(s[3]),
}
TARGETS = {
    "correlated": (CORRELATED, (0.2, 0.5, 0.7, 1.2)),
    "skewed": (SKEWED, (0.3, 0.5, 0.9, 1.5)),
    "heavy tails": (HEAVY, (0.4, 0.7, 1.2, 2.0)),
}
EXACT = ("acceptance", "exchangeability")  # p-values that are uniform, not only at least so


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", STUDY)
def test_false_alarms_of_400_runs(name, target, key):
    """400 runs with 2,000 pairs: every test at its rate, the battery at level 1 % at most that."""
    energy, steps = TARGETS[target]
    kernel = STUDY[name](steps)
    once = detailed_balance(energy, kernel, key=key, num_pairs=2000, level=1e-5)
    assert once.ok, once  # the exact parts
    chunks = [p_values(energy, kernel, key=jax.random.fold_in(key, i), runs=100, pairs=2000) for i in range(4)]
    table = {test: np.concatenate([chunk[test] for chunk in chunks]) for test in chunks[0]}
    family = sum(holm(np.array(row), 0.01).any() for row in zip(*table.values(), strict=True))
    shown = {test: [int((values <= level).sum()) for level in (0.05, 0.01)] for test, values in table.items()}
    print(f"{name}, {target}: rejections of 400 at .05, .01: {shown}, family at .01: {family}")  # noqa: T201
    for test, values in table.items():
        for level in (0.05, 0.01):
            rejections = (values <= level).sum()
            assert rejections <= most_rejections(400, level), (test, level)
        if test in EXACT:
            assert (values <= 0.05).sum() >= stats.binom.ppf(1e-3, 400, 0.05), test
    assert family <= most_rejections(400, 0.01)


def caught(fault, key, num_pairs):
    """Whether this fault is seen by the parts that should; for "", a correct kernel, whether it is rejected."""
    if fault == "ULA":
        report = detailed_balance(STANDARD, ebm.ULA(0.5), key=key, num_pairs=num_pairs)
        return "BIAS" in report.codes and report["one_step"].verdict == "FAIL"
    if fault == "adaptation":
        report = detailed_balance(CORRELATED, Adaptive(), key=key, num_pairs=num_pairs)
        return report.codes == ("ADAPTATION_ON",)
    report = try_broken(fault, key, num_pairs, TRUNCATED if fault == "nan_accepted" else LOG_GAMMA)
    return not report.ok and all(report[test].verdict == "FAIL" for test in SEEN_BY.get(fault, ()))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "ULA", "adaptation", *SEEN_BY])
def test_power_of_20_runs(fault):
    """With 10,000 pairs (20,000 reference draws) a broken kernel is caught in at least 19 of 20 runs."""
    seconds, found = [], 0
    for run in range(20):
        started = time.perf_counter()
        found += caught(fault, jax.random.key(run), 10_000)
        seconds.append(time.perf_counter() - started)
    shown = f"{found} of 20, {seconds[0]:.1f} s the first, {max(seconds[1:]):.1f} s at most afterwards"
    print(f"{fault or 'correct'}: {shown}")  # noqa: T201
    assert found <= most_rejections(20, 0.01) if fault == "" else found >= 19


@pytest.mark.slow
def test_tempered_chains_stand_in_for_exact_draws(key):
    """An energy without exact draws: two modes that no plain chain visits both."""
    energy = ebm.FunctionEnergy(lambda x: 8.0 * jnp.sum((x**2 - 1.0) ** 2), (1,))
    report = detailed_balance(energy, ebm.RandomWalk(0.5), key=key, num_pairs=2000, level=1e-4)
    assert report.ok, report
    assert "tempered chains" in report.notes[0]
