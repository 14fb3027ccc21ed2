"""Do the chains agree (R-hat), is there enough of them (ESS), and what changes when there are very many."""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from ebm_ppl.diagnostics._arviz import rank_r_hat
from ebm_ppl.diagnostics._evidence import Evidence
from ebm_ppl.diagnostics._findings import MIN_DRAWS, MIN_TOTAL_DRAWS
from ebm_ppl.errors import Problem

MAX_R_HAT = 1.01
MIN_ESS, MIN_ESS_PER_CHAIN = 400, 100
FALSE_ALARM = 1e-3  # of a whole report, for independent draws
MIN_CHAINS_FOR_DRIFT, MIN_DRIFT = 20, 0.2
MAX_MEMORY = 0.3
MAX_CHAINS_FOR_CULPRIT = 16


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Findings on convergence: `problems`, and `notes` where a number looks worse than it is."""

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def agreement(evidence: Evidence) -> Agreement:
    """R_HAT, DRIFT, ESS_BULK and ESS_TAIL.

    R-hat above 1.01 is a problem unless (a) independent draws of this number exceed that value by chance, or
    (b) many chains prove that they forgot their start: the first third of a chain does not predict its last third.
    (b) is what makes a thousand chains of twenty draws judgeable: R-hat of chains that short is far above 1.01 for
    any autocorrelation, though their pool may hold thousands of effective draws.
    """
    if evidence.num_draws < MIN_DRAWS:
        return Agreement((), ())
    problems, notes, forgotten = _judge_r_hat(evidence)
    problems += _drift(evidence)
    if evidence.num_chains * evidence.num_draws >= MIN_TOTAL_DRAWS:
        problems += _judge_ess(evidence, forgotten=forgotten)
    return Agreement(tuple(problems), tuple(notes))


def r_hat_limit(num_chains: int, num_draws: int, num_parameters: int) -> float:
    """1.01, or what independent draws exceed with probability `FALSE_ALARM`, where that is more.

    For independent normal draws n (R-hat^2 - 1) + 1 is F-distributed with 2m - 1 and 2m (n - 1) degrees of freedom,
    m the number of chains and n the length of their halves. R-hat is the larger one of two such numbers.
    """
    half = num_draws // 2
    ratio = stats.f.isf(FALSE_ALARM / (2 * num_parameters), 2 * num_chains - 1, 2 * num_chains * (half - 1))
    return max(MAX_R_HAT, float(np.sqrt((ratio - 1 + half) / half)))


def _judge_r_hat(evidence: Evidence) -> tuple[list[Problem], list[str], bool]:
    judged = evidence.judged
    if not judged or evidence.num_chains < 2:
        return [], [], False
    limit = r_hat_limit(evidence.num_chains, evidence.num_draws, len(judged))
    high = [(row["r_hat"], parameter) for parameter, row in judged if not row["r_hat"] <= limit]
    if not high:
        return [], [], False
    value, worst = max(high, key=lambda entry: entry[0])
    where = worst.label + (f" ({len(high)} of {len(judged)} parameters are above {limit:.3g})" if judged[1:] else "")
    memory = max(_memory(parameter.draws) for _, parameter in high)
    if memory <= _memory_bound(evidence, len(judged)):
        note = (
            f"R-hat {value:.3g} of {where} is due to chains that are short, not to chains that disagree: over "
            f"{evidence.num_chains} chains the first third of a chain does not predict its last third "
            f"(correlation {memory:.2f})."
        )
        return [], [note], True
    culprit = _culprit(worst.draws, limit)
    if culprit is not None:
        advice = f"worst for {where}; without chain {evidence.chains[culprit]} the others agree. That chain sits in "
        advice += "another region or is not warmed up: look at it before you drop it."
        return [Problem("R_HAT", advice, int(evidence.chains[culprit]), float(value))], [], False
    advice = f"worst for {where}: the chains disagree in location or spread, so that averages depend on the starts. "
    advice += "Warm up and draw longer; if the chains sit in different modes, temper the energy."
    return [Problem("R_HAT", advice, None, float(value))], [], False


def _culprit(draws: Float[np.ndarray, "chain draw"], limit: float) -> int | None:
    """The one chain without which the others agree, if there is such a chain."""
    if not 3 <= len(draws) <= MAX_CHAINS_FOR_CULPRIT:
        return None
    without = [rank_r_hat(np.delete(draws, chain, axis=0)) for chain in range(len(draws))]
    best = int(np.argmin(without))
    return best if without[best] <= limit else None


def _memory_bound(evidence: Evidence, num_parameters: int) -> float:
    """Largest correlation of first and last third that still shows forgetting; negative where it cannot be shown.

    Two conditions on a correlation over m chains, with standard error 1/sqrt(m - 3): it is no further from 0 than
    chance allows, and its 99 % upper bound is below `MAX_MEMORY`.
    """
    if evidence.num_chains < 10:
        return -1.0
    error = 1 / np.sqrt(evidence.num_chains - 3)
    by_chance = stats.norm.isf(FALSE_ALARM / (2 * num_parameters)) * error
    return float(min(np.tanh(by_chance), np.tanh(np.arctanh(MAX_MEMORY) - stats.norm.isf(0.01) * error)))


def _memory(draws: Float[np.ndarray, "chain draw"]) -> float:
    """Correlation over chains of the first and the last third, of ranks and of folded ranks; 1 where undefined."""
    third = draws.shape[1] // 3
    memories = []
    for values in (draws, np.abs(draws - np.median(draws))):
        scores = special.ndtri((stats.rankdata(values).reshape(draws.shape) - 0.375) / (draws.size + 0.25))
        first, last = scores[:, :third].mean(axis=1), scores[:, -third:].mean(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            memories.append(np.corrcoef(first, last)[0, 1] if np.ptp(first) * np.ptp(last) > 0 else 1.0)
    return float(max(memories))


def _drift(evidence: Evidence) -> list[Problem]:
    """DRIFT: with many chains, the law of the draws can be compared between the two ends of the run."""
    parameters = [parameter for parameter, _ in evidence.judged]
    if evidence.num_chains < MIN_CHAINS_FOR_DRIFT or not parameters:
        return []
    third = evidence.num_draws // 3
    limit = stats.t.isf(FALSE_ALARM / (2 * len(parameters)), evidence.num_chains - 1)
    found = []
    for parameter in parameters:
        change = parameter.draws[:, -third:].mean(axis=1) - parameter.draws[:, :third].mean(axis=1)
        spread, error = parameter.draws.std(), change.std(ddof=1) / np.sqrt(len(change))
        if np.abs(change.mean()) > max(limit * error, MIN_DRIFT * spread):
            found.append((float(change.mean() / spread), parameter.label))
    if not found:
        return []
    value, label = max(found, key=lambda entry: abs(entry[0]))
    advice = (
        f"from the first to the last third of the run {label} moved by {value:.2g} standard deviations on average "
        f"over all chains ({len(found)} of {len(parameters)} parameters drift): the run has not reached equilibrium. "
        "Use a longer warm-up."
    )
    return [Problem("DRIFT", advice, None, value)]


def _judge_ess(evidence: Evidence, *, forgotten: bool) -> list[Problem]:
    """ESS_BULK and ESS_TAIL: 400 effective draws, and 100 per chain where the chains are long enough for that."""
    per_chain = 0 if forgotten else min(MIN_ESS_PER_CHAIN, evidence.num_draws // 4)
    need = max(MIN_ESS, per_chain * evidence.num_chains)
    total = evidence.num_chains * evidence.num_draws
    problems = []
    for column, code, what in (("ess_bulk", "ESS_BULK", "means"), ("ess_tail", "ESS_TAIL", "quantiles")):
        low = [(row[column], parameter.label) for parameter, row in evidence.judged if not row[column] >= need]
        if not low:
            continue
        value, label = min(low)
        others = f" ({len(low)} of {len(evidence.judged)} parameters are below {need})" if evidence.judged[1:] else ""
        advice = (
            f"worst for {label}{others}: {total} draws are worth {value:.0f} independent ones, {need} are needed to "
            f"trust {what} and R-hat. Draw more, or use a kernel that moves further per draw (HMC, NUTS, "
            "preconditioning)."
        )
        problems.append(Problem(code, advice, None, float(value)))
    return problems
