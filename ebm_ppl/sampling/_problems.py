"""What can be said against a run from its own record, before any convergence diagnostic."""

import math

import numpy as np

from ebm_ppl.errors import Problem
from ebm_ppl.kernels import AbstractKernel

ZERO_ACCEPTANCE_STEPS = 100  # transitions without one acceptance before a chain is called dead
UNUSABLE_NONFINITE_FRACTION = 0.5
MIN_DRAWS_TO_JUDGE = 20
DRIFT_DRAWS = 100  # draws per chain that the drift check looks at in each half: it must cost nothing


def find_problems(
    positions: np.ndarray, stats: dict[str, np.ndarray], kernel: AbstractKernel, *, num_warmup: int, thinning: int
) -> list[Problem]:
    """Every named reason not to trust a run, chain by chain, gravest first.

    Args:
        positions: `(chain, draw, *event)`.
        stats: `(chain, draw)` by ArviZ name.
        kernel: the kernel that was used.
        num_warmup: warm-up transitions that came before.
        thinning: transitions per draw.

    Returns:
        Problems with codes NONFINITE_DRAW, DIVERGED, ZERO_ACCEPTANCE, STUCK_CHAIN, NONFINITE_PROPOSAL and
        POSSIBLY_IMPROPER.
    """
    flat = positions.reshape(*positions.shape[:2], math.prod(positions.shape[2:]))
    problems: list[Problem] = []
    for chain in range(len(flat)):
        one = {name: values[chain] for name, values in stats.items()}
        problems += _problems_of_chain(chain, flat[chain], one, kernel, num_warmup, thinning)
    return problems + _drift(flat)


def _problems_of_chain(
    chain: int, draws: np.ndarray, stats: dict[str, np.ndarray], kernel: AbstractKernel, num_warmup: int, thinning: int
) -> list[Problem]:
    found = []
    bad = int((~np.isfinite(draws).all(axis=1) | ~np.isfinite(stats["lp"])).sum())
    if bad:
        found.append(Problem("NONFINITE_DRAW", "draws or log densities are NaN or infinite: unusable.", chain, bad))
    diverging = int(stats["diverging"].sum())
    if diverging and not kernel.adjusted:
        step = int(np.argmax(stats["diverging"])) * thinning + num_warmup
        found.append(Problem("DIVERGED", _stopped_advice(step, kernel), chain, step))
        return found
    if diverging:
        advice = f"{diverging} of {len(draws)} transitions diverged: the curvature is too sharp for the step size; "
        found.append(Problem("DIVERGED", advice + "lower step_size or reparametrise.", chain, diverging))
    if len(draws) > 1 and (draws == draws[0]).all():
        found.append(_frozen(chain, stats, len(draws) * thinning))
    nonfinite = int(stats["nonfinite_proposal"].sum())
    if nonfinite:
        advice = f"{nonfinite} of {len(draws)} draws met a proposal with a NaN or -inf energy or a NaN gradient; "
        if nonfinite > UNUSABLE_NONFINITE_FRACTION * len(draws):
            advice += "they were rejected, but they are most of them: do not use this chain."
        else:
            advice += "they were rejected; check the energy at the edge of its domain."
        found.append(Problem("NONFINITE_PROPOSAL", advice, chain, nonfinite))
    return found


def _frozen(chain: int, stats: dict[str, np.ndarray], steps: int) -> Problem:
    step_size = float(stats["step_size"][-1])
    if "acceptance_rate" in stats and steps >= ZERO_ACCEPTANCE_STEPS:
        advice = f"0 of {steps} proposals accepted; step_size {step_size:.3g} is too large: lower it, "
        return Problem("ZERO_ACCEPTANCE", advice + "or use num_warmup > 0.", chain, 0.0)
    advice = "the chain never moved, so its effective sample size is 0; "
    return Problem("STUCK_CHAIN", advice + f"lower step_size (now {step_size:.3g}) or draw more.", chain, 1.0)


def _stopped_advice(step: int, kernel: AbstractKernel) -> str:
    step_size = float(np.mean(np.asarray(kernel.step_size)))
    return (
        f"the energy or its gradient became non-finite at transition {step}; from there on the chain is kept at its "
        f"last finite point. Lower step_size (now {step_size:.3g}) below 2 / L, L the largest curvature of the energy."
    )


def _drift(flat: np.ndarray) -> list[Problem]:
    """Chains that wander off instead of settling.

    On a proper target in equilibrium both halves of a chain have the same law; on an improper one the chain runs
    away. Flagged when the median distance from the first half's centre has more than tripled in the last quarter
    and every chain has left, in some coordinate, the whole range of its own first half.
    """
    if flat.shape[1] < 2 * MIN_DRAWS_TO_JUDGE:
        return []
    flat = flat[:, :: max(1, flat.shape[1] // (2 * DRIFT_DRAWS))].astype(np.float64)
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
