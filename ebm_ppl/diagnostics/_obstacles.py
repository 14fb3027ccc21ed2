"""Draws of which no statistical test can judge an average."""

import numpy as np
import xarray as xr

from ebm_ppl.diagnostics._parameters import chains_of, stuck_chains
from ebm_ppl.errors import Problem

MIN_DRAWS = 10


def obstacles(dataset: xr.Dataset, positions: np.ndarray) -> list[Problem]:
    """NONFINITE_DRAW, TOO_SHORT, STUCK_CHAIN: what makes a standard error meaningless.

    Args:
        dataset: the group.
        positions: the draws to be tested, `(chain, draw, *event)`.
    """
    chains, num_draws = chains_of(dataset)
    if num_draws < MIN_DRAWS:
        advice = f"{num_draws} draws per chain: at least {MIN_DRAWS} are needed for a standard error."
        return [Problem("TOO_SHORT", advice, None, float(num_draws))]
    finite = np.isfinite(positions.reshape(*positions.shape[:2], -1)).all(axis=(1, 2))
    advice = "the chain holds non-finite draws: see ebm.diagnose."
    problems = [Problem("NONFINITE_DRAW", advice, int(chain)) for chain in chains[~finite]]
    advice = "the chain does not move, so that its average has no standard error: see ebm.diagnose."
    return problems + [Problem("STUCK_CHAIN", advice, int(chain)) for chain in chains[stuck_chains(dataset)]]
