"""The host side of the training loop: about a second of device work at a time, and what happens in between."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ebm_ppl._progress import Interruption, Progress, deferred_interrupt
from ebm_ppl.errors import Problem
from ebm_ppl.training._loop import MAX_CHUNK, Chunk, Setup, TrainState, advance, term_names
from ebm_ppl.training._result import FitResult

SMOOTHING = 100  # steps over which the loss that is shown is averaged

type Callback = Callable[[int, Any, dict[str, np.ndarray]], object]
"""`callback(step, model, metrics)`: steps taken, the model as it would be returned now, metrics since the last call."""


def run_chunks(
    setup: Setup, state: TrainState, settings: dict[str, Any], callbacks: tuple[Callback, ...], *, progress_bar: bool
) -> FitResult:
    """Advance `state` to `settings["num_steps"]`, or to where it diverges or is interrupted."""
    began = time.monotonic()
    history: dict[str, list[np.ndarray]] = {}
    progress = Progress(settings["num_steps"], "fit", enabled=progress_bar)
    try:
        with deferred_interrupt() as interruption:
            state, problems = _run(setup, state, settings, callbacks, history, progress, interruption)
    finally:
        progress.close()
    return FitResult(
        model=_model(state, setup),
        last_model=eqx.combine(state.params, setup.static),
        opt_state=state.opt_state,
        objective_state=state.objective_state,
        metrics={name: np.concatenate(values) for name, values in history.items()},
        problems=problems,
        settings=settings | {"seconds": time.monotonic() - began},
    )


def _run(
    setup: Setup,
    state: TrainState,
    settings: dict[str, Any],
    callbacks: tuple[Callback, ...],
    history: dict[str, list[np.ndarray]],
    progress: Progress,
    interruption: Interruption,
) -> tuple[TrainState, tuple[Problem, ...]]:
    """Chunk after chunk until done or stopped; metrics are appended to `history`."""
    step, length, num_steps = 0, 1, settings["num_steps"]
    silenced: set[int] = set()
    while step < num_steps:
        began = time.monotonic()
        stop = jnp.asarray(min(num_steps, step + length), jnp.int32)
        chunk = advance(setup, state, stop, batch_size=settings["batch_size"])
        state, taken = chunk.state, int(chunk.state.step) - step
        length = _next_length(length, time.monotonic() - began)
        step += taken
        records = {name: np.asarray(values) for name, values in chunk.records.items()}
        metrics = {name: values[:taken] for name, values in records.items()}
        for name, values in sorted(metrics.items(), key=lambda item: item[0] != "loss"):
            history.setdefault(name, []).append(values)
        _report(callbacks, silenced, step, _model(state, setup), metrics)
        progress.update(taken, loss=_smoothed(history["loss"]))
        if not np.all(chunk.finite):
            return state, (_diverged(chunk, step, float(records["loss"][taken])),)
        if interruption.requested and step < num_steps:
            return state, (_interrupted(step, num_steps),)
    return state, ()


def _next_length(length: int, seconds: float) -> int:
    """Doubled while a chunk is short, halved when it is long: so half a second to two."""
    if seconds < 0.5:
        return min(2 * length, MAX_CHUNK)
    return max(1, length // 2) if seconds > 2 else length


def _model(state: TrainState, setup: Setup) -> Any:
    """The averaged model once there is an average, else the current one."""
    return eqx.combine(state.params if state.average is None else state.average, setup.static)


def _report(
    callbacks: tuple[Callback, ...], silenced: set[int], step: int, model: Any, metrics: dict[str, np.ndarray]
) -> None:
    """Call every callback; what one raises is reported once and stops neither the others nor training."""
    for index, callback in enumerate(callbacks):
        try:
            callback(step, model, metrics)
        except Exception as error:
            if index not in silenced:
                silenced.add(index)
                name = getattr(callback, "__name__", type(callback).__name__)
                message = f"callback {name} raised {type(error).__name__}: {error}; training goes on."
                warnings.warn(message, RuntimeWarning, stacklevel=6)


def _smoothed(losses: list[np.ndarray]) -> str:
    recent: list[np.ndarray] = []
    while losses and sum(map(len, recent)) < SMOOTHING and len(recent) < len(losses):
        recent.insert(0, losses[-1 - len(recent)])
    tail = np.concatenate(recent)[-SMOOTHING:]
    return f"{np.mean(tail):.4g}" if len(tail) else "not finite"


def _diverged(chunk: Chunk, step: int, loss: float) -> Problem:
    term = term_names(chunk.state.params)[int(np.argmin(np.asarray(chunk.finite)))]
    advice = (
        f"{term} became non-finite at step {step}; the model returned is the one before that step. Lower the learning "
        "rate, clip gradients (optax.clip_by_global_norm), or look at the energy where data and noise are extreme."
    )
    return Problem("TRAINING_DIVERGED", advice, value=loss)


def _interrupted(step: int, num_steps: int) -> Problem:
    advice = f"stopped by Ctrl-C after {step} of {num_steps} steps; the model returned is the one reached by then."
    return Problem("INTERRUPTED", advice, value=float(step))
