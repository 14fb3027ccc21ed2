"""What `fit` returns."""

import dataclasses
import html
from typing import Any

import numpy as np

from ebm_ppl.errors import Problem


@dataclasses.dataclass(frozen=True, repr=False)
class FitResult:
    """A trained model, how training went, and whether it may be trusted.

    Args:
        model: the model after the last good step; the average over the steps where `ema_decay` was given; with
            `validation` the one, averaged or not, of lowest validation loss.
        last_model: the model after the last good step, never averaged.
        opt_state: the optimiser's state after that step.
        objective_state: the objective's state after that step; None for objectives without one.
        metrics: name -> array `(step,)` on the host: `loss`, `gradient_norm` and what the objective reports.
        problems: what is wrong with the result; empty if nothing is known to be.
        settings: what was asked for and what it ran on, as values that fit into JSON.
        validation: `step` and `loss`, arrays `(validation,)`: the objective on the held-out data; empty without.
        best_step: the step that `model` is from where there was a validation, else None.
        stopped_early: whether training ended because patience ran out.
    """

    model: Any
    last_model: Any
    opt_state: Any
    objective_state: Any
    metrics: dict[str, np.ndarray]
    problems: tuple[Problem, ...]
    settings: dict[str, Any]
    validation: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    best_step: int | None = None
    stopped_early: bool = False

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def num_steps(self) -> int:
        """Steps taken; fewer than asked for if training stopped early, was interrupted or diverged."""
        return len(self.metrics["loss"])

    def __repr__(self) -> str:
        """One line per fact."""
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(["FitResult", *(f"  {name:<{width}}  {value}" for name, value in rows)])

    def _repr_html_(self) -> str:
        """The same facts as a table."""
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>"
            f"{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        return f"<table><caption>FitResult</caption>{cells}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        settings = self.settings
        data = "a stream" if settings["num_data"] is None else settings["num_data"]
        steps = f"{self.num_steps} of {settings['num_steps']}, batch {settings['batch_size']} of {data}"
        rows = [
            ("ok", str(self.ok)),
            ("model", f"{settings['model']}, {settings['num_parameters']:,} trained parameters"),
            ("objective", settings["objective"]),
            ("steps", f"{steps}, {settings['seconds']:.1f} s"),
        ]
        rows += [(name, _trend(values)) for name, values in self.metrics.items()]
        if self.best_step is not None:
            lowest = f"{np.nanmin(self.validation['loss']):.4g} at step {self.best_step}"
            rows.append(("validation", f"lowest {lowest}{', stopped early' if self.stopped_early else ''}"))
        return rows + [("problem", str(problem)) for problem in self.problems]


def _trend(values: np.ndarray) -> str:
    """First and last tenth, each as mean and standard deviation over the steps."""
    if len(values) == 0:
        return "none recorded"
    tenth = max(1, len(values) // 10)
    first, last = values[:tenth], values[-tenth:]
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{np.mean(first):.4g} -> {np.mean(last):.4g} (mean of the first and the last {tenth} steps)"
