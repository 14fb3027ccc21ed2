"""Are these stored chains reversible? From the draws alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from ebm_ppl.diagnostics._arviz import ess_bulk
from ebm_ppl.diagnostics._exchangeability import wedges
from ebm_ppl.diagnostics._parameters import chains_of, iterate_parameters, stuck_chains
from ebm_ppl.diagnostics._randomisation import sign_flip_p_value
from ebm_ppl.diagnostics._to_datatree import as_datatree
from ebm_ppl.diagnostics._verdict import Verdict
from ebm_ppl.errors import Problem
from ebm_ppl.sampling import Draws

MIN_BLOCKS, MAX_BLOCKS = 20, 64
DRAWS_PER_BLOCK = 10  # effective ones, so that blocks of one chain are all but independent
MAX_PARAMETERS = 8  # more are mixed into as many fixed random directions


def reversibility(
    data: xr.DataTree | xr.Dataset | Draws | Mapping[str, Any] | Any,
    *,
    group: str = "posterior",
    level: float = 0.01,
) -> Verdict:
    r"""Test whether chains run forwards as they run backwards, from the stored draws alone.

    For bounded functions f_i of the draws, a stationary reversible chain has

    \[ E\left[ f_i(x_t) f_j(x_{t+1}) - f_j(x_t) f_i(x_{t+1}) \right] = 0 . \]

    Reversal in time turns the mean over a chain, or over a long block of it, into its negative: with signs flipped
    at random the p-value of the largest statistic is exact over independent chains, and nearly so over blocks. With
    20 chains or more each is one block, with fewer they are cut into blocks of at least ten effective draws.

    Not a test of correctness: a right kernel may be irreversible, and a reversible one have the wrong law (unadjusted
    Langevin on a normal target). Chains that drift are not reversible either. See `detailed_balance` for the rest.

    Args:
        data: draws: `DataTree`, `Dataset`, `Draws`, a mapping of arrays or an array `(chain, draw, *event)`. Thinned
            draws are tested at the lag of the thinning.
        group: the group to judge.
        level: the probability that reversible chains are rejected.

    Returns:
        A `Verdict` with `ok`, `p_value`, `statistic` (the largest |z|), and a `table` over `pair` with the mean
        `estimate`, its `standard_error` and `z`. `problems`: NONFINITE_DRAW, STUCK_CHAIN, TOO_SHORT (fewer than 20
        blocks).

    Raises:
        ValueError: `level` is out of range, or the group holds nothing to judge.

    Example:
        >>> import numpy as np, ebm_ppl as ebm
        >>> rng = np.random.default_rng(0)
        >>> ebm.diagnostics.reversibility(rng.normal(size=(4, 1000, 2))).ok
        True
        >>> angle = np.cumsum(0.3 + 0.3 * rng.normal(size=(4, 1000)), axis=1)          # round and round, one way
        >>> ebm.diagnostics.reversibility(np.stack([np.cos(angle), np.sin(angle)], axis=-1)).ok
        False

    References:
        Steinberg (1986). Time irreversibility of chemical and other processes: antisymmetric correlations.
        Biophysical Journal 50(4), 663-664. doi:10.1016/S0006-3495(86)83506-8
        Besag, Clifford (1989). Generalized Monte Carlo significance tests. Biometrika 76(4), 633-642.
        doi:10.1093/biomet/76.4.633
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1; got {level!r}.")
    dataset = as_datatree(data, group)[group].to_dataset()
    chains_of(dataset)
    values = np.stack(
        [p.draws for p in iterate_parameters(dataset, constants_allowed=True) if not p.structural], axis=-1
    )
    problems = _obstacles(dataset, values)
    length, found = (0, []) if problems else _block_length(values)
    problems += found
    if problems:
        return Verdict("reversibility", np.nan, 0.0, level, xr.Dataset(), tuple(problems))
    features, names = _features(values)
    blocks = _block_means(features, length)
    z, p_value = sign_flip_p_value(blocks, np.random.default_rng(0))
    table = xr.Dataset(
        {
            "estimate": ("pair", blocks.mean(axis=0)),
            "standard_error": ("pair", blocks.std(axis=0, ddof=1) / np.sqrt(len(blocks))),
        },
        {"pair": names},
        {"num_blocks": len(blocks)},
    )
    return Verdict("reversibility", float(z.max(initial=0.0)), p_value, level, table)


def _obstacles(dataset: xr.Dataset, values: Float[np.ndarray, "chain draw parameter"]) -> list[Problem]:
    if not np.isfinite(values).all():
        return [Problem("NONFINITE_DRAW", "the draws hold NaN or infinite values: see ebm.diagnose.")]
    stuck = np.flatnonzero(stuck_chains(dataset))
    if len(stuck):
        return [Problem("STUCK_CHAIN", "the chain does not move: see ebm.diagnose.", int(stuck[0]))]
    return []


def _block_length(values: Float[np.ndarray, "chain draw parameter"]) -> tuple[int, list[Problem]]:
    """Draws per block, of which each chain gives as many as fit."""
    num_chains, num_draws = values.shape[:2]
    if num_chains >= MIN_BLOCKS and num_draws >= 2:
        return num_draws, []
    per_chain = 0
    if num_draws >= 8:
        ess = min(ess_bulk(values[..., index]) for index in range(values.shape[-1]))
        per_chain = min(int(ess / num_chains / DRAWS_PER_BLOCK), num_draws // 4, MAX_BLOCKS)
    if per_chain * num_chains < MIN_BLOCKS:
        advice = f"the draws make {per_chain * num_chains} independent blocks, {MIN_BLOCKS} are needed: draw longer or "
        advice += "use more chains."
        return 0, [Problem("TOO_SHORT", advice, None, per_chain * num_chains)]
    return num_draws // per_chain, []


def _features(values: Float[np.ndarray, "chain draw parameter"]) -> tuple[np.ndarray, list[str]]:
    centre = np.median(values, axis=(0, 1))
    spread = 1.4826 * np.median(np.abs(values - centre), axis=(0, 1))
    u = (values - centre) / np.where(spread > 0, spread, 1.0)
    dim = u.shape[-1]
    if dim > MAX_PARAMETERS:
        directions = np.random.default_rng(0).normal(size=(dim, MAX_PARAMETERS))
        u = u @ (directions / np.linalg.norm(directions, axis=0))
    v = np.concatenate([np.tanh(u), 1 - 1 / (1 + u**2)], axis=-1)
    count = u.shape[-1]
    labels = [f"{kind} {index}" for kind in ("tanh", "square") for index in range(count)]
    rows, columns = np.triu_indices(2 * count, 1)
    names = [f"{labels[i]}, {labels[j]}" for i, j in zip(rows, columns, strict=True)]
    return v - v.mean(axis=(0, 1)), names


def _block_means(features: Float[np.ndarray, "chain draw feature"], length: int) -> Float[np.ndarray, "block pair"]:
    """The mean antisymmetric statistics of every block; steps from block to block belong to neither."""
    means = []
    for chain in features:
        for first in range(0, len(chain) - length + 1, length):
            block = chain[first : first + length]
            means.append(wedges(block[:-1], block[1:]).mean(axis=0))
    return np.stack(means)
