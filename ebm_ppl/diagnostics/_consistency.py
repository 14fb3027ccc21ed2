"""Do the stored log densities belong to this energy?"""

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from ebm_ppl._checks import check_condition, check_floating
from ebm_ppl.diagnostics._evidence import Evidence
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import EnergyShapeError, Problem

BATCH = 1024


def energy_problems(
    evidence: Evidence, energy: AbstractEnergy, condition: Float[Array, "..."] | None
) -> tuple[list[Problem], list[str]]:
    """NONFINITE_ENERGY and ENERGY_MISMATCH: E at the draws against the stored `lp` = -E.

    Returns:
        Problems and notes. An offset that is the same for all draws changes no expectation: it is a note.
    """
    checked = check_condition(condition, energy.condition_shape, evidence.num_chains)
    positions = _positions(evidence.dataset, energy.event_shape)
    device_positions = check_floating("draws", positions)
    values = np.asarray(_energies(energy, device_positions, checked), np.float64)
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
    mismatch, notes = _compare(stored[usable], -values[usable], float(np.finfo(device_positions.dtype).eps))
    return problems + mismatch, notes


@eqx.filter_jit
def _energies(
    energy: AbstractEnergy, positions: Float[Array, "chain draw ..."], condition: Float[Array, "..."] | None
) -> Float[Array, "chain draw"]:
    """E at every draw, in batches; `condition` may bring one entry per chain."""

    def one_chain(draws: Float[Array, "draw ..."], given: Float[Array, "..."] | None) -> Float[Array, " draw"]:
        return jax.lax.map(lambda x: energy(x, given), draws, batch_size=max(1, BATCH // len(positions)))

    per_chain = condition is not None and condition.shape != energy.condition_shape
    return jax.vmap(one_chain, in_axes=(0, 0 if per_chain else None))(positions, condition)


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


def _positions(dataset: xr.Dataset, event_shape: tuple[int, ...]) -> np.ndarray:
    arrays = {
        str(name): variable.transpose("chain", "draw", ...).values for name, variable in dataset.data_vars.items()
    }
    matching = [name for name, array in arrays.items() if array.shape[2:] == tuple(event_shape)]
    if len(matching) != 1:
        shapes = {name: array.shape[2:] for name, array in arrays.items()}
        raise EnergyShapeError(
            f"exactly one variable must have the energy's `event_shape` {tuple(event_shape)}; got {shapes}: "
            "pass a tree with that variable only, e.g. tree['posterior'].to_dataset()[['x']]."
        )
    return arrays[matching[0]]
