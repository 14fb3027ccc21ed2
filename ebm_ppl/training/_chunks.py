"""The host side of the training loop: about a second of device work at a time, and what happens in between."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ebm_ppl._progress import Interruption, Progress, deferred_interrupt
from ebm_ppl.errors import CheckpointError, Problem
from ebm_ppl.training._checkpoint import TrainingCheckpoint
from ebm_ppl.training._loop import MAX_CHUNK, Chunk, Setup, TrainState, advance, term_names
from ebm_ppl.training._metric_problems import metric_problems
from ebm_ppl.training._programs import Programs
from ebm_ppl.training._result import FitResult
from ebm_ppl.training._stream import Stream, advance_along

SMOOTHING = 100  # steps over which the loss that is shown is averaged

type Callback = Callable[[int, Any, dict[str, np.ndarray]], object]
"""`callback(step, model, metrics)`: steps taken, the model as it would be returned now, metrics since the last call."""


@dataclasses.dataclass
class Course:
    """One call of `fit`: what stays the same, and where it stands."""

    programs: Programs
    setup: Setup
    settings: dict[str, Any]
    callbacks: tuple[Callback, ...]
    state: TrainState
    history: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    stream: Stream | None = None
    checkpoint: TrainingCheckpoint | None = None
    unsaved: tuple[Problem, ...] = ()

    @property
    def model(self) -> Any:
        """As it would be returned now: best by validation, else averaged, else current."""
        state = self.state
        if state.best is not None and int(state.best.step) > 0:
            return eqx.combine(state.best.params, self.setup.static)
        return eqx.combine(state.params if state.average is None else state.average, self.setup.static)

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        validation, best = self.setup.validation, self.state.best
        return validation is not None and best is not None and int(best.failures) >= int(validation.patience)

    def save(self, *, force: bool = False) -> None:
        """Write the checkpoint, if there is one and it is time to; what went wrong is kept for the result."""
        if self.checkpoint is None or not (force or self.checkpoint.due):
            return
        try:
            self.checkpoint.save(self.state, self.history)
            self.unsaved = ()
        except CheckpointError as error:
            advice = f"the last checkpoint could not be written, the one before it is untouched: {error}"
            self.unsaved = (Problem("CHECKPOINT_FAILED", advice, value=int(self.state.step)),)


def run_chunks(course: Course, *, progress_bar: bool) -> FitResult:
    """Advance to `settings["num_steps"]`, or to where it ends before."""
    began = time.monotonic()
    progress = Progress(course.settings["num_steps"], "fit", enabled=progress_bar)
    try:
        with deferred_interrupt() as interruption:
            problems = _run(course, progress, interruption)
            course.save(force=True)
    finally:
        progress.close()
        if course.stream is not None:
            course.stream.close()
    return _result(course, problems, time.monotonic() - began)


def _run(course: Course, progress: Progress, interruption: Interruption) -> tuple[Problem, ...]:
    """Chunk after chunk until done or stopped; metrics are appended to the history."""
    step, length, num_steps = int(course.state.step), 1, course.settings["num_steps"]
    if step:
        progress.update(step)
    silenced: set[int] = set()
    while step < num_steps and not course.exhausted:
        began = time.monotonic()
        chunk, ended = _advance(course, min(num_steps, step + length))
        if chunk is None:
            return ended
        course.state, taken = chunk.state, int(chunk.state.step) - step
        # The first chunk's time is that of the compiler.
        length = _next_length(length, time.monotonic() - began if course.history else 0.0)
        step += taken
        records = {name: np.asarray(values) for name, values in chunk.records.items()}
        metrics = {name: values[:taken] for name, values in records.items()}
        for name, values in sorted(metrics.items(), key=lambda item: item[0] != "loss"):
            course.history.setdefault(name, []).append(values)
        course.save()
        if "validation_loss" in metrics:
            metrics["validation_loss"] = metrics["validation_loss"][_due(course, step, taken)]
        _report(course.callbacks, silenced, step, course.model, metrics)
        progress.update(taken, **_facts(course))
        if not np.all(chunk.finite):
            return (_diverged(chunk, step, float(records["loss"][taken])),)
        if ended:
            return ended
        if interruption.requested and step < num_steps:
            return (_interrupted(step, num_steps),)
    return ()


def _advance(course: Course, stop: int) -> tuple[Chunk | None, tuple[Problem, ...]]:
    """The next chunk, None where not even one batch came, and why no more will follow."""
    end = jnp.asarray(stop, jnp.int32)
    if course.stream is None:
        size = course.settings["batch_size"]
        return course.programs(advance, course.setup, course.state, end, batch_size=size), ()
    return advance_along(course.programs, course.stream, course.setup, course.state, end)


def _due(course: Course, step: int, taken: int) -> np.ndarray:
    """Which of the last `taken` steps before and with `step` were validated."""
    validation = course.setup.validation
    every = 1 if validation is None else int(validation.every)
    return np.arange(step - taken + 1, step + 1) % every == 0


def _facts(course: Course) -> dict[str, str]:
    facts = {"loss": _smoothed(course.history["loss"])}
    best = course.state.best
    if best is not None and int(best.step) > 0:
        facts["validation"] = f"{float(best.loss):.4g} at {int(best.step)}"
    return facts


def _result(course: Course, problems: tuple[Problem, ...], seconds: float) -> FitResult:
    state = course.state
    metrics = {name: np.concatenate(values) for name, values in course.history.items()}
    step = int(state.step)
    validation, best_step = {}, None
    if "validation_loss" in metrics:
        due = _due(course, step, step)
        validation = {"step": np.flatnonzero(due) + 1, "loss": metrics.pop("validation_loss")[due]}
        problems += _bad_validation(validation)
        best_step = int(state.best.step) or None if state.best is not None else None
    return FitResult(
        model=course.model,
        last_model=eqx.combine(state.params, course.setup.static),
        opt_state=state.opt_state,
        objective_state=state.objective_state,
        metrics=metrics,
        problems=problems + course.unsaved + metric_problems(metrics),
        settings=course.settings | {"seconds": seconds},
        validation=validation,
        best_step=best_step,
        stopped_early=course.exhausted and step < course.settings["num_steps"],
    )


def _bad_validation(validation: dict[str, np.ndarray]) -> tuple[Problem, ...]:
    bad = ~np.isfinite(validation["loss"])
    if not bad.any():
        return ()
    first = int(np.argmax(bad))
    advice = (
        f"{bad.sum()} of {bad.size} validations were not finite, the first at step {validation['step'][first]}, and "
        "counted as no improvement: look at the energy where the held-out data are."
    )
    return (Problem("VALIDATION_NOT_FINITE", advice, value=float(validation["loss"][first])),)


def _next_length(length: int, seconds: float) -> int:
    """Doubled while a chunk is short, halved when it is long: so half a second to two."""
    if seconds < 0.5:
        return min(2 * length, MAX_CHUNK)
    return max(1, length // 2) if seconds > 2 else length


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
