"""`sample`: energies in, draws with a verdict out."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ebm_ppl._checks import check_condition, check_count, check_key
from ebm_ppl._progress import Interruption, Progress, deferred_interrupt
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import ChainFailedError, Problem, warn_problems
from ebm_ppl.kernels import MALA, AbstractKernel
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.sampling._draws import Draws
from ebm_ppl.sampling._pace import Pace
from ebm_ppl.sampling._positions import starting_positions
from ebm_ppl.sampling._preconditioners import PRECONDITIONERS
from ebm_ppl.sampling._problems import find_problems
from ebm_ppl.sampling._run_chains import (
    Chains,
    ChainTarget,
    chain_keys,
    chain_target,
    chunk_capacity,
    close_slow_window,
    close_warmup,
    draw,
    start_chains,
    tunes,
    warm_up,
)
from ebm_ppl.sampling._warmup import warmup_windows


def sample(
    energy: AbstractEnergy | Any,
    kernel: AbstractKernel | Any = None,
    *,
    key: Array | Any,
    num_chains: int | Any = 4,
    num_warmup: int | Any = 1000,
    num_samples: int | Any = 1000,
    thinning: int | Any = 1,
    initial_positions: Any = None,
    condition: Any = None,
    precondition: str = "diagonal",
    pool_warmup: bool = False,
    progress_bar: bool = True,
    strict: bool = False,
) -> Draws:
    r"""Draw from \(p(x) \propto \exp(-E(x))\) with many chains at once.

    All chains run in one compiled program on the device, in chunks of about a second, so that progress is shown,
    Ctrl-C returns the draws so far (flagged `INTERRUPTED`) and device memory stays bounded. Chain c uses
    `fold_in(key, c)` and its transition t `fold_in(., t)`: the draws do not depend on the number of chains or on
    the chunks. A second call with an equal configuration compiles nothing.

    Warm-up tunes the step size by dual averaging to the kernel's target acceptance rate and learns, in Stan's
    windows, the scale of every coordinate (`precondition="diagonal"`) or their covariance (`"dense"`); kernels
    without an acceptance rate (`ULA`) keep their step size and coordinates: warm-up is burn-in for them. Nothing
    adapts afterwards.

    Args:
        energy: what to sample; nats.
        kernel: how; `MALA()` by default. Its `step_size` is where warm-up starts, or what is used without warm-up.
        key: one JAX key, typed or legacy.
        num_chains: chains, at least 1; thousands are fine.
        num_warmup: transitions of warm-up, at least 0.
        num_samples: draws kept per chain, at least 1.
        thinning: transitions per kept draw, at least 1.
        initial_positions: `(num_chains, *event_shape)`; by default uniform in [-2, 2] in every coordinate, redrawn up
            to ten times where the energy is not finite.
        condition: for conditional energies, one `condition_shape` for all chains or `(num_chains, *condition_shape)`.
        precondition: what warm-up learns as change of variables: `"diagonal"` scales, a `"dense"` covariance (for
            strongly correlated targets of up to a few hundred dimensions), or `"none"`.
        pool_warmup: let all chains learn one preconditioner and one step size together: better with many chains and
            a short warm-up; but then a chain's draws depend on the others.
        progress_bar: a bar in a terminal or notebook, one line per 10 s elsewhere.
        strict: raise `ChainFailedError` (carrying the draws) instead of warning when there is a problem.

    Returns:
        `Draws`; read `.ok` and `.problems` before anything else, then `ebm.diagnose(draws)`.

    Raises:
        KeyArgumentError: `key` is missing, an int, or several keys.
        EnergyShapeError: the energy is not a scalar of one event, or shapes do not match `event_shape`.
        EnergyDtypeError: positions or condition are not floating-point.
        NonFiniteEnergyError: energy or gradient is NaN or infinite at a starting position.
        NonDifferentiableEnergyError: the energy has no gradient.
        ValueError: a count or name is out of range.
        ChainFailedError: `strict=True` and there is a problem.

    Example:
        >>> import jax, ebm_ppl as ebm
        >>> energy = ebm.energies.DoubleWell(barrier=1.0, dim=1)
        >>> draws = ebm.sample(energy, key=jax.random.key(0), num_samples=2000, progress_bar=False)
        >>> draws
        Draws: 4 chains x 2000 draws of shape (1,), MALA, ok
        >>> bool(abs((draws.positions**2).mean() - 0.8327) < 0.1)        # the exact second moment
        True

    References:
        Hoffman, Gelman (2014). The no-U-turn sampler (dual averaging). JMLR 15, 1593-1623. arXiv:1111.4246
        Lao, Cabezas et al. (2024). BlackJAX: composable Bayesian inference in JAX. arXiv:2402.10797
    """
    kernel = MALA() if kernel is None else kernel
    _check_settings(energy, kernel, precondition)
    counts = {
        "num_chains": check_count("num_chains", num_chains),
        "num_warmup": check_count("num_warmup", num_warmup, 0),
        "num_samples": check_count("num_samples", num_samples),
        "thinning": check_count("thinning", thinning),
    }
    key = check_key(key)
    condition = check_condition(condition, energy.condition_shape, counts["num_chains"])
    positions, redraws = starting_positions(
        energy,
        initial_positions,
        condition,
        key=key,
        num_chains=counts["num_chains"],
        needs_gradient=kernel.uses_gradient,
    )
    kernel = with_step_size(kernel, jnp.asarray(kernel.step_size, positions.dtype))
    run = _Run(kernel, chain_target(energy, condition, num_chains), positions, key, precondition, pool_warmup, **counts)
    draws = run.go(progress_bar=progress_bar)
    draws.settings.update(redrawn_starts=redraws)
    if draws.problems and strict:
        raise ChainFailedError("; ".join(map(str, draws.problems)), draws)
    warn_problems(draws.problems, num_chains)
    return draws


def _check_settings(energy: object, kernel: object, precondition: object) -> None:
    if not isinstance(energy, AbstractEnergy):
        raise TypeError(
            f"`energy` must be an ebm.AbstractEnergy; got {type(energy).__name__}: wrap a function with "
            "ebm.FunctionEnergy(fn, event_shape)."
        )
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"`kernel` must be an ebm.AbstractKernel such as ebm.MALA(); got {type(kernel).__name__}.")
    if precondition not in PRECONDITIONERS:
        raise ValueError(f"`precondition` must be one of {PRECONDITIONERS}; got {precondition!r}.")


def _int32(value: int) -> Array:
    return jnp.asarray(value, jnp.int32)


@dataclasses.dataclass
class _Run:
    """The host side of one call: chunks, progress, and where the draws are gathered."""

    kernel: AbstractKernel
    target: ChainTarget
    positions: Array
    key: Array
    precondition: str
    pool_warmup: bool
    num_chains: int
    num_warmup: int
    num_samples: int
    thinning: int

    def go(self, *, progress_bar: bool) -> Draws:
        """Warm up, draw, judge."""
        started = time.perf_counter()
        keys = chain_keys(self.key, self.num_chains)
        tune = tunes(self.kernel, self.num_warmup)
        total = self.num_warmup + self.num_samples * self.thinning
        progress = Progress(total, "warm-up" if self.num_warmup else "sampling", enabled=progress_bar)
        with deferred_interrupt() as interruption:
            chains = start_chains(
                self.kernel, self.target, self.positions, keys, tune=tune, precondition=self.precondition
            )
            chains, warmed = self._warm_up(chains, keys, progress, interruption)
            gathered, stats, chains = self._draw(chains, keys, progress, interruption)
        progress.close()
        return self._judge(gathered, stats, chains, warmed, time.perf_counter() - started)

    def _warm_up(
        self, chains: Chains, keys: Array, progress: Progress, interruption: Interruption
    ) -> tuple[Chains, int]:
        tune = tunes(self.kernel, self.num_warmup)
        done, pace = 0, Pace()
        for window in warmup_windows(self.num_warmup):
            slow = window.slow and tune and self.precondition != "none"
            left = window.num_steps
            while left and not interruption.requested:
                count = min(left, pace.count)
                with pace.timed(count):
                    chains, rate = warm_up(
                        self.kernel, self.target, chains, keys, _int32(done), _int32(count), jnp.asarray(slow)
                    )
                    rate = np.asarray(rate)
                done, left = done + count, left - count
                step_size = float(np.mean(np.asarray(chains.chain.step_size)))
                progress.update(count, acceptance=f"{rate.mean():.2f}", step_size=f"{step_size:.2e}")
            if interruption.requested:
                break
            if slow:
                chains = close_slow_window(self.kernel, self.target, chains, keys, _int32(done), pool=self.pool_warmup)
        return (close_warmup(self.kernel, chains, pool=self.pool_warmup) if tune else chains), done

    def _draw(
        self, chains: Chains, keys: Array, progress: Progress, interruption: Interruption
    ) -> tuple[np.ndarray, dict[str, np.ndarray], Chains]:
        progress.relabel("sampling")
        capacity = chunk_capacity(
            self.num_samples, self.num_chains, self.positions.shape[1:], self.positions.dtype.itemsize
        )
        pieces, done, pace, nonfinite = [], 0, Pace(), 0
        while done < self.num_samples and not interruption.requested:
            count = min(self.num_samples - done, pace.count, capacity)
            with pace.timed(count):
                first = _int32(self.num_warmup + done * self.thinning)
                chains, positions, stats = draw(
                    self.kernel,
                    self.target,
                    chains,
                    keys,
                    first,
                    _int32(count),
                    capacity=capacity,
                    thinning=self.thinning,
                )
                piece = jax.tree.map(lambda rows, n=count: np.array(np.asarray(rows)[:n]), (positions, stats))
            pieces.append(piece)
            done += count
            nonfinite += int(piece[1]["nonfinite_proposal"].sum())
            facts = {"step_size": f"{piece[1]['step_size'][-1].mean():.2e}", "non-finite": str(nonfinite)}
            if "acceptance_rate" in piece[1]:
                facts["acceptance"] = f"{piece[1]['acceptance_rate'].mean():.2f}"
            progress.update(count * self.thinning, **facts)
        if not pieces:  # interrupted before the first chunk: an empty result of the right shapes
            chains, positions, stats = draw(
                self.kernel,
                self.target,
                chains,
                keys,
                _int32(0),
                _int32(0),
                capacity=capacity,
                thinning=self.thinning,
            )
            pieces = [jax.tree.map(lambda rows: np.asarray(rows)[:0], (positions, stats))]
        gathered, stats = jax.tree.map(lambda *parts: np.swapaxes(np.concatenate(parts), 0, 1), *pieces)
        return gathered, stats, chains

    def _judge(
        self, gathered: np.ndarray, stats: dict[str, np.ndarray], chains: Chains, warmed: int, seconds: float
    ) -> Draws:
        problems = find_problems(gathered, stats, self.kernel, num_warmup=self.num_warmup, thinning=self.thinning)
        if gathered.shape[1] < self.num_samples:
            advice = f"stopped by the user after {warmed} of {self.num_warmup} warm-up steps "
            advice += f"and {gathered.shape[1]} of {self.num_samples} draws."
            problems.append(Problem("INTERRUPTED", advice, None, gathered.shape[1]))
        settings = {
            "num_chains": self.num_chains,
            "num_warmup": self.num_warmup,
            "num_samples": self.num_samples,
            "thinning": self.thinning,
            "precondition": self.precondition,
            "pool_warmup": self.pool_warmup,
            "kernel": type(self.kernel).__name__,
            "adjusted": self.kernel.adjusted,
            "energy": type(self.target.energy).__name__,
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "device": str(next(iter(self.positions.devices()))),
            "seconds": round(seconds, 3),
        }
        step_size = np.asarray(chains.chain.step_size).mean()
        kernel = with_step_size(self.kernel, float(step_size))
        scale = np.asarray(chains.chain.preconditioner.scale)
        return Draws(gathered, stats, kernel, tuple(problems), settings, scale)
