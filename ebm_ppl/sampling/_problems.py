"""What can be said against a run from its own record, before any convergence diagnostic."""

import math
from typing import Any

import numpy as np

from ebm_ppl.errors import Problem
from ebm_ppl.kernels import AbstractKernel

ZERO_ACCEPTANCE_STEPS = 100  # transitions without one acceptance before a chain is called dead
UNUSABLE_NONFINITE_FRACTION = 0.5
MIN_DRAWS_TO_JUDGE = 20
BLOCK_NUMBERS = 2**21  # looked at at once, so that a run on disk is judged in little memory
DRIFT_DRAWS = 100  # draws per chain that the drift check looks at in each half: it must cost nothing


def find_problems(
    positions: Any, stats: dict[str, Any], kernel: AbstractKernel, *, num_warmup: int, thinning: int
) -> list[Problem]:
    """Every named reason not to trust a run, chain by chain, gravest first.

    Args:
        positions: `(chain, draw, *event)`; anything with `shape` and slices, read in blocks.
        stats: `(chain, draw)` by ArviZ name; likewise, read chain by chain.
        kernel: the kernel that was used.
        num_warmup: warm-up transitions that came before.
        thinning: transitions per draw.

    Returns:
        Problems with codes NONFINITE_DRAW, DIVERGED, ZERO_ACCEPTANCE, STUCK_CHAIN, NONFINITE_PROPOSAL and
        POSSIBLY_IMPROPER.
    """
    problems: list[Problem] = []
    for chain in range(positions.shape[0]):
        one = {name: values[chain] for name, values in stats.items()}
        problems += _problems_of_chain(chain, positions, one, kernel, num_warmup, thinning)
    return problems + _drift(positions)


def _problems_of_chain(
    chain: int, positions: Any, stats: dict[str, np.ndarray], kernel: AbstractKernel, num_warmup: int, thinning: int
) -> list[Problem]:
    found, count = [], positions.shape[1]
    bad, moved = _scan(positions, stats["lp"], chain)
    if bad:
        found.append(Problem("NONFINITE_DRAW", "draws or log densities are NaN or infinite: unusable.", chain, bad))
    diverging = int(stats["diverging"].sum())
    if diverging and not kernel.adjusted:
        step = int(np.argmax(stats["diverging"])) * thinning + num_warmup
        found.append(Problem("DIVERGED", _stopped_advice(step, kernel), chain, step))
        return found
    annealing = int(stats["annealing"].sum()) if "annealing" in stats else 0
    if annealing:
        advice = f"the first {annealing} of {count} draws were made above the last level; raise num_warmup by "
        found.append(Problem("STILL_ANNEALING", advice + f"{annealing * thinning}.", chain, annealing))
    if diverging:
        advice = f"{diverging} of {count} transitions diverged: the curvature is too sharp for the step size; "
        found.append(Problem("DIVERGED", advice + "lower step_size or reparametrise.", chain, diverging))
    if count > 1 and not moved:
        found.append(_frozen(chain, stats, count * thinning))
    nonfinite = int(stats["nonfinite_proposal"].sum())
    if nonfinite:
        advice = f"{nonfinite} of {count} draws met a proposal with a NaN or -inf energy or a NaN gradient; "
        if nonfinite > UNUSABLE_NONFINITE_FRACTION * count:
            advice += "they were rejected, but they are most of them: do not use this chain."
        else:
            advice += "they were rejected; check the energy at the edge of its domain."
        found.append(Problem("NONFINITE_PROPOSAL", advice, chain, nonfinite))
    return found


def _scan(positions: Any, lp: np.ndarray, chain: int) -> tuple[int, bool]:
    """How many draws of a chain are not finite, and whether it ever left its first one."""
    count, size, bad, moved = positions.shape[1], math.prod(positions.shape[2:]), 0, False
    rows = max(1, BLOCK_NUMBERS // max(1, size))
    start = positions[chain, :1].reshape(min(count, 1), size)
    for first in range(0, count, rows):
        block = positions[chain, first : first + rows]
        block = block.reshape(len(block), size)
        bad += int((~np.isfinite(block).all(axis=1) | ~np.isfinite(lp[first : first + rows])).sum())
        moved = moved or bool((block != start).any())
    return bad, moved


def _frozen(chain: int, stats: dict[str, np.ndarray], steps: int) -> Problem:
    step_size = float(stats["step_size"][-1])
    if "acceptance_rate" in stats and steps >= ZERO_ACCEPTANCE_STEPS:
        advice = f"0 of {steps} proposals accepted; step_size {step_size:.3g} is too large: lower it, "
        return Problem("ZERO_ACCEPTANCE", advice + "or use num_warmup > 0.", chain, 0.0)
    advice = "the chain never moved, so its effective sample size is 0; "
    if not np.isfinite(step_size):
        advice += (
            "warm-up found no step size too large: is the energy flat, or falling without end? See ebm.check_energy."
        )
        return Problem("STUCK_CHAIN", advice, chain, 1.0)
    return Problem("STUCK_CHAIN", advice + f"lower step_size (now {step_size:.3g}) or draw more.", chain, 1.0)


def _stopped_advice(step: int, kernel: AbstractKernel) -> str:
    step_size = float(np.mean(np.asarray(kernel.step_size)))
    return (
        f"the energy or its gradient became non-finite at transition {step}; from there on the chain is kept at its "
        f"last finite point. Lower step_size (now {step_size:.3g}) below 2 / L, L the largest curvature of the energy."
    )


def _drift(positions: Any) -> list[Problem]:
    """Chains that wander off instead of settling.

    On a proper target in equilibrium both halves of a chain have the same law; on an improper one the chain runs
    away. Flagged when the median distance from the first half's centre has more than tripled in the last quarter
    and every chain has left, in some coordinate, the whole range of its own first half.
    """
    if positions.shape[1] < 2 * MIN_DRAWS_TO_JUDGE:
        return []
    some = positions[:, :: max(1, positions.shape[1] // (2 * DRIFT_DRAWS))]
    flat = some.reshape(*some.shape[:2], math.prod(some.shape[2:])).astype(np.float64)
    if not np.isfinite(flat).all():
        return []
    half = flat.shape[1] // 2
    first, last = flat[:, :half], flat[:, -(half // 2) :]
    centre = np.median(first, axis=(0, 1))
    before = np.median(np.linalg.norm(first - centre, axis=-1))
    after = np.median(np.linalg.norm(last - centre, axis=-1))
    escaped = np.median(last, axis=1) > first.max(axis=1)
    escaped |= np.median(last, axis=1) < first.min(axis=1)
    if before > 0 and after > 3 * before and escaped.any(axis=1).all():
        advice = (
            f"every chain drifts away (its distance from the start grew {after / before:.1f}-fold): exp(-E) may have "
            "no finite integral; see ebm.check_energy, or run a longer warm-up."
        )
        return [Problem("POSSIBLY_IMPROPER", advice, None, float(after / before))]
    return []
