"""The checks of `diagnose`, one function each, in the order in which they are reported.

Each returns problems whose advice says what was found, what it means and what to try. Nothing here trusts a
comparison with NaN, which is False against every threshold.
"""

from collections.abc import Iterable

import numpy as np

from ebm_ppl.diagnostics._arviz import bfmi
from ebm_ppl.diagnostics._evidence import Evidence
from ebm_ppl.diagnostics._parameters import stuck_chains
from ebm_ppl.errors import Problem

MIN_ACCEPTANCE = 1e-3
MIN_DRAWS, MIN_TOTAL_DRAWS = 10, 400  # below: too short to judge
MIN_E_BFMI = 0.3
MAX_AUXILIARY_MEMORY, MAX_AUXILIARY_REJECTED = 0.25, 0.02
WANDERING = 2.0  # variance of a chain over that of its quarters: 1 when settled, 4 for a random walk


def nonfinite_draws(evidence: Evidence) -> list[Problem]:
    """NONFINITE_DRAW: NaN or infinite draws, which every later statistic would silently pass."""
    bad = np.zeros((evidence.num_chains, evidence.num_draws), dtype=bool)
    for parameter in evidence.parameters:
        bad |= ~np.isfinite(parameter.draws)
    log_density = evidence.statistic("lp")
    if log_density is not None:
        bad |= ~np.isfinite(log_density)
    return [
        Problem(
            "NONFINITE_DRAW",
            f"{count} of {evidence.num_draws} draws (or their log densities) are NaN or infinite, the first at draw "
            f"{int(np.argmax(row))}; no average over this chain exists. Check the energy there, lower step_size.",
            int(chain),
            float(count),
        )
        for chain, row, count in zip(evidence.chains, bad, bad.sum(axis=1), strict=True)
        if count
    ]


def frozen_chains(evidence: Evidence) -> list[Problem]:
    """STUCK_CHAIN: chains, or single coordinates of chains, that stay where they are."""
    if evidence.num_draws < 2:
        return []
    whole = stuck_chains(evidence.dataset)
    problems = []
    for index, chain in enumerate(evidence.chains):
        if whole[index]:
            moves = _moves(evidence, index)
            what = "never moved" if moves == 0 else f"moved {moves} times in {evidence.num_draws} draws"
            advice = f"the chain {what}: its effective sample size is 0, whatever R-hat says of the others. "
            advice += "Lower step_size, warm up longer, or start elsewhere."
            problems.append(Problem("STUCK_CHAIN", advice, int(chain), float(moves + 1)))
            continue
        labels = [parameter.label for parameter in evidence.parameters if parameter.stuck[index]]
        if labels:
            advice = f"{_some(labels)} never moved in this chain: the draws say nothing about it. Check that the "
            advice += "energy depends on it and that the kernel updates it."
            problems.append(Problem("STUCK_CHAIN", advice, int(chain), 1.0))
    return problems


def zero_acceptance(evidence: Evidence) -> list[Problem]:
    """ZERO_ACCEPTANCE: practically no proposal was accepted."""
    rates = evidence.statistic("acceptance_rate")
    if rates is None or evidence.num_draws < MIN_DRAWS:
        return []
    mean = np.where(np.isfinite(rates), rates, 0.0).mean(axis=1)
    return [
        Problem(
            "ZERO_ACCEPTANCE",
            f"mean acceptance {rate:.2g} over {evidence.num_draws} draws: the step is far too large for this energy, "
            "or its proposals are not finite. Lower step_size or use num_warmup > 0.",
            int(chain),
            float(rate),
        )
        for chain, rate in zip(evidence.chains, mean, strict=True)
        if rate < MIN_ACCEPTANCE
    ]


def divergences(evidence: Evidence) -> list[Problem]:
    """DIVERGED: transitions that left the region where the integrator can be trusted."""
    if evidence.statistic("auxiliary_memory") is not None:
        return []  # an exchange algorithm: see `auxiliary_chains`
    advice = "{count} of {total} transitions diverged: where the energy curves sharply the draws are missing or "
    advice += "biased. Lower step_size (raise the target acceptance), or reparametrise."
    return _counted(evidence, "diverging", "DIVERGED", advice)


def auxiliary_chains(evidence: Evidence) -> list[Problem]:
    """AUXILIARY_NOT_MIXED, AUXILIARY_REJECTED: the inner chains of an exchange algorithm cannot be trusted."""
    memory = evidence.statistic("auxiliary_memory")
    if memory is None or evidence.num_draws < MIN_DRAWS:
        return []
    problems = []
    rejected = evidence.statistic("diverging")
    share = 0.0 if rejected is None else float(rejected.mean())
    if share > MAX_AUXILIARY_REJECTED:
        advice = (
            f"{share:.1%} of the proposals were rejected because their inner chains accepted next to nothing: the "
            "posterior is cut off where that happens. Use `ebm.Barker()` as the inner kernel, or a smaller step_size."
        )
        problems.append(Problem("AUXILIARY_REJECTED", advice, None, share))
    last = memory[:, -1]
    last = last[np.isfinite(last)]  # undefined in a chain that accepted nothing: ZERO_ACCEPTANCE speaks of that
    if last.size and last.mean() > MAX_AUXILIARY_MEMORY:
        advice = (
            f"auxiliary data keep a correlation of {last.mean():.2f} with the data that they start at: the exchange "
            "ratio then cancels the likelihood, and the posterior drifts towards the prior. Use more inner steps, or a "
            "larger step_size of the inner kernel."
        )
        problems.append(Problem("AUXILIARY_NOT_MIXED", advice, None, float(last.mean())))
    return problems


def nonfinite_proposals(evidence: Evidence) -> list[Problem]:
    """NONFINITE_PROPOSAL: proposals whose energy or gradient was NaN; rejected, but a sign of a broken energy."""
    advice = "{count} of {total} draws ({rate:.1%}) met a proposal with a NaN or -inf energy or a NaN gradient; it was "
    advice += "rejected, so that region is never visited. Check the energy at the edge of its domain."
    return _counted(evidence, "nonfinite_proposal", "NONFINITE_PROPOSAL", advice)


def too_short(evidence: Evidence) -> list[Problem]:
    """TOO_SHORT: one chain, or so few draws that R-hat and ESS would be noise."""
    total = evidence.num_chains * evidence.num_draws
    reasons = []
    if evidence.num_chains < 2:
        reasons.append("one chain cannot be compared with another: run at least 4")
    if evidence.num_draws < MIN_DRAWS:
        reasons.append(f"{evidence.num_draws} draws per chain: draw at least {MIN_DRAWS}, better 1000")
    elif total < MIN_TOTAL_DRAWS:
        reasons.append(f"{total} draws in all cannot give {MIN_TOTAL_DRAWS} effective ones: draw more")
    if not reasons:
        return []
    return [Problem("TOO_SHORT", f"too little to judge: {'; '.join(reasons)}.", None, float(total))]


def low_e_bfmi(evidence: Evidence) -> list[Problem]:
    """E_BFMI: momentum resampling explores the Hamiltonian energy too slowly (HMC and NUTS only)."""
    hamiltonian = evidence.statistic("energy")
    if hamiltonian is None or evidence.num_draws < MIN_DRAWS or not np.isfinite(hamiltonian).all():
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        fractions = bfmi(hamiltonian)
    return [
        Problem(
            "E_BFMI",
            f"energy fraction of missing information {fraction:.2f} < {MIN_E_BFMI}: the tails are explored slowly. "
            "Reparametrise (non-centred), or run longer.",
            int(chain),
            float(fraction),
        )
        for chain, fraction in zip(evidence.chains, fractions, strict=True)
        if fraction < MIN_E_BFMI
    ]


def wandering(evidence: Evidence) -> list[Problem]:
    """POSSIBLY_IMPROPER: the draws of the typical chain spread ever further instead of settling."""
    if evidence.num_draws < 16:
        return []
    tracks = [(parameter.label, parameter.draws) for parameter, _ in evidence.judged if not parameter.discrete]
    log_density = evidence.statistic("lp")
    if log_density is not None and np.isfinite(log_density).all():
        tracks.append(("lp", log_density))
    growth = [(_growth(draws), label) for label, draws in tracks]
    high = [(value, label) for value, label in growth if value > WANDERING]
    if not high:
        return []
    value, label = max(high)
    advice = (
        f"{label} still wanders: the variance of a whole chain is {value:.1f} times that of its quarters (1 when "
        "settled, 4 for a free random walk). The warm-up was too short, jumps between modes are rare, or exp(-E) has "
        "no finite integral: run longer, and see ebm.check_energy."
    )
    return [Problem("POSSIBLY_IMPROPER", advice, None, float(value))]


def _growth(draws: np.ndarray) -> float:
    """Median over chains of the variance of a chain over the mean variance of its quarters."""
    num_chains, num_draws = draws.shape
    length = num_draws // 4
    kept = draws[:, : 4 * length] - draws[:, :1]  # exactly 0 for a frozen chain
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        quarters = kept.reshape(num_chains, 4, length).var(axis=-1).mean(axis=-1)
        ratios = kept.var(axis=-1) / quarters
    ratios = ratios[np.isfinite(ratios)]
    return float(np.median(ratios)) if ratios.size else 1.0


def _counted(evidence: Evidence, name: str, code: str, advice: str) -> list[Problem]:
    flags = evidence.statistic(name)
    if flags is None:
        return []
    counts = flags.sum(axis=1)
    total = evidence.num_draws
    return [
        Problem(code, advice.format(count=int(count), total=total, rate=count / total), int(chain), float(count))
        for chain, count in zip(evidence.chains, counts, strict=True)
        if count
    ]


def _moves(evidence: Evidence, chain: int) -> int:
    moved = np.zeros(max(evidence.num_draws - 1, 0), dtype=bool)
    for parameter in evidence.parameters:
        moved |= np.diff(parameter.draws[chain]) != 0
    return int(moved.sum())


def _some(labels: Iterable[str]) -> str:
    labels = list(labels)
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
