"""Does this kernel leave exp(-E) invariant, and is it reversible? A battery of tests with one verdict."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ebm_ppl._checks import check_condition, check_count, check_key, check_positive
from ebm_ppl.diagnostics._balance_evidence import Collected, collect, statistical_tests
from ebm_ppl.diagnostics._balance_report import BalanceReport
from ebm_ppl.diagnostics._bias import measure_bias
from ebm_ppl.diagnostics._family import Finding, holm
from ebm_ppl.diagnostics._gandy_scott import SequentialControl
from ebm_ppl.diagnostics._proposal_ratios import ratio_of
from ebm_ppl.diagnostics._ratio_identity import ratio_identity
from ebm_ppl.diagnostics._references import References, references
from ebm_ppl.diagnostics._structure import Structure, check_structure
from ebm_ppl.diagnostics._transitions import Invariant, Ratio, start
from ebm_ppl.diagnostics._violation import entropy_bound, violation
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._check_start import event_rows
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy, coordinate_energy
from ebm_ppl.errors import EnergyShapeError, Problem
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.sampling import Draws

ADVICE = {
    "acceptance": "proposals are not accepted as often as the kernel reports: rejections are skipped or left out.",
    "accepted_flux": "the accepted flow from x to y is not that from y to x: the acceptance ratio does not belong to "
    "the proposals that are made.",
    "one_step": "draws from the target are no draws from it after one transition.",
    "two_sample": "draws from the target are no draws from it after several transitions.",
    "rank": "the place of an exact draw within its own chain is not uniform: the kernel is not reversible with "
    "respect to the target.",
}


@dataclasses.dataclass(frozen=True, eq=False)
class _Settings:
    level: float
    num_steps: int
    bias_budget: float
    ratio: Ratio | None
    energy: AbstractEnergy


def detailed_balance(
    energy: AbstractEnergy | Any,
    kernel: AbstractKernel | Any,
    reference_draws: Any = None,
    *,
    key: jax.Array | Any,
    condition: Any = None,
    num_pairs: int | Any = 10_000,
    num_steps: int | Any = 6,
    level: float | Any = 0.01,
    max_rounds: int | Any = 1,
    bias_budget: float | Any = 0.1,
    log_proposal: Any = None,
) -> BalanceReport:
    r"""Test whether a kernel leaves \(p = \exp(-E)/Z\) invariant and whether it is in detailed balance with it.

    Independent chains start from exact draws x_0 of p, so that no test depends on how well the kernel mixes:

    - structure (exact): the step is a function of key and state; `finite` and `moves`; `cached_values`: log density
      and gradient in the state are the energy's; `memory`: nothing adapts; `replay`: the same again, bit by bit;
    - ratio (exact to rounding, computed in float64): `ratio_identity`: the reported acceptance is
      \(\min(1, p(y) q(y, x) / p(x) q(x, y))\), q written independently. For MALA, Barker, RandomWalk, for HMC with the
      trajectory integrated anew, and for any kernel whose `log_proposal` is given and which shows its proposals
      (`info.proposal`) and one acceptance rate for them;
    - invariance: `acceptance` (`info.is_accepted` against the reported rate), `accepted_flux` (rate and proposal),
      `one_step` (paired), `two_sample` (Gandy and Scott's algorithm 1, after `num_steps`); the last two need nothing
      that the kernel reports, and no reversibility;
    - reversibility: `rank` (their algorithm 2; only where the kernel claims to be reversible) and `exchangeability`
      of (state, next state), momenta included;
    - `violation`: share of moves that a Metropolis step would have rejected, `entropy_production` in nats per step.

    The statistics are bounded functions of position and energy. Within a test Bonferroni's rule, or randomisation,
    holds the level over statistics; between tests Holm's rule does. Whatever is not finite fails.

    A kernel without Metropolis step (`adjusted = False`) cannot pass: it is called `unadjusted`, and judged by its
    `bias`: how far the mean of any of the statistics moves, in standard deviations, once the chains have forgotten
    their start. The invariance tests are reported, but do not count against it.

    Args:
        energy: E, in nats. With a support or named parts everything happens in its real coordinates.
        kernel: any `AbstractKernel`, with the step size it is to be used with.
        reference_draws: independent draws from p `(n, *event_shape)`, or chains `(chain, draw, *event_shape)` or
            `Draws`, which are thinned to their effective number; None: the energy's own `sample`, or tempered chains
            where it has none. Half of them start chains, half are compared with.
        key: one JAX key.
        condition: the condition of a conditional energy.
        num_pairs: pairs (x_0, x_1), at least 100.
        num_steps: transitions of every chain, at least 2.
        level: the probability that a right kernel fails any test. 1e-5 suits a test that is run daily.
        max_rounds: more than 1: sequential control (their algorithm 3), up to so many rounds, each with fresh draws,
            the second and later ones with four times as many. Only a first clear answer ends it: a far smaller
            `level` at a similar price. 7 is usual. Replaces Holm's rule by Bonferroni's.
        bias_budget: what the bias of an unadjusted kernel must stay below, in standard deviations.
        log_proposal: q of a kernel of your own: `"langevin"`, `"barker"`, `"random_walk"` with that kernel's step
            size, or a function `(logdensity_fn, step_size, start, end) -> log q(start, end)` up to a constant.

    Returns:
        A `BalanceReport`: `ok`, `verdict`, `problems`, `table`. Problems: NONFINITE_STATE, STUCK_CHAIN, STALE_CACHE,
        ADAPTATION_ON, NOT_A_FUNCTION, RATIO_IDENTITY, NOT_INVARIANT, NOT_REVERSIBLE (only where the kernel claims to
        be), BIAS, BIAS_UNRESOLVED, DIVERGED, and what was wrong with the run that the reference draws come from.

    Raises:
        TypeError: `energy` or `kernel` is none.
        ValueError: a number is out of range, there are too few reference draws, or the energy is not finite at them.
        KeyArgumentError: `key` is not one JAX key.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1))
        >>> report = ebm.diagnostics.detailed_balance(energy, ebm.ULA(1.0), key=jax.random.key(0), num_pairs=2000)
        >>> report.verdict, report.codes
        ('unadjusted', ('BIAS',))
        >>> bool(0.18 < report["violation"].statistic < 0.25)          # 0.216: what MALA rejects at this step size
        True

    References:
        Gandy, Scott (2020). Unit testing for MCMC and other Monte Carlo methods. arXiv:2001.06465
        Besag, Clifford (1989). Generalized Monte Carlo significance tests. Biometrika 76(4), 633-642.
        doi:10.1093/biomet/76.4.633
        Geweke (2004). Getting it right: joint distribution tests of posterior simulators. Journal of the American
        Statistical Association 99(467), 799-804. doi:10.1198/016214504000001132
        Holm (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6(2),
        65-70.
    """
    _check_types(energy, kernel)
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1; got {level!r}.")
    check_positive("bias_budget", bias_budget)
    num_pairs, num_steps = check_count("num_pairs", num_pairs, 100), check_count("num_steps", num_steps, 2)
    control = SequentialControl(level, check_count("max_rounds", max_rounds))
    settings = _Settings(level, num_steps, bias_budget, ratio_of(kernel, log_proposal), energy)
    key = check_key(key)
    inner = coordinate_energy(energy)
    target = Invariant(inner, check_condition(condition, energy.condition_shape))
    if not inner.coordinates.is_identity:
        reference_draws = _in_coordinates(inner, reference_draws)
        energy = inner
    while True:
        round_key = jax.random.fold_in(key, control.round)
        size = num_pairs * (control.growth if control.round > 1 else 1)
        drawn = references(
            energy, reference_draws, size, jax.random.fold_in(round_key, 0), target.condition, control.round
        )
        examined = _examine(kernel, target, drawn, round_key, settings)
        p_values = [finding.p_value for finding in examined.tests if finding.p_value is not None]
        if max_rounds == 1 or examined.structure.problems or not control.goes_on(p_values):
            break
    threshold = None if max_rounds == 1 else control.threshold
    return _report(kernel, drawn, examined, settings, control.round, threshold)


@dataclasses.dataclass(frozen=True, eq=False)
class _Examined:
    structure: Structure
    identity: tuple[Finding, Problem | None]
    tests: list[Finding]
    collected: Collected
    bound: float


def _in_coordinates(energy: CoordinateEnergy, draws: Any) -> Any:
    """Given draws of events in the coordinates of the energy; chains stay chains."""
    if draws is None:
        return None
    events = draws.positions if isinstance(draws, Draws) else draws
    shape = energy.coordinates.event_shape
    leaves = jax.tree.leaves(events)
    if not leaves:
        raise EnergyShapeError("`reference_draws` must hold draws of the energy; got nothing.")
    leaf = leaves[0]
    event_ndim = len(next(iter(shape.values())) if isinstance(shape, Mapping) else shape)
    lead = np.shape(leaf)[: np.ndim(leaf) - event_ndim]
    flat = jax.tree.map(lambda part: np.asarray(part).reshape(-1, *np.shape(part)[len(lead) :]), events)
    rows = event_rows(energy, "reference_draws", flat, axis="draw", key=jax.random.key(0))
    return np.asarray(rows).reshape(*lead, *rows.shape[1:])


def _check_types(energy: Any, kernel: Any) -> None:
    if not isinstance(energy, AbstractEnergy):
        raise TypeError(f"`energy` must be an ebm.AbstractEnergy; got {type(energy).__name__}.")
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"`kernel` must be an ebm.AbstractKernel such as ebm.MALA(); got {type(kernel).__name__}.")


def _examine(
    kernel: AbstractKernel, target: Invariant, drawn: References, key: jax.Array, settings: _Settings
) -> _Examined:
    """One round: everything with a p-value, and everything that is exact."""
    chain_key, identity_key, seed_key = jax.random.split(key, 3)
    kernel = with_step_size(kernel, jnp.asarray(kernel.step_size, drawn.start.dtype))
    ratio = settings.ratio
    collected = collect(kernel, target, drawn.start, drawn.fresh, chain_key, ratio=ratio, num_steps=settings.num_steps)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(seed_key)).tolist())
    tests, bound = statistical_tests(collected.evidence, rng)
    chains = collected.chains
    states, keys = start(kernel, target, jnp.asarray(drawn.start), chains.keys(0)), chains.keys(1)
    structure = check_structure(kernel, target, chains, collected.auxiliary, (states, keys, collected.first))
    identity = ratio_identity(kernel, settings.energy, target.condition, drawn.start, identity_key, ratio)
    return _Examined(structure, identity, tests, collected, bound)


def _report(
    kernel: AbstractKernel,
    drawn: References,
    examined: _Examined,
    settings: _Settings,
    num_rounds: int,
    threshold: float | None,
) -> BalanceReport:
    """Rejections, numbers and the verdict."""
    tests, rejected = _decide(examined.tests, settings.level, threshold)
    exact = [*examined.structure.problems, *([examined.identity[1]] if examined.identity[1] else [])]
    ev, extra, notes = examined.collected.evidence, (), [drawn.note] if drawn.note else []
    if kernel.adjusted:
        verdict, problems = _judge(kernel, exact, rejected)
    else:
        verdict = "broken" if exact else "unadjusted"
        bias, found, steps = _judge_unadjusted(examined, settings)
        extra, problems = (bias,), [*exact, *found]
        notes.append(f"unadjusted: judged by its bias, measured after {steps} more steps; failed tests are expected.")
    problems += [drawn.problem] if drawn.problem else []
    decided = ev.accepted if "acceptance" in {t.test for t in rejected} else None
    log_ratio = ev.log_ratio if ev.energy_change is None else -ev.energy_change
    numbers = list(violation(log_ratio, ev.rate, decided))
    if log_ratio is None:
        numbers[1] = entropy_bound(examined.bound)
    findings = (*examined.structure.findings, examined.identity[0], *tests, *extra, *numbers)
    step_size = np.array2string(np.asarray(kernel.step_size, float), precision=4, threshold=4)
    name = f"{type(kernel).__name__}(step_size={step_size})"
    return BalanceReport(
        verdict, tuple(problems), findings, tuple(notes), name, settings.level, len(ev.before), num_rounds
    )


def _judge(kernel: AbstractKernel, exact: list[Problem], rejected: list[Finding]) -> tuple[str, list[Problem]]:
    """The verdict on a kernel that should leave the target invariant, and its problems."""
    irreversible = [t for t in rejected if t.test == "exchangeability"]
    # Ranks say nothing of invariance if pairs are not exchangeable anyway.
    against = [t for t in rejected if t.test in ADVICE and not (t.test == "rank" and irreversible)]
    problems = exact + [Problem("NOT_INVARIANT", f"{t.test}: {ADVICE[t.test]}", value=t.p_value) for t in against]
    if problems:
        return "broken", problems
    if not irreversible:
        return ("reversible" if kernel.reversible else "invariant"), []
    if not kernel.reversible:
        return "invariant, not reversible", []
    advice = "pairs (state, next state) are not exchangeable, though the kernel claims to be reversible: if that is "
    advice += "meant so (a Gibbs sweep in fixed order, persistent momenta), declare `reversible = False`."
    return "invariant, not reversible", [Problem("NOT_REVERSIBLE", advice, value=irreversible[0].p_value)]


def _judge_unadjusted(examined: _Examined, settings: _Settings) -> tuple[Finding, tuple[Problem, ...], int]:
    """The bias, problems, and the number of further steps after which it was measured."""
    collected = examined.collected
    bias, problems, steps = measure_bias(
        collected.chains,
        collected.features,
        collected.evidence.before,
        budget=settings.bias_budget,
        level=settings.level,
    )
    if collected.diverging and not problems:
        advice = "share of chains from draws of the target that diverged: lower the step size."
        problems = (Problem("DIVERGED", advice, value=collected.diverging),)
    return bias, problems, steps


def _decide(tests: list[Finding], level: float, threshold: float | None) -> tuple[list[Finding], list[Finding]]:
    """The tests with their verdicts, and those rejected: by Holm's rule, or by the threshold of the last round."""
    used = [finding for finding in tests if finding.p_value is not None]
    p_values = np.array([finding.p_value for finding in used])
    mask = holm(p_values, level) if threshold is None else p_values * len(used) <= threshold
    failed = {finding.test for finding, fails in zip(used, mask, strict=True) if fails}
    judged = [dataclasses.replace(t, verdict="FAIL") if t.test in failed else t for t in tests]
    return judged, [t for t in judged if t.test in failed]
