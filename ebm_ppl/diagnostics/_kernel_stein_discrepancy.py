"""Kernel Stein discrepancy: how far draws are from an energy, without its normaliser, and whether that is chance."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count, check_key, check_positive
from ebm_ppl._types import PRNGKey
from ebm_ppl.diagnostics._arviz import ess_bulk, mcse_mean
from ebm_ppl.diagnostics._evaluate import coordinates_of, positions_of, scores_at
from ebm_ppl.diagnostics._obstacles import obstacles
from ebm_ppl.diagnostics._stein_kernels import KERNELS, random_features, stein_matrix
from ebm_ppl.diagnostics._to_datatree import as_datatree
from ebm_ppl.diagnostics._verdict import Verdict
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import Problem
from ebm_ppl.sampling import Draws

MIN_POINTS = 50
INDEPENDENT_BELOW = 1.1  # autocorrelation time below which draws count as independent
FLIP_PROBABILITY = 0.1  # of the bootstrap's signs, per kept draw, where draws are dependent
MAX_POINTS_FOR_BANDWIDTH = 500
CHUNK = 4096  # draws whose random features are in memory at a time


@dataclasses.dataclass(frozen=True, eq=False)
class _Sample:
    """Draws kept for the statistic, `(chain, draw)` flattened, and how they were chosen."""

    points: Float[np.ndarray, "n dim"]
    scores: Float[np.ndarray, "n dim"]
    num_chains: int
    thinning: int
    flip_probability: float


def kernel_stein_discrepancy(
    data: xr.DataTree | xr.Dataset | Draws | Mapping[str, Any] | Any,
    energy: AbstractEnergy,
    *,
    key: PRNGKey,
    condition: Float[Array, "..."] | None = None,
    group: str = "posterior",
    kernel: str = "imq",
    bandwidth: float | None = None,
    statistic: str = "u",
    num_features: int | None = None,
    max_points: int = 1000,
    num_bootstrap: int = 500,
    level: float = 0.01,
) -> Verdict:
    r"""Kernel Stein discrepancy of draws from the density exp(-E)/Z, with its error and a p-value.

    \[ \mathrm{KSD}^2 = E_{x, y}\, u(x, y), \qquad
       u = s(x) \cdot s(y)\, k + s(x) \cdot \nabla_y k + s(y) \cdot \nabla_x k + \nabla_x \cdot \nabla_y k, \]

    with the score \(s = -\nabla E\); 0 if and only if the draws have the energy's density. The p-value comes from a
    wild bootstrap: random signs that flip along each chain with a probability that the draws' autocorrelation time
    decides, so that MCMC draws may be dependent. Draws are thinned by that time first.

    A diagnostic, not a gate: like every function of the score it is all but blind to a missing mode and to wrong
    weights of separated modes, and it needs many draws to see a small bias.

    Args:
        data: draws: `DataTree`, `Dataset`, `Draws`, a mapping of arrays or an array `(chain, draw, *event)`.
        energy: the energy E they should come from.
        key: a JAX key, for the bootstrap (and the random features).
        condition: the condition y of a conditional energy E(x; y).
        group: the group to judge.
        kernel: "imq", \((1 + r^2/l^2)^{-1/2}\), which also controls the tails; or "gaussian", \(\exp(-r^2/2l^2)\).
        bandwidth: l, in the units of x; None: the median distance between draws.
        statistic: "u", unbiased, may be negative; or "v", biased upwards by the mean of u(x, x) over n.
        num_features: None: all pairs of at most `max_points` draws, O(n²). A number: that many random Fourier
            features of the Gaussian kernel and all draws, O(n); the p-value is as valid, the power smaller.
        max_points: draws used where all pairs are formed.
        num_bootstrap: number of bootstrap replicates; the smallest possible p-value is 1/(num_bootstrap + 1).
        level: what the p-value must not fall below.

    Returns:
        A `Verdict` whose `statistic` is KSD² (in 1/units of x, squared) and whose one-row `table` holds `value`, its
        `standard_error` (valid away from 0; at 0 the statistic is degenerate and the p-value speaks), `num_points`,
        `thinning`, `bandwidth` and `flip_probability`.

    Raises:
        ValueError: an option is out of range, or "imq" is combined with `num_features`.
        EnergyShapeError: no variable, or more than one, has the `event_shape` of `energy`.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> draws = energy.sample(jax.random.key(0), (4, 250))
        >>> ebm.diagnostics.kernel_stein_discrepancy(draws, energy, key=jax.random.key(1)).ok
        True
        >>> ebm.diagnostics.kernel_stein_discrepancy(draws + 0.3, energy, key=jax.random.key(1)).ok
        False

    References:
        Liu, Lee, Jordan (2016). A kernelized Stein discrepancy for goodness-of-fit tests. ICML, 276-284.
        doi:10.48550/arXiv.1602.03253
        Chwialkowski, Strathmann, Gretton (2016). A kernel test of goodness of fit. ICML, 2606-2615.
        doi:10.48550/arXiv.1602.02964
        Gorham, Mackey (2017). Measuring sample quality with kernels. ICML, 1292-1301. doi:10.48550/arXiv.1703.01717
    """
    _check_options(kernel, statistic, num_features, level)
    check_count("num_bootstrap", num_bootstrap)
    check_count("max_points", max_points, MIN_POINTS)
    seed = jax.random.key_data(check_key(key))
    dataset = as_datatree(data, group)[group].to_dataset()
    energy, positions = coordinates_of(energy, positions_of(dataset, energy.event_shape))
    problems = obstacles(dataset, positions)
    if problems:
        return _unjudged(level, problems)
    scores = scores_at(energy, positions, condition)
    if not np.isfinite(scores).all():
        return _unjudged(level, [Problem("NONFINITE_ENERGY", "the score is NaN or infinite at some of the draws.")])
    flat = positions.reshape(scores.shape).astype(np.float64)
    sample = _thin(flat, scores, max_points if num_features is None else flat[..., 0].size)
    if len(sample.points) < MIN_POINTS:
        advice = f"{len(sample.points)} draws are left after thinning by {sample.thinning}, {MIN_POINTS} are needed."
        return _unjudged(level, [Problem("TOO_SHORT", advice, None, float(len(sample.points)))])
    if bandwidth is None:
        bandwidth = _median_distance(sample.points)
    check_positive("bandwidth", bandwidth)
    random = np.random.default_rng(np.asarray(seed))
    signs = _signs(random, sample, num_bootstrap)
    if num_features is None:
        projections, diagonal, replicates = _all_pairs(sample, signs, kernel, bandwidth)
    else:
        projections, diagonal, replicates = _by_features(sample, signs, random, num_features, bandwidth)
    return _verdict(sample, projections, diagonal, replicates, statistic, bandwidth, level)


def _check_options(kernel: str, statistic: str, num_features: int | None, level: float) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"`kernel` must be one of {KERNELS}; got {kernel!r}.")
    if statistic not in ("u", "v"):
        raise ValueError(f"`statistic` must be 'u' or 'v'; got {statistic!r}.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1; got {level!r}.")
    if num_features is not None:
        check_count("num_features", num_features)
        if kernel != "gaussian":
            raise ValueError(f"`num_features` needs kernel='gaussian'; got {kernel!r}.")


def _unjudged(level: float, problems: list[Problem]) -> Verdict:
    return Verdict("kernel_stein_discrepancy", np.nan, 0.0, level, xr.Dataset(), tuple(problems))


def _thin(
    draws: Float[np.ndarray, "chain draw dim"], scores: Float[np.ndarray, "chain draw dim"], max_points: int
) -> _Sample:
    """Every so many draws of each chain that they are nearly independent and not too many."""
    num_chains, num_draws, dim = draws.shape
    columns = [values[..., index] for values in (draws, scores) for index in range(dim)]
    sizes = [ess_bulk(column) for column in columns if np.ptp(column) > 0]
    time = num_chains * num_draws / min(sizes) if sizes else 1.0
    thinning = max(1, round(time), math.ceil(num_chains * num_draws / max_points))
    kept = slice(None, None, thinning)
    return _Sample(
        points=draws[:, kept].reshape(-1, dim),
        scores=scores[:, kept].reshape(-1, dim),
        num_chains=num_chains,
        thinning=thinning,
        flip_probability=0.5 if time <= INDEPENDENT_BELOW else FLIP_PROBABILITY,
    )


def _median_distance(points: Float[np.ndarray, "n dim"]) -> float:
    some = points[:: math.ceil(len(points) / MAX_POINTS_FOR_BANDWIDTH)]
    squares = (some**2).sum(axis=1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * some @ some.T, 0.0))
    return float(np.median(distance[np.triu_indices(len(some), 1)]))


def _signs(random: np.random.Generator, sample: _Sample, num_bootstrap: int) -> Float[np.ndarray, "bootstrap n"]:
    """Signs that start at random in each chain and flip with `flip_probability` from draw to draw."""
    shape = (num_bootstrap, sample.num_chains, len(sample.points) // sample.num_chains)
    steps = np.where(random.random(shape) < sample.flip_probability, -1.0, 1.0)
    steps[:, :, 0] = random.choice([-1.0, 1.0], shape[:2])
    return np.cumprod(steps, axis=2).reshape(num_bootstrap, -1)


def _all_pairs(
    sample: _Sample, signs: Float[np.ndarray, "bootstrap n"], kernel: str, bandwidth: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " bootstrap"]]:
    """Row sums of u without the diagonal, the diagonal, and the signed sums over all pairs i != j."""
    matrix = stein_matrix(sample.points, sample.scores, kernel=kernel, bandwidth=bandwidth)
    diagonal = np.diag(matrix).copy()
    np.fill_diagonal(matrix, 0.0)
    return matrix.sum(axis=1), diagonal, np.einsum("bi,bi->b", signs @ matrix, signs)


def _by_features(
    sample: _Sample,
    signs: Float[np.ndarray, "bootstrap n"],
    random: np.random.Generator,
    num_features: int,
    bandwidth: float,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " bootstrap"]]:
    """The same three from random features, in chunks of draws."""
    num_points, dim = sample.points.shape
    options = {
        "frequencies": random.normal(size=(num_features, dim)) / bandwidth,
        "phases": random.uniform(0, 2 * np.pi, num_features),
    }
    chunks = [slice(start, start + CHUNK) for start in range(0, num_points, CHUNK)]
    total, signed = np.zeros(num_features * dim), np.zeros((len(signs), num_features * dim))
    for chunk in chunks:
        features = random_features(sample.points[chunk], sample.scores[chunk], **options)
        total += features.sum(axis=0)
        signed += signs[:, chunk] @ features
    sums, diagonal = np.empty(num_points), np.empty(num_points)
    for chunk in chunks:
        features = random_features(sample.points[chunk], sample.scores[chunk], **options)
        diagonal[chunk] = (features**2).sum(axis=1)
        sums[chunk] = features @ total - diagonal[chunk]
    return sums, diagonal, (signed**2).sum(axis=1) - diagonal.sum()


def _verdict(
    sample: _Sample,
    sums: Float[np.ndarray, " n"],
    diagonal: Float[np.ndarray, " n"],
    replicates: Float[np.ndarray, " bootstrap"],
    statistic: str,
    bandwidth: float,
    level: float,
) -> Verdict:
    count = len(sums)
    unbiased = sums.sum() / (count * (count - 1))
    value = unbiased if statistic == "u" else (sums.sum() + diagonal.sum()) / count**2
    # Both statistics differ from the sum over pairs i != j by constants of the draws: one p-value serves both.
    p_value = (1 + np.count_nonzero(replicates >= sums.sum())) / (1 + len(replicates))
    by_chain = (sums / (count - 1)).reshape(sample.num_chains, -1)
    error = mcse_mean(by_chain) if by_chain.shape[1] >= 10 else by_chain.std(ddof=1) / np.sqrt(count)
    table = xr.Dataset(
        {
            "value": value,
            "standard_error": 2 * error,
            "num_points": count,
            "thinning": sample.thinning,
            "bandwidth": bandwidth,
            "flip_probability": sample.flip_probability,
        }
    )
    return Verdict("kernel_stein_discrepancy", float(value), float(p_value), level, table)
