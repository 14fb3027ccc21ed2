"""Are these draws from this energy? Identities that hold under exp(-E) and need no normaliser."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Array, Float
from scipy import stats

from ebm_ppl._checks import check_count
from ebm_ppl.diagnostics._arviz import ess_bulk, mcse_mean
from ebm_ppl.diagnostics._evaluate import coordinates_of, positions_of, scores_at
from ebm_ppl.diagnostics._obstacles import obstacles
from ebm_ppl.diagnostics._to_datatree import as_datatree
from ebm_ppl.diagnostics._verdict import Verdict
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import Problem
from ebm_ppl.sampling import Draws

# With so many chains the standard error comes from the spread of the chains' means, which needs no estimate of
# autocorrelation; with fewer it comes from ArviZ' effective sample size, one tenth of which serves as the degrees of
# freedom of that estimate (measured: sizes .05-.06 at level .05 and .007-.013 at .01 for AR(1) up to .9).
MIN_CHAINS_FOR_SPREAD = 20
ESS_PER_DEGREE_OF_FREEDOM = 10
MIN_ESS = 100
FUNCTIONS = ("constant", "tanh", "bump")


def stein_test(
    data: xr.DataTree | xr.Dataset | Draws | Mapping[str, Any] | Any,
    energy: AbstractEnergy,
    *,
    condition: Float[Array, "..."] | None = None,
    group: str = "posterior",
    num_directions: int | None = None,
    level: float = 0.01,
) -> Verdict:
    r"""Test draws against an energy by Langevin-Stein identities, without its normaliser.

    For every smooth bounded g, unit vector v and standardised draw \(u = (x - m)/\sigma\),

    \[ E\left[ g(v \cdot u)\; v \cdot \tilde s(x) + g'(v \cdot u) \right] = 0, \qquad
       \tilde s = -\sigma \nabla E(x), \]

    if and only if (over all g and v) the draws have the density exp(-E)/Z. Each average is divided by its Monte Carlo
    standard error. The functions are g = 1 (location), tanh (scale, sign) and exp(-y²/2) (asymmetry, tails); the
    directions are the coordinates and `num_directions` random ones, which see correlations.

    A wrong law that has the right score where the draws lie goes unseen: a missing mode, or wrong weights of
    separated modes. Needs a density that vanishes at the ends of its support.

    Args:
        data: draws: `DataTree`, `Dataset`, `Draws`, a mapping of arrays or an array `(chain, draw, *event)`. Chains
            must be independent of one another.
        energy: the energy E they should come from.
        condition: the condition y of a conditional energy E(x; y).
        group: the group to judge.
        num_directions: random directions besides the coordinates; by default 0 in one dimension, else
            min(dimension, 16). Drawn from a fixed seed: equal draws give equal verdicts.
        level: family-wise error: the probability that right draws are rejected by any of the identities.

    Returns:
        A `Verdict`: `ok`, `p_value` (Bonferroni over the identities), `statistic` (the largest |z|), and a `table`
        over `identity` with `estimate`, `standard_error` (both dimensionless), `z` and `p_value` (single).
        `problems` says why draws could not be judged: NONFINITE_DRAW, STUCK_CHAIN, TOO_SHORT,
        ESS_BULK (fewer than 100 effective draws).

    Raises:
        ValueError: `level` or `num_directions` is out of range.
        EnergyShapeError: no variable, or more than one, has the `event_shape` of `energy`.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> draws = energy.sample(jax.random.key(0), (4, 1000))
        >>> ebm.diagnostics.stein_test(draws, energy).ok
        True
        >>> ebm.diagnostics.stein_test(1.1 * draws, energy).ok
        False

    References:
        Gorham, Mackey (2015). Measuring sample quality with Stein's method. Advances in Neural Information
        Processing Systems 28. doi:10.48550/arXiv.1506.03039
        Stein (1972). A bound for the error in the normal approximation to the distribution of a sum of dependent
        random variables. Proceedings of the Sixth Berkeley Symposium 2, 583-602.
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1; got {level!r}.")
    dataset = as_datatree(data, group)[group].to_dataset()
    energy, positions = coordinates_of(energy, positions_of(dataset, energy.event_shape))
    flat = positions.reshape(*positions.shape[:2], -1).astype(np.float64)
    dim = flat.shape[-1]
    default = 0 if dim == 1 else min(dim, 16)
    random_directions = default if num_directions is None else check_count("num_directions", num_directions, 0)
    problems = obstacles(dataset, positions) or _too_correlated(flat)
    if problems:
        return Verdict("stein_test", np.nan, 0.0, level, xr.Dataset(), tuple(problems))
    table = _identities(flat, scores_at(energy, positions, condition), random_directions)
    values, errors = table["estimate"].values, table["standard_error"].values
    with np.errstate(divide="ignore", invalid="ignore"):
        z = values / errors
    single = _p_values(z, table["degrees_of_freedom"].values)
    table = table.assign(z=("identity", z), p_value=("identity", single))
    return Verdict(
        test="stein_test",
        statistic=float(np.abs(z).max()),
        p_value=float(min(1.0, len(z) * single.min())),
        level=level,
        table=table,
        problems=(),
    )


def _too_correlated(draws: Float[np.ndarray, "chain draw dim"]) -> list[Problem]:
    """ESS_BULK: so few effective draws that no standard error, and hence no failure to reject, means anything."""
    if len(draws) >= MIN_CHAINS_FOR_SPREAD:
        return []
    smallest = min(ess_bulk(draws[..., index]) for index in range(draws.shape[-1]))
    if smallest >= MIN_ESS:
        return []
    advice = f"only {smallest:.0f} effective draws, {MIN_ESS} are needed to judge them: see ebm.diagnose."
    return [Problem("ESS_BULK", advice, None, smallest)]


def _identities(
    draws: Float[np.ndarray, "chain draw dim"], scores: Float[np.ndarray, "chain draw dim"], num_directions: int
) -> xr.Dataset:
    dim = draws.shape[-1]
    centre = np.median(draws, axis=(0, 1))
    spread = np.median(np.abs(draws - centre), axis=(0, 1)) / stats.norm.ppf(0.75)
    spread = np.where(spread > 0, spread, 1.0)
    random = np.random.default_rng(0).normal(size=(num_directions, dim))
    directions = np.concatenate([np.eye(dim), random / np.linalg.norm(random, axis=1, keepdims=True)])
    projected = ((draws - centre) / spread) @ directions.T
    slopes = (scores * spread) @ directions.T
    labels = [f"coordinate {i}" for i in range(dim)] + [f"direction {i}" for i in range(num_directions)]
    names, rows = [], []
    for index, label in enumerate(labels):
        for name in FUNCTIONS:
            names.append(f"{name}, {label}")
            rows.append(_mean_and_error(_stein(name, projected[..., index], slopes[..., index])))
    columns = dict(zip(("estimate", "standard_error", "degrees_of_freedom"), np.transpose(rows), strict=True))
    return xr.Dataset({name: ("identity", column) for name, column in columns.items()}, {"identity": names})


def _stein(
    name: str, y: Float[np.ndarray, "chain draw"], slope: Float[np.ndarray, "chain draw"]
) -> Float[np.ndarray, "chain draw"]:
    """g(y) slope + g'(y)."""
    if name == "constant":
        return slope
    if name == "tanh":
        return np.tanh(y) * slope + 1 - np.tanh(y) ** 2
    bump = np.exp(-0.5 * y**2)
    return bump * slope - y * bump


def _mean_and_error(values: Float[np.ndarray, "chain draw"]) -> tuple[float, float, float]:
    """Mean, its Monte Carlo standard error, and the degrees of freedom of that."""
    num_chains = len(values)
    if not np.isfinite(values).all():
        return np.nan, np.nan, 1.0
    if num_chains >= MIN_CHAINS_FOR_SPREAD:
        return values.mean(), values.mean(axis=1).std(ddof=1) / np.sqrt(num_chains), num_chains - 1.0
    variance = values.var(ddof=1)
    error = mcse_mean(values) if variance > 0 else np.nan
    return values.mean(), error, max(1.0, variance / error**2 / ESS_PER_DEGREE_OF_FREEDOM)


def _p_values(
    z: Float[np.ndarray, " identity"], degrees_of_freedom: Float[np.ndarray, " identity"]
) -> Float[np.ndarray, " identity"]:
    """Two-sided; 0 where the statistic is not finite: what cannot be computed does not pass."""
    return np.where(np.isfinite(z), 2 * stats.t.sf(np.abs(z), degrees_of_freedom), 0.0)
