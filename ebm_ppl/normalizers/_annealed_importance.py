"""Annealed importance sampling of log Z, forward and reverse."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc import resampling
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl.energies import AbstractEnergy, AbstractReferenceEnergy
from ebm_ppl.energies._known_density import KnownDensity
from ebm_ppl.errors import EnergyShapeError, Problem
from ebm_ppl.normalizers._estimate import LogNormalizerEstimate, finish
from ebm_ppl.normalizers._inputs import Rows, check_base, check_rows
from ebm_ppl.normalizers._path import AnnealingPath, Moved, Mover, check_mover
from ebm_ppl.normalizers._tempered_smc import SMCRun, run_tempered_smc
from ebm_ppl.normalizers._weights import WeightedMean, weight_problems, weighted_mean

PILOT_STEPS = 5
REFRESH_MOVES = 20  # moves of the resampled ends of the forward run before the way back, where no draws are given
GAP_ERRORS = 4.0  # standard errors between forward and reverse beyond which they disagree
CURE = "raise num_temperatures or num_steps, or give a reference closer to the energy."


class AnnealedRun(NamedTuple):
    """Log weights of the way there and of the way back, `(n,)` each.

    `inside`: the share of the reference's draws inside the walls; the way back ends there, and sees no more of q.
    """

    forward: Float[Array, " sample"]
    reverse: Float[Array, " draw"] | None
    inside: Float[Array, ""]
    pilot_reached: Float[Array, ""]


def annealed_importance(
    energy: AbstractEnergy | Any,
    reference: Any = None,
    *,
    key: Array | Any,
    kernel: Any = None,
    num_temperatures: int | Any = 128,
    num_samples: int | Any = 512,
    num_steps: int | Any = 2,
    num_pilot: int | Any = 256,
    draws: Any = None,
    reverse: bool = True,
    condition: Any = None,
    strict: bool = False,
) -> LogNormalizerEstimate:
    r"""Annealed importance sampling: independent weights along a path from the reference to the energy, and back.

        log w = - sum_k (beta_{k+1} - beta_k) V(x_k),   V = E + log q,   x_k from x_{k-1} by a move that keeps pi_k,
        E[mean w] = Z exactly

    with \(\pi_k \propto q^{1-\beta_k} \exp(-\beta_k E)\). A pilot cloud, independent of the run, lays out the
    temperatures and tunes step sizes and scales, so that the estimate stays unbiased on Z. By Jensen its logarithm is
    low on average. The reverse run starts at draws of the energy and estimates 1/Z: its logarithm, the sign changed,
    is high on average if these draws are exact. `bounds` holds both: a sandwich. A gap wider than their errors allow
    is the problem `SANDWICH_GAP`.

    The draws for the way back are `draws`, or exact ones of a reference energy. Otherwise they are the ends of the
    forward run, resampled by weight: then the sandwich cannot see a mode that the forward run missed.

    Args:
        energy: E, nats.
        reference: q: a reference energy, a NumPyro distribution or a FlowJAX flow; by default N(0, 3^2) in every
            coordinate. It must cover exp(-E): with one of bounded support the result is the integral over that
            support.
        key: one JAX key.
        kernel: an adjusted kernel; `MALA()` by default.
        num_temperatures: K; the variance of log w falls like 1/K.
        num_samples: independent weights, at least 2.
        num_steps: transitions at each temperature.
        num_pilot: particles of the pilot.
        draws: draws of the energy, `(n, *event_shape)`, or `(condition, n, *event_shape)` for several conditions.
        reverse: False leaves the way back out, and `bounds` with it.
        condition: for conditional energies: one condition, or several along a leading axis.
        strict: raise `LogNormalizerError` (carrying the estimate) instead of warning when there is a problem.

    Returns:
        `LogNormalizerEstimate`, one entry per condition where several were given; `value` is that of the forward run.

    Raises:
        KeyArgumentError: `key` is not one JAX key.
        EnergyShapeError: reference, draws or condition do not fit the energy.
        ValueError: a number is out of range, or the kernel is not adjusted.
        LogNormalizerError: `strict=True` and there is a problem.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.ones(2), jnp.eye(2))
        >>> estimate = ebm.normalizers.annealed_importance(energy, key=jax.random.key(0), num_temperatures=20)
        >>> bool(abs(estimate.value - energy.log_normalizer) < 4 * estimate.standard_error), estimate.ok
        (True, True)

    References:
        Neal (2001). Annealed importance sampling. Statistics and Computing 11, 125-139. doi:10.1023/A:1008923215028
        Grosse, Ghahramani, Adams (2015). Sandwiching the marginal likelihood using bidirectional Monte Carlo.
        arXiv:1511.02543
    """
    rows = check_rows(energy, key, condition)
    base = check_base("reference", reference, rows.energy)
    mover = check_mover(kernel, check_count("num_steps", num_steps))
    own = energy if isinstance(energy, AbstractReferenceEnergy) and energy.support is None and draws is None else None
    runs = annealed_runs(
        rows.energy,
        base,
        mover,
        rows.keys,
        rows.conditions,
        _check_draws(draws, rows),
        num_temperatures=check_count("num_temperatures", num_temperatures),
        num_samples=check_count("num_samples", num_samples, 2),
        num_pilot=check_count("num_pilot", num_pilot, 2),
        reverse=bool(reverse),
        exact=own,
    )
    given = draws is not None or own is not None
    return finish(estimate_from_annealing(runs, independent=given), batched=rows.batched, strict=strict)


def _check_draws(draws: Any, rows: Rows) -> Array | None:
    """`(row, n, ...)` draws of the energy in its coordinates."""
    if draws is None:
        return None
    array = rows.coordinates_of("draws", draws, 2 if rows.batched else 1)
    array = array if rows.batched else array[None]
    if array.shape[0] != len(rows):
        raise EnergyShapeError(f"`draws` must have one entry per condition, {len(rows)}; got {array.shape[0]}.")
    return array.astype(jnp.result_type(float))


@eqx.filter_jit
def annealed_runs(
    energy: AbstractEnergy,
    base: KnownDensity,
    mover: Mover,
    keys: Array,
    conditions: Array | None,
    draws: Array | None,
    *,
    num_temperatures: int,
    num_samples: int,
    num_pilot: int,
    reverse: bool,
    exact: AbstractReferenceEnergy | None,
) -> AnnealedRun:
    """One run per row; every field has a leading axis `row`. `exact`: the energy itself, where it can be drawn."""

    def one(key: Array, condition: Array | None, draws: Array | None) -> AnnealedRun:
        path = AnnealingPath(energy, base, condition)
        pilot_key, start_key, forward_key, end_key, reverse_key = jax.random.split(key, 5)
        pilot = run_tempered_smc(
            path,
            Mover(mover.kernel, max(PILOT_STEPS, mover.num_steps)),
            pilot_key,
            num_particles=num_pilot,
            target_effective_fraction=jnp.asarray(0.5, float),
        )
        schedule = _schedule(pilot, num_temperatures)
        x = base.sample(start_key, num_samples, condition).astype(schedule.step_sizes.dtype)
        inside = jnp.mean((jax.vmap(path.log_ratio)(x) > -jnp.inf).astype(x.dtype))
        ends, forward = _anneal(path, mover, forward_key, x, schedule)
        if not reverse:
            return AnnealedRun(forward, None, inside, pilot.reached)
        if exact is not None:
            draws = exact.sample(end_key, (num_samples,)).astype(x.dtype)
        elif draws is None:
            draws = _resampled(path, mover, end_key, ends, forward, schedule)
        backward = _anneal(path, mover, reverse_key, draws, _reversed(schedule))[1]
        return AnnealedRun(forward, backward, inside, pilot.reached)

    return jax.vmap(one)(keys, conditions, draws)


class _Schedule(NamedTuple):
    """K + 1 inverse temperatures, and how to move at each of them."""

    betas: Array
    step_sizes: Array
    scales: Array


def _schedule(pilot: SMCRun, num_temperatures: int) -> _Schedule:
    """The pilot's path, walked at another pace."""
    levels = jnp.arange(len(pilot.inverse_temperatures), dtype=pilot.step_sizes.dtype)
    last = pilot.num_levels.astype(levels.dtype)
    at = jnp.linspace(0, 1, num_temperatures + 1, dtype=levels.dtype) * last
    betas = jnp.interp(at, levels, pilot.inverse_temperatures).at[0].set(0).at[-1].set(1)
    tuned = jnp.minimum(at, last - 1)  # nothing was tuned after the pilot's last level

    def along(values: Array) -> Array:
        return jnp.exp(jnp.interp(tuned, levels, jnp.log(values)))

    flat = pilot.scales.reshape(len(levels), -1)
    scales = jax.vmap(along, in_axes=1, out_axes=1)(flat).reshape(-1, *pilot.scales.shape[1:])
    return _Schedule(betas, along(pilot.step_sizes), scales)


def _reversed(schedule: _Schedule) -> _Schedule:
    return _Schedule(*(values[::-1] for values in schedule))


def _anneal(
    path: AnnealingPath, mover: Mover, key: Array, x: Array, schedule: _Schedule
) -> tuple[Array, Float[Array, " sample"]]:
    """Walk the schedule: weigh the step to the next temperature, then move there; no move after the last weighing.

    A particle that meets a wall has weight zero for good, whatever becomes of it.
    """
    steps = jnp.diff(schedule.betas)

    def weigh(log_weight: Array, x: Array, step: Array) -> Array:
        ratio = jax.vmap(path.log_ratio)(x)
        increment = jnp.where(step == 0, jnp.zeros_like(ratio), step * ratio)  # two equal temperatures: not 0 * inf
        return jnp.where(log_weight == -jnp.inf, -jnp.inf, log_weight + increment)

    def level(carry: tuple[Array, Array], inputs: tuple) -> tuple[tuple[Array, Array], None]:
        x, log_weight = carry
        step, beta, step_size, scale, key = inputs
        log_weight = weigh(log_weight, x, step)

        def move(key: Array, x: Array) -> Array:
            return mover(key, Moved(x), path.at(beta), step_size, scale)[0].position

        return (jax.vmap(move)(jax.random.split(key, len(x)), x), log_weight), None

    keys = jax.random.split(key, len(steps))
    inner = (steps[:-1], schedule.betas[1:-1], schedule.step_sizes[1:-1], schedule.scales[1:-1], keys[:-1])
    (x, log_weight), _ = jax.lax.scan(level, (x, jnp.zeros(len(x), x.dtype)), inner)
    return x, weigh(log_weight, x, steps[-1])


def _resampled(
    path: AnnealingPath, mover: Mover, key: Array, ends: Array, log_weights: Array, schedule: _Schedule
) -> Array:
    """Approximate draws of the energy: the ends of the forward run, resampled by weight, then moved."""
    choose_key, move_key = jax.random.split(key)
    chosen = resampling.systematic(choose_key, jax.nn.softmax(log_weights), len(ends))

    def refresh(key: Array, x: Array) -> Array:
        def move(i: Array, x: Array) -> Array:
            step_key = jax.random.fold_in(key, i)
            target = path.at(schedule.betas[-1])
            return mover(step_key, Moved(x), target, schedule.step_sizes[-1], schedule.scales[-1])[0].position

        return jax.lax.fori_loop(0, REFRESH_MOVES, move, x)

    return jax.vmap(refresh)(jax.random.split(move_key, len(ends)), ends[chosen])


def estimate_from_annealing(runs: AnnealedRun, *, independent: bool) -> LogNormalizerEstimate:
    """One entry per row; `independent`: whether the draws of the way back were independent of the way there."""
    forward = np.asarray(runs.forward)
    means = [weighted_mean(row, forward.dtype, smooth=False) for row in forward]
    problems = [p for i, mean in enumerate(means) for p in weight_problems(mean, forward.shape[1], i, CURE)]
    reached = np.asarray(runs.pilot_reached)
    for index in np.flatnonzero(reached < 1):
        advice = "the pilot did not reach the energy; give a reference closer to it."
        problems.append(Problem("LADDER_UNFINISHED", advice, None, float(reached[index]), int(index)))
    bounds = None
    if runs.reverse is not None:
        backward = np.asarray(runs.reverse)
        inside = np.asarray(runs.inside, np.float64)
        back = [_upper(row, share, forward.shape[1]) for row, share in zip(backward, inside, strict=True)]
        problems += [p for i in range(len(means)) for p in _gap(means[i], back[i], i, independent=independent)]
        bounds = (np.array([mean.log_mean for mean in means]), np.array([mean.log_mean for mean in back]))
    return LogNormalizerEstimate(
        np.array([mean.log_mean for mean in means]),
        np.array([mean.standard_error for mean in means]),
        np.array([mean.effective_sample_size for mean in means]),
        np.array([mean.khat for mean in means]),
        "annealed_importance",
        tuple(problems),
        bounds=bounds,
    )


def _upper(log_weights: np.ndarray, inside: float, num_samples: int) -> WeightedMean:
    """Log Z by the way back: its mean weight is the share of q inside the walls over Z."""
    mean = weighted_mean(log_weights, log_weights.dtype, smooth=False)
    if inside == 0:
        return mean
    counting = np.sqrt((1 - inside) / (inside * num_samples))
    error = float(np.hypot(mean.standard_error, counting))
    return dataclasses.replace(mean, log_mean=float(np.log(inside)) - mean.log_mean, standard_error=error)


def _gap(forward: WeightedMean, back: WeightedMean, condition: int, *, independent: bool) -> list[Problem]:
    if not np.isfinite(forward.log_mean):
        return []
    gap = back.log_mean - forward.log_mean
    error = back.standard_error
    if not independent:  # resampled ends repeat themselves: as many draws as there were effective weights
        error *= np.sqrt(1 + forward.standard_error**2 / max(back.standard_error, 1e-12) ** 2)
    if abs(gap) <= GAP_ERRORS * float(np.hypot(forward.standard_error, error)):
        return []
    advice = (
        f"the way back puts log Z {gap:+.2f} nats from the way there, more than their errors allow: the truth lies "
        f"between them, or the draws for the way back are not draws of the energy; {CURE}"
    )
    return [Problem("SANDWICH_GAP", advice, None, float(gap), condition)]
