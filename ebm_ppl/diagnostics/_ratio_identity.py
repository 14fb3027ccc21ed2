"""Detailed balance of a Metropolis kernel, pair by pair: the reported acceptance against the textbook's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ebm_ppl.diagnostics._family import Finding, not_applicable
from ebm_ppl.diagnostics._transitions import Chains, Invariant, Ratio
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._coordinate_energy import coordinate_energy
from ebm_ppl.energies._parameters import cast_floating
from ebm_ppl.errors import Problem
from ebm_ppl.kernels import AbstractKernel

NUM_PAIRS = 1024
TOLERANCE = 1e-9  # of a difference of acceptance rates, times the size of the energies that are subtracted
SINGLE_PRECISION_TOLERANCE = 1e-4
MAX_DISPLACEMENT = 1e-6


def ratio_identity(
    kernel: AbstractKernel,
    energy: AbstractEnergy,
    condition: Any,
    positions: Float[np.ndarray, "n ..."],
    key: Any,
    ratio: Ratio | None,
) -> tuple[Finding, Problem | None]:
    """Reported acceptance = min(1, p(y) q(y, x) / (p(x) q(x, y))) on visited pairs, in double precision.

    Two transitions each of the first `NUM_PAIRS` lanes: a state that the kernel itself left behind is looked at, too.
    """
    if not kernel.adjusted:
        return not_applicable("ratio_identity", "ratio", "the kernel has no Metropolis step"), None
    if ratio is None:
        return not_applicable("ratio_identity", "ratio", "no proposal density is known: give `log_proposal`"), None
    with jax.enable_x64(new_val=True):
        kernel, energy, condition = cast_floating((kernel, energy, condition), jnp.dtype("float64"))
        target = Invariant(coordinate_energy(energy, np.float64), condition)
        chains = Chains(kernel, target, positions[:NUM_PAIRS].astype(np.float64), key, ratio)
        single = bool(np.any(chains.energy) and (chains.energy == chains.energy.astype(np.float32)).all())
        errors = []
        for _ in range(2):
            before = chains.energy
            step = chains.step()
            if step.rate is None or step.log_ratio is None:
                return not_applicable("ratio_identity", "ratio", "the kernel does not show its proposals"), None
            errors.append(_error(before, step, SINGLE_PRECISION_TOLERANCE if single else TOLERANCE))
    worst = max(errors)
    if worst <= 1:
        return Finding("ratio_identity", "ratio", worst, detail="error in units of the rounding allowed"), None
    advice = "the reported acceptance is not min(1, p(y) q(y, x) / (p(x) q(x, y))) with the proposal density of this "
    advice += "kernel (error in units of the rounding allowed): detailed balance is broken pair by pair."
    finding = Finding("ratio_identity", "ratio", worst, verdict="FAIL", detail=advice)
    return finding, Problem("RATIO_IDENTITY", advice, value=worst)


def _error(before: Float[np.ndarray, " n"], step: Any, tolerance: float) -> float:
    """The largest error, 1 for as much as rounding may cause."""
    log_ratio = np.where(np.isnan(step.log_ratio) | ~np.isfinite(step.proposal_energy), -np.inf, step.log_ratio)
    size = 1 + np.abs(before) + np.where(np.isfinite(step.proposal_energy), np.abs(step.proposal_energy), 0)
    error = np.abs(step.rate - np.exp(np.minimum(log_ratio, 0))) / (tolerance * size)
    moved_by = np.where(np.isfinite(log_ratio), step.displacement, 0) / (MAX_DISPLACEMENT * tolerance / TOLERANCE)
    worst = float(np.max(np.maximum(error, moved_by)))
    return worst if np.isfinite(worst) else np.inf
