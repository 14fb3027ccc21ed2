"""Optimal bridge sampling between a proposal and draws of the energy."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count, check_floating
from ebm_ppl.energies import AbstractEnergy, Gaussian
from ebm_ppl.energies._check_start import event_rows
from ebm_ppl.energies._event import evaluate
from ebm_ppl.energies._known_density import KnownDensity
from ebm_ppl.errors import EnergyShapeError, Problem
from ebm_ppl.kernels._base import check_invariant
from ebm_ppl.normalizers._chains import effective_size, split_rhat
from ebm_ppl.normalizers._estimate import LogNormalizerEstimate, finish
from ebm_ppl.normalizers._inputs import Rows, check_base, check_rows
from ebm_ppl.normalizers._weights import FEW, log_sum, nonfinite_problems, rounding_error
from ebm_ppl.sampling import Draws, sample

MAX_ITERATIONS, TOLERANCE = 1000, 1e-10  # the fixed point converges geometrically
DENSE_DRAWS = 50  # draws per dimension from which the proposal has correlations
MAX_RHAT = 1.05
MIN_DRAWS = 8  # of each chain: half of them make the proposal, and halves of the rest are compared
DRAW, BRIDGE = 0, 1  # folded into a row's key


def bridge(
    energy: AbstractEnergy | Any,
    draws: Any = None,
    *,
    key: Array | Any,
    proposal: Any = None,
    num_proposals: int | Any = None,
    kernel: Any = None,
    num_chains: int | Any = 4,
    num_warmup: int | Any = 1000,
    num_samples: int | Any = 2000,
    initial_positions: Any = None,
    condition: Any = None,
    progress_bar: bool = True,
    strict: bool = False,
) -> LogNormalizerEstimate:
    r"""Meng & Wong's optimal bridge between draws of the energy and draws of a proposal q.

        Z  solves  mean_q[ f / (s_1 f + s_2 Z q) ] = mean_p[ q / (s_1 f + s_2 Z q) ] Z,   f = exp(-E)

    with s_1, s_2 the shares of effective draws from the energy (p) and from q. By default q is a normal with the mean
    and covariance of the first half of every chain (with the variances alone where that is fewer than 50 draws per
    dimension); the second half makes the estimate. Every term is bounded, so the error is finite whatever the tails.
    It counts the autocorrelation of the chains.

    The chains must have been everywhere: a mode that none of them visits is missing from Z. Chains that disagree are
    the problem `CHAINS_DISAGREE`.

    Args:
        energy: E, nats.
        draws: `Draws` of `sample` or `parallel_tempering`, or an array `(chain, draw, *event_shape)`; for several
            conditions `(condition, chain, draw, *event_shape)`. None: drawn here, by `sample`.
        key: one JAX key.
        proposal: q: a reference energy, a NumPyro distribution or a FlowJAX flow. All draws then make the estimate.
        num_proposals: draws from q; by default as many as there are draws of the energy in the estimate.
        kernel: for `sample`, where `draws` is None; as the next four.
        num_chains: of each condition.
        num_warmup: transitions before the first draw.
        num_samples: draws of each chain.
        initial_positions: `(num_chains, *event_shape)`, the same for every condition.
        condition: for conditional energies: one condition, or several along a leading axis.
        progress_bar: of `sample`.
        strict: raise `LogNormalizerError` (carrying the estimate) instead of warning when there is a problem.

    Returns:
        `LogNormalizerEstimate`, one entry per condition where several were given; `effective_sample_size` is that of
        the draws of the energy.

    Raises:
        KeyArgumentError: `key` is not one JAX key.
        EnergyShapeError: proposal, draws or condition do not fit the energy.
        ValueError: a number is out of range, or the kernel (that of given `Draws` too) has no Metropolis correction.
        LogNormalizerError: `strict=True` and there is a problem.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.ones(2), jnp.eye(2))
        >>> draws = energy.sample(jax.random.key(0), (4, 500))                # or those of ebm.sample
        >>> estimate = ebm.normalizers.bridge(energy, draws, key=jax.random.key(1))
        >>> bool(abs(estimate.value - energy.log_normalizer) < 4 * estimate.standard_error), estimate.ok
        (True, True)

    References:
        Meng, Wong (1996). Simulating ratios of normalizing constants via a simple identity. Statistica Sinica 6,
        831-860. https://www.jstor.org/stable/24306045
        Frühwirth-Schnatter (2004). Estimating marginal likelihoods for mixture and Markov switching models using
        bridge sampling techniques. The Econometrics Journal 7(1), 143-167. doi:10.1111/j.1368-423X.2004.00125.x
        Gronau, Sarafoglou, Matzke, et al. (2017). A tutorial on bridge sampling. Journal of Mathematical Psychology
        81, 80-97. doi:10.1016/j.jmp.2017.09.005
    """
    rows = check_rows(energy, key, condition)
    base = None if proposal is None else check_base("proposal", proposal, rows.energy)
    check_invariant("kernel", kernel)
    count = None if num_proposals is None else check_count("num_proposals", num_proposals, 2)
    problems: tuple[Problem, ...] = ()
    if draws is None:
        num_chains = check_count("num_chains", num_chains)
        positions, problems = _sampled(
            rows,
            num_chains,
            initial_positions,
            kernel=kernel,
            num_warmup=num_warmup,
            num_samples=num_samples,
            progress_bar=progress_bar,
        )
    else:
        positions = _check_draws(draws, rows)
        if isinstance(draws, Draws):
            problems = draws.problems
    used, at_draws, at_proposals = bridge_terms(
        rows.energy, base, rows.keys, rows.conditions, positions, num_proposals=count
    )
    estimate = estimate_from_bridge(np.asarray(used), np.asarray(at_draws), np.asarray(at_proposals), problems)
    return finish(estimate, batched=rows.batched, strict=strict)


def _sampled(rows: Rows, num_chains: int, initial_positions: Any, **settings: Any) -> tuple[Array, tuple[Problem, ...]]:
    """`(row, chain, draw, *event)`, all conditions in one program."""
    count = len(rows)
    conditions = None if rows.conditions is None else jnp.repeat(rows.conditions, num_chains, axis=0)
    if initial_positions is not None:
        starts = event_rows(rows.energy, "initial_positions", initial_positions, num_chains)
        initial_positions = jnp.tile(starts, (count, *(1 for _ in starts.shape[1:])))
    key = jax.random.fold_in(rows.keys[0], DRAW)
    draws = sample(
        rows.energy,
        key=key,
        num_chains=num_chains * count,
        initial_positions=initial_positions,
        condition=conditions,
        **settings,
    )
    positions: Any = jnp.asarray(draws.positions)  # real coordinates
    positions = positions.reshape(count, num_chains, *positions.shape[1:])
    problems = tuple(
        problem
        if problem.chain is None
        else dataclasses.replace(problem, chain=problem.chain % num_chains, condition=problem.chain // num_chains)
        for problem in draws.problems
    )
    return positions, problems


def _check_draws(draws: Any, rows: Rows) -> Array:
    """`(row, chain, draw, ...)` draws of the energy in its coordinates."""
    if isinstance(draws, Draws):
        check_invariant("draws", draws.kernel)
        draws = draws.positions
    shape = rows.energy.coordinates.event_shape
    if not isinstance(shape, Mapping):
        draws = check_floating("draws", draws)
        if draws.ndim != 2 + rows.batched + len(shape) or draws.shape[2 + rows.batched :] != shape:
            leading = ("(condition, chain, draw", "(chain, draw")[not rows.batched]
            expected = ", ".join([leading, *map(str, shape)]) + ")"
            raise EnergyShapeError(f"`draws` must have shape {expected}; got {draws.shape}.")
    array = rows.coordinates_of("draws", draws, 3 if rows.batched else 2)
    array = array if rows.batched else array[None]
    if array.shape[0] != len(rows):
        raise EnergyShapeError(f"`draws` must have one entry per condition, {len(rows)}; got {array.shape[0]}.")
    if array.shape[2] < MIN_DRAWS:
        raise ValueError(f"`draws` must have at least {MIN_DRAWS} draws per chain; got {array.shape[2]}.")
    return array


class _Fitted(eqx.Module):
    """A normal with given moments of the flattened event."""

    normal: Gaussian
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def log_prob(self, x: Array) -> Array:
        return -self.normal(jnp.ravel(x)) - self.normal.log_normalizer

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.normal.draw(key).reshape(shape + self.event_shape)


def _fit(draws: Float[Array, "draw ..."]) -> KnownDensity:
    shape = draws.shape[1:]
    flat = draws.reshape(len(draws), -1)
    mean = jnp.mean(flat, axis=0)
    centred = flat - mean[None]
    if len(flat) >= DENSE_DRAWS * flat.shape[1]:
        covariance = centred.T @ centred / len(flat)
    else:
        covariance = jnp.diag(jnp.mean(centred**2, axis=0))
    return KnownDensity(_Fitted(Gaussian(mean, covariance), shape), shape, "proposal")


@eqx.filter_jit
def bridge_terms(
    energy: AbstractEnergy,
    base: KnownDensity | None,
    keys: Array,
    conditions: Array | None,
    positions: Float[Array, "row chain draw ..."],
    *,
    num_proposals: int | None,
) -> tuple[Array, Array, Array]:
    """The draws that count, `(row, chain, draw, *event)`, and log f/q at them and at draws of q."""

    def one(key: Array, condition: Array | None, positions: Array) -> tuple[Array, Array, Array]:
        chains, length, *event = positions.shape
        half = 0 if base is not None else length // 2
        proposal = _fit(positions[:, :half].reshape(chains * half, *event)) if base is None else base
        used = positions[:, half:]
        count = chains * (length - half) if num_proposals is None else num_proposals

        def log_ratio(x: Array) -> Array:
            value = evaluate(energy, x, condition)
            return -value - proposal.log_prob_in_support(x, condition).astype(value.dtype)

        fresh = proposal.sample(jax.random.fold_in(key, BRIDGE), count, condition)
        return used, jax.vmap(jax.vmap(log_ratio))(used), jax.vmap(log_ratio)(fresh)

    return jax.vmap(one)(keys, conditions, positions)


@dataclasses.dataclass(frozen=True)
class Bridged:
    """One row's log Z, its standard error, and the effective numbers of draws on both sides of the bridge."""

    value: float
    standard_error: float
    effective_draws: float
    effective_terms: float
    converged: bool


def optimal_bridge(at_draws: np.ndarray, at_proposals: np.ndarray) -> Bridged:
    """From log f/q at draws of the energy `(chain, draw)` and at draws of the proposal `(n,)`."""
    at_draws, at_proposals = at_draws.astype(np.float64), at_proposals.astype(np.float64)
    known = at_draws[np.isfinite(at_draws)]  # infinite where q has no density: such draws have no part in the bridge
    if np.isnan(at_draws).any() or np.isnan(at_proposals).any() or not known.size:
        return Bridged(np.nan, np.nan, 0.0, 0.0, converged=False)
    if (at_proposals == -np.inf).all():
        return Bridged(-np.inf, np.nan, 0.0, 0.0, converged=False)
    effective, value, converged = float(at_draws.size), float(np.median(known)), False
    terms_draws, terms_proposals = at_draws, at_proposals
    for _ in range(2):  # the second time with the autocorrelation of the terms themselves
        share = effective / (effective + len(at_proposals))
        for _ in range(MAX_ITERATIONS):
            terms_draws = -np.logaddexp(np.log(share) + at_draws, np.log1p(-share) + value)
            terms_proposals = at_proposals - np.logaddexp(np.log(share) + at_proposals, np.log1p(-share) + value)
            new = _log_mean(terms_proposals) - _log_mean(terms_draws)
            converged = abs(new - value) < TOLERANCE
            value = new
            if converged or not np.isfinite(value):
                break
        effective = effective_size(np.exp(terms_draws - terms_draws.max()))
    variance = _relative_variance(terms_draws) / effective + _relative_variance(terms_proposals) / len(at_proposals)
    few = min(_kish(terms_proposals), _kish(terms_draws) * effective / at_draws.size)
    return Bridged(value, float(np.sqrt(variance)), effective, few, converged)


def _log_mean(logs: np.ndarray) -> float:
    return float(log_sum(logs) - np.log(logs.size))


def _relative_variance(logs: np.ndarray) -> float:
    return float(np.exp(logs - _log_mean(logs)).var(ddof=1))


def _kish(logs: np.ndarray) -> float:
    return float(np.exp(2 * log_sum(logs) - log_sum(2 * logs)))


def estimate_from_bridge(
    used: np.ndarray, at_draws: np.ndarray, at_proposals: np.ndarray, problems: tuple[Problem, ...] = ()
) -> LogNormalizerEstimate:
    """One entry per row."""
    found, bridged = list(problems), []
    for index in range(len(used)):
        one = optimal_bridge(at_draws[index], at_proposals[index])
        bridged.append(one)
        found += _problems(one, used[index], index)
    rounding = [rounding_error(at_draws.dtype, one.value) if np.isfinite(one.value) else np.nan for one in bridged]
    return LogNormalizerEstimate(
        np.array([one.value for one in bridged]),
        np.hypot(np.array([one.standard_error for one in bridged]), np.array(rounding)),
        np.array([one.effective_draws for one in bridged]),
        np.full(len(bridged), np.nan),
        "bridge",
        tuple(found),
    )


def _problems(one: Bridged, used: np.ndarray, condition: int) -> list[Problem]:
    found = nonfinite_problems(one.value, condition)
    if found:
        return found
    if not one.converged:
        advice = f"the iteration did not settle in {MAX_ITERATIONS} steps: proposal and energy hardly overlap."
        found.append(Problem("NOT_CONVERGED", advice, None, one.value, condition))
    if one.effective_terms < FEW:
        advice = (
            "energy and proposal hardly overlap, or the chains hardly move: a few draws make the whole estimate; "
            "give a better proposal, draw more, or use sequential_monte_carlo."
        )
        found.append(Problem("FEW_EFFECTIVE_DRAWS", advice, None, one.effective_terms, condition))
    rhat = split_rhat(used)
    if not rhat <= MAX_RHAT:
        advice = (
            f"the chains have not been to the same places (split R-hat above {MAX_RHAT}): run longer, or draw with "
            "ebm.parallel_tempering and pass `draws`."
        )
        found.append(Problem("CHAINS_DISAGREE", advice, None, rhat, condition))
    return found
