"""What ready-made samplers for `EnergyDistribution(sampler=...)` share: pure draws, and the same draws looked at."""

import abc
import time
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ebm_ppl._checks import check_condition, check_count, check_key, what_came
from ebm_ppl._types import PRNGKey
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy, coordinate_energy
from ebm_ppl.energies._event import evaluate
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._support import check_support, describe_support, with_support
from ebm_ppl.errors import Problem, warn_problems
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.sampling import Draws, Tempering
from ebm_ppl.sampling._problems import find_problems

MIN_ACCEPTANCE = 0.01  # a chain that accepts less on its way to a draw stands still
MIN_TRANSITIONS = 20  # of that way; fewer say nothing, for single proposals are often refused
STANDING_STILL = {"NONFINITE_DRAW", "STUCK_CHAIN", "ZERO_ACCEPTANCE"}  # then that draws are alike is nothing new
MAX_CORRELATION = 0.25  # between draws that follow each other; 1/4 leaves six of ten effective


class Record(eqx.Module):
    """What a run gives: coordinates `(chain, draw, ...)`, statistics, round trips and potentials."""

    positions: Array
    stats: dict[str, Array]
    tempering: tuple[Array, Array, Array] | None = None  # potentials and swap rates of every iteration, round trips


class AbstractSampler(eqx.Module):
    """How an `EnergyDistribution` draws where no exact way is known.

    Called as `sampler(energy, key, sample_shape, condition)`, like any function given as `sampler=`. It is told the
    support of the distribution besides, and moves in its real coordinates. A draw whose chain failed is NaN: that is
    how a program that is compiled can say it. `draws` says what went wrong.

    Attributes:
        kernel: how to move.
        num_warmup: what comes before the first draw of a chain, and tunes it.
        num_chains: at most so many chains at once; None: every draw has a chain of its own.
    """

    kernel: eqx.AbstractVar[AbstractKernel]
    num_warmup: eqx.AbstractVar[int]
    num_chains: eqx.AbstractVar[int | None]

    @abc.abstractmethod
    def run(self, target: CoordinateEnergy, key: PRNGKey, num_chains: int, num_draws: int, condition: Any) -> Record:
        """`num_draws` draws of each of `num_chains` chains; pure."""

    @property
    @abc.abstractmethod
    def transitions_per_draw(self) -> int:
        """Transitions between two draws of one chain."""

    def __call__(
        self,
        energy: AbstractEnergy,
        key: Array | Any,
        sample_shape: tuple[int, ...] = (),
        condition: Any = None,
        *,
        support: Any = None,
    ) -> Float[Array, "..."]:
        """Draws `(*sample_shape, *event_shape)`; NaN where a chain failed."""
        target = _in_coordinates(energy, support)
        count = int(np.prod(sample_shape))
        num_chains = count if self.num_chains is None else min(self.num_chains, count)
        if count == 0:
            return jnp.zeros((*sample_shape, *energy.event_shape))
        draws = _draw(self, target, check_key(key), num_chains, count, condition)
        return draws.reshape(*sample_shape, *energy.event_shape)

    def draws(
        self,
        energy: AbstractEnergy | Any,
        *,
        key: Array | Any,
        num_chains: int | Any = 4,
        num_draws: int | Any = 250,
        condition: Any = None,
        support: Any = None,
    ) -> Draws:
        """The same chains, looked at: draws as far apart as in use, with every problem found.

        Beside the problems of `ebm.sample` there are `STALLED_DRAWS`: so many draws would be NaN in use, for their
        chain stood still on the way; and `CORRELATED_DRAWS`: draws that follow each other have a correlation above 1/4
        in some coordinate, or in the energy, so that a chain does not forget where it came from between two draws,
        nor, in the last place, where it started. `ebm.diagnose(draws)` then judges the mixing.

        Args:
            energy: what is to be drawn.
            key: one JAX key.
            num_chains: number of chains.
            num_draws: draws of each chain, at least 20.
            condition: one condition, for a conditional energy.
            support: as in `EnergyDistribution`.

        Returns:
            `Draws` on the support: for `ebm.diagnose`, and for `ebm.to_datatree(draws, group="prior")`.
        """
        started = time.perf_counter()
        num_chains, num_draws = check_count("num_chains", num_chains), check_count("num_draws", num_draws, 20)
        check_energy_type("energy", energy)
        target = _in_coordinates(energy, support)
        condition = check_condition(condition, energy.condition_shape)
        record, failed = _run(self, target, check_key(key), num_chains, num_draws, condition)
        positions, lp = _on_support(target, record.positions, condition)
        stats = {name: np.asarray(values) for name, values in (record.stats | {"lp": lp}).items()}
        positions, raw = np.asarray(positions), np.asarray(record.positions)
        thinning = self.transitions_per_draw
        problems = find_problems(raw, stats, self.kernel, num_warmup=self.num_warmup, thinning=thinning)
        if not {problem.code for problem in problems} & STANDING_STILL:
            problems += _stalled(np.asarray(failed))
            problems += _correlation(raw, stats["lp"])
        if not self.kernel.adjusted:
            advice = (
                f"{type(self.kernel).__name__} has no Metropolis correction: its draws are biased, and so is what is "
                "made of them; use ebm.MALA(), ebm.Barker() or ebm.HMC() for exact ones."
            )
            problems.append(Problem("UNADJUSTED_DRAWS", advice))
        tempering = self._tempering(record, target)
        if tempering is not None:
            advice = "no replica travelled from the reference to the target and back: add levels, or iterations."
            for chain in np.flatnonzero(tempering.round_trips == 0):
                problems.append(Problem("NO_ROUND_TRIPS", advice, int(chain), 0))
        settings = {
            "sampler": type(self).__name__,
            "kernel": type(self.kernel).__name__,
            "adjusted": self.kernel.adjusted,
            "energy": type(energy).__name__,
            "support": describe_support(target.coordinates.support),
            "num_chains": num_chains,
            "num_warmup": self.num_warmup,
            "num_samples": num_draws,
            "thinning": thinning,
            "seconds": round(time.perf_counter() - started, 3),
        }
        step_size = float(np.mean(stats["step_size"]))
        scale = np.ones((num_chains, *positions.shape[2:]), positions.dtype)
        kernel = with_step_size(self.kernel, step_size)
        result = Draws(positions, stats, kernel, tuple(problems), settings, scale, tempering)
        warn_problems(result.problems, num_chains)
        return result

    @abc.abstractmethod
    def _tempering(self, record: Record, target: CoordinateEnergy) -> Tempering | None:
        """What a tempered run says of its ladder."""


def check_sampler(sampler: AbstractSampler) -> None:
    """The fields that all samplers have."""
    if not isinstance(sampler.kernel, AbstractKernel):
        raise TypeError(f"`kernel` must be an ebm.AbstractKernel such as ebm.MALA(); got {what_came(sampler.kernel)}.")
    check_count("num_warmup", sampler.num_warmup, 0)
    if sampler.num_chains is not None:
        check_count("num_chains", sampler.num_chains)


def _in_coordinates(energy: AbstractEnergy, support: Any) -> CoordinateEnergy:
    """The energy in the coordinates of `support`, or of its own where None.

    Raises:
        NotImplementedError: there is no bijection onto the support: it is discrete, for instance.
    """
    if isinstance(energy.event_shape, Mapping):
        raise NotImplementedError(
            f"samplers of distributions draw array events; this energy has the parts {list(energy.event_shape)}: draw "
            "with ebm.sample(energy, key=...)."
        )
    if support is not None:
        energy = with_support(energy, check_support(support, energy.event_shape))
    try:
        return coordinate_energy(energy)
    except NotImplementedError as error:
        raise NotImplementedError(
            f"{error} Give `sampler=`, a function (energy, key, sample_shape) -> draws."
        ) from error


@eqx.filter_jit
def _run(
    sampler: AbstractSampler, target: CoordinateEnergy, key: PRNGKey, num_chains: int, num_draws: int, condition: Any
) -> tuple[Record, Bool[Array, "chain draw"]]:
    """A run, and which of its draws are no draws: one program, where eager code would compile dozens."""
    record = sampler.run(target, key, num_chains, num_draws, condition)
    return record, _failed(record, sampler.kernel, sampler.transitions_per_draw)


@eqx.filter_jit
def _draw(
    sampler: AbstractSampler, target: CoordinateEnergy, key: PRNGKey, num_chains: int, count: int, condition: Any
) -> Float[Array, "draw ..."]:
    """`count` draws on the support, those of failed chains NaN."""
    record, failed = _run(sampler, target, key, num_chains, -(-count // num_chains), condition)
    # Draw by draw: those that follow each other come from different chains.
    positions, failed = (jnp.swapaxes(rows, 0, 1) for rows in (record.positions, failed))
    draws = jax.vmap(target.coordinates.to_event)(positions.reshape(-1, *target.event_shape)[:count])
    failed = failed.reshape(-1)[:count].reshape(count, *(1 for _ in target.coordinates.event_shape))
    return jnp.where(failed, jnp.nan, draws)


@eqx.filter_jit
def _on_support(target: CoordinateEnergy, positions: Array, condition: Any) -> tuple[Array, Array]:
    """Draws on the support and their log density up to log Z, without any Jacobian."""

    def one(u: Array) -> tuple[Array, Array]:
        x = target.coordinates.to_event(u)
        return x, -evaluate(target.target.energy, x, condition)

    return jax.vmap(jax.vmap(one))(positions)


def _failed(record: Record, kernel: AbstractKernel, thinning: int) -> Bool[Array, "chain draw"]:
    """Chains that are no longer on their way: not finite, standing still, or stopped."""
    axes = tuple(range(2, record.positions.ndim))
    failed = ~jnp.isfinite(record.stats["lp"]) | ~jnp.all(jnp.isfinite(record.positions), axis=axes)
    if "acceptance_rate" in record.stats:
        failed |= ~(_recent(record.stats["acceptance_rate"], -(-MIN_TRANSITIONS // thinning)) >= MIN_ACCEPTANCE)
    return failed if kernel.adjusted else failed | record.stats["diverging"]


def _recent(rates: Float[Array, "chain draw"], width: int) -> Float[Array, "chain draw"]:
    """Mean over a draw and the `width - 1` before it, or at the start of the run the first `width`; 1 if fewer are."""
    number = rates.shape[1]
    if number < width:
        return jnp.where(jnp.isnan(rates), rates, jnp.ones_like(rates))
    first = np.maximum(np.arange(number) - width + 1, 0)
    return jnp.mean(rates[:, first[:, None] + np.arange(width)], axis=-1)


def _stalled(failed: Bool[np.ndarray, "chain draw"]) -> list[Problem]:
    """Draws that would be NaN in use, though their chain moves on later."""
    number = int(failed.sum())
    if not number:
        return []
    advice = (
        f"{number} of {failed.size} draws would be NaN in use: on the way there the chain accepted less than "
        f"{MIN_ACCEPTANCE:.0%}, or left the finite energies. "
        "Steep tails stop MALA and HMC: take Barker, or warm up longer."
    )
    return [Problem("STALLED_DRAWS", advice, None, number)]


def _correlation(
    positions: Float[np.ndarray, "chain draw *coordinates"], lp: Float[np.ndarray, "chain draw"]
) -> list[Problem]:
    """Whether draws that follow each other are alike, in a coordinate or in the energy: over all chains together."""
    flat = positions.reshape(*positions.shape[:2], -1)
    columns = np.concatenate([flat, lp[..., None]], axis=-1).astype(np.float64)
    if not np.isfinite(columns).all():
        return []
    columns = columns - columns.mean((0, 1))
    variance = (columns**2).mean((0, 1))
    moved = variance > 0
    if not moved.any():
        return []
    correlation = float(((columns[:, 1:] * columns[:, :-1]).mean((0, 1))[moved] / variance[moved]).max())
    noise = 4 / np.sqrt(columns.shape[0] * (columns.shape[1] - 1))
    if correlation <= MAX_CORRELATION + noise:
        return []
    advice = (
        f"draws that follow each other have a correlation of {correlation:.2f}, more than {MAX_CORRELATION}: chains do "
        "not forget their start in time. Raise num_steps, choose another kernel or precondition='dense'; across "
        "barriers, TemperedSampler."
    )
    return [Problem("CORRELATED_DRAWS", advice, None, correlation)]
