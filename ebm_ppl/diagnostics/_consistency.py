"""Do the stored log densities belong to this energy?"""

import numpy as np
from jaxtyping import Array, Float

from ebm_ppl.diagnostics._evaluate import energies_at, positions_of
from ebm_ppl.diagnostics._evidence import Evidence
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import Problem


def energy_problems(
    evidence: Evidence, energy: AbstractEnergy, condition: Float[Array, "..."] | None
) -> tuple[list[Problem], list[str]]:
    """NONFINITE_ENERGY and ENERGY_MISMATCH: E at the draws against the stored `lp` = -E.

    Returns:
        Problems and notes. An offset that is the same for all draws changes no expectation: it is a note.
    """
    positions = positions_of(evidence.dataset, energy.event_shape)
    values, eps = energies_at(energy, positions, condition)
    finite_draws = np.isfinite(positions.reshape(*positions.shape[:2], -1)).all(axis=-1)
    bad = ~np.isfinite(values) & finite_draws
    problems = [
        Problem(
            "NONFINITE_ENERGY",
            f"the energy is NaN or infinite at {count} of {evidence.num_draws} draws: a chain of this energy cannot "
            "be there. Were the draws made with another energy?",
            int(chain),
            float(count),
        )
        for chain, count in zip(evidence.chains, bad.sum(axis=1), strict=True)
        if count
    ]
    stored = evidence.statistic("lp")
    if stored is None:
        return problems, ["the statistics hold no `lp`: whether the draws belong to this energy was not checked."]
    usable = np.isfinite(values) & np.isfinite(stored)
    mismatch, notes = _compare(stored[usable], -values[usable], eps)
    return problems + mismatch, notes


def _compare(
    stored: Float[np.ndarray, " n"], expected: Float[np.ndarray, " n"], eps: float
) -> tuple[list[Problem], list[str]]:
    if not stored.size:
        return [], []
    # Energies are sums with cancellation, compiled differently in the sampler: half the digits must agree.
    tolerance = np.sqrt(eps) * (1 + np.abs(expected))
    difference = stored - expected
    offset = float(np.median(difference))
    if np.all(np.abs(difference) <= tolerance):
        return [], []
    if np.all(np.abs(difference - offset) <= tolerance):
        note = f"the stored lp exceeds -E by the constant {offset:.6g} nats: the same distribution, another normaliser."
        return [], [note]
    worst = float(np.max(np.abs(difference)))
    share = float(np.mean(np.abs(difference) > tolerance))
    advice = (
        f"the stored lp differs from -E(x) at {share:.1%} of the draws, by up to {worst:.3g} nats, and not by a "
        "constant: the draws were made with another energy (or other parameters or another condition), or the "
        "sampler kept a stale log density."
    )
    return [Problem("ENERGY_MISMATCH", advice, None, worst)], []
