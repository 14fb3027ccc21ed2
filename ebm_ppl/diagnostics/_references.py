"""Independent draws from the target, from which a kernel's test starts."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ebm_ppl._checks import check_data, check_finite, check_floating
from ebm_ppl.diagnostics._arviz import ess_bulk
from ebm_ppl.energies import AbstractEnergy, AbstractReferenceEnergy
from ebm_ppl.errors import EnergyShapeError, Problem
from ebm_ppl.sampling import Draws, parallel_tempering

CHAINS, THINNING = 200, 4


@dataclasses.dataclass(frozen=True, eq=False)
class References:
    """`start` and `fresh`, two sets of independent draws `(n, *event)`, and what a reader must know of them."""

    start: np.ndarray
    fresh: np.ndarray
    note: str = ""
    problem: Problem | None = None


def references(
    energy: AbstractEnergy, draws: Any, num_pairs: int, key: jax.Array, condition: Any, round_number: int
) -> References:
    """Two sets of `num_pairs` draws: the energy's own where it has them, tempered chains, or the draws given.

    Raises:
        EnergyShapeError: the draws have not the energy's `event_shape`.
        InvalidDataError: they are not finite.
    """
    if draws is None:
        return _own(energy, num_pairs, key, condition)
    positions, note = _given(energy, draws)
    order = np.asarray(jax.random.permutation(key, len(positions)))
    count = min(num_pairs, len(positions) // 2)
    if count < 100:
        raise EnergyShapeError(f"`reference_draws` must hold at least 200 independent draws; got {len(positions)}.")
    if round_number > 1:
        note = f"{note} The rounds share the draws given: the sequential level holds for the kernel's randomness only."
    problem = draws.problems[0] if isinstance(draws, Draws) and draws.problems else None
    return References(positions[order[:count]], positions[order[count : 2 * count]], note.strip(), problem)


def _own(energy: AbstractEnergy, num_pairs: int, key: jax.Array, condition: Any) -> References:
    if isinstance(energy, AbstractReferenceEnergy):
        try:
            both = np.asarray(energy.sample(key, (2, num_pairs)))
            return References(both[0], both[1])
        except NotImplementedError:
            pass  # its law is known, but not how to draw from it
    samples = max(10, math.ceil(2 * num_pairs * THINNING / CHAINS))
    draws = parallel_tempering(
        energy, key=key, num_chains=CHAINS, num_samples=samples, condition=condition, progress_bar=False
    )
    thinned, ess = _independent(np.asarray(draws.positions))
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 1), len(thinned)))
    count = min(num_pairs, len(thinned) // 2)
    note = (
        f"the reference draws come from tempered chains ({ess:.0f} effective draws): a test that fails may be theirs."
    )
    problem = draws.problems[0] if draws.problems else None
    return References(thinned[order[:count]], thinned[order[count : 2 * count]], note, problem)


def _given(energy: AbstractEnergy, draws: Any) -> tuple[np.ndarray, str]:
    array = check_floating("reference_draws", draws.positions if isinstance(draws, Draws) else draws)
    shape = tuple(energy.event_shape)
    if array.ndim == len(shape) + 2 and array.shape[2:] == shape:
        check_finite("reference_draws", array)
        thinned, ess = _independent(np.asarray(array))
        return thinned, f"the reference draws are chains ({ess:.0f} effective draws): a test that fails may be theirs."
    return np.asarray(check_data("reference_draws", array, shape)), ""


def _independent(positions: Float[np.ndarray, "chain draw ..."]) -> tuple[np.ndarray, float]:
    """Every so many draws of every chain, so that about as many are left as are effective; and how many these were."""
    flat = positions.reshape(*positions.shape[:2], -1).astype(np.float64)
    columns = range(min(flat.shape[-1], 8))
    values = [flat[..., i] for i in columns] + [((flat - flat.mean(axis=(0, 1))) ** 2).sum(axis=-1)]
    ess = min(ess_bulk(value) for value in values)
    stride = max(1, math.ceil(positions.shape[0] * positions.shape[1] / max(ess, 1.0)))
    thinned = positions[:, ::stride]
    return thinned.reshape(-1, *positions.shape[2:]), ess
