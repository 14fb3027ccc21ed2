"""The bias of a kernel without rejections: how far expectations move when it runs from exact draws."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from ebm_ppl.diagnostics._family import Finding
from ebm_ppl.diagnostics._features import Features
from ebm_ppl.diagnostics._transitions import Chains
from ebm_ppl.errors import Problem

MAX_CORRELATION, MAX_STEPS, STRIDE = 0.1, 4000, 10


def measure_bias(
    chains: Chains,
    features: Features,
    before: Float[np.ndarray, "n feature"],
    *,
    budget: float,
    level: float,
) -> tuple[Finding, tuple[Problem, ...], int]:
    """E f(x_T) - E f(x_0) in standard deviations of f, T so large that x_T has forgotten x_0.

    Returns the largest over all bounded statistics f, the problem if it is not certain to be within `budget`, and T.
    """
    steps = 0
    while True:
        for _ in range(STRIDE):
            chains.step()
        steps += STRIDE
        after = features(chains.position, chains.energy)
        if not np.isfinite(after).all():
            advice = "the chains left the numbers within the run: the step size is above the kernel's limit."
            return (
                Finding("bias", "invariance", np.inf, None, None, "FAIL", advice),
                (_bias_problem(advice, np.inf),),
                steps,
            )
        memory = max(_correlation(a, b) for a, b in zip(before.T, after.T, strict=True))
        if memory < max(MAX_CORRELATION, 4 / np.sqrt(len(before))) or steps >= MAX_STEPS:
            break
    finding, problems = _judge(before, after, features.names, budget=budget, level=level)
    if memory >= max(MAX_CORRELATION, 4 / np.sqrt(len(before))):
        advice = f"after {steps} steps the chains still remember their start (correlation {memory:.2f}): the bias of "
        advice += "the stationary law is larger than the one measured."
        problems = (*problems, Problem("BIAS_UNRESOLVED", advice, value=memory))
    return finding, problems, steps


def _judge(
    before: Float[np.ndarray, "n feature"],
    after: Float[np.ndarray, "n feature"],
    names: Sequence[str],
    *,
    budget: float,
    level: float,
) -> tuple[Finding, tuple[Problem, ...]]:
    spread, count = before.std(axis=0), len(before)
    bias = (after.mean(axis=0) - before.mean(axis=0)) / spread
    errors = (after - before).std(axis=0) / (spread * np.sqrt(count))
    reach = stats.norm.isf(level / len(bias))
    worst = int(np.abs(bias).argmax())
    value, error = float(np.abs(bias)[worst]), float(errors[worst])
    upper, lower = (np.abs(bias) + reach * errors).max(), (np.abs(bias) - reach * errors).max()
    detail = f"largest of {len(bias)}, in standard deviations: {names[worst]}; budget {budget:g}"
    if lower > budget:
        advice = f"the bias of {names[worst]} is {value:.3g} standard deviations, above the budget of {budget:g}: "
        advice += "lower the step size, or use a kernel with a Metropolis step."
        return Finding("bias", "invariance", value, None, error, "FAIL", detail), (_bias_problem(advice, value),)
    if upper > budget:
        advice = f"the bias may be as large as {upper:.3g} standard deviations, above the budget of {budget:g}: it is "
        advice += "not resolved. Use more pairs (`num_pairs`) or a smaller step size."
        problem = Problem("BIAS_UNRESOLVED", advice, value=float(upper))
        return Finding("bias", "invariance", value, None, error, "FAIL", detail), (problem,)
    return Finding("bias", "invariance", value, None, error, "pass", detail), ()


def _bias_problem(advice: str, value: float) -> Problem:
    return Problem("BIAS", advice, value=value)


def _correlation(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return abs(float(np.corrcoef(one, other)[0, 1]))
