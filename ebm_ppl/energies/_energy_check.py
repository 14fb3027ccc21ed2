"""What `check_energy` found."""

import dataclasses
import html
from typing import Literal

from ebm_ppl.errors import Problem

type Outcome = Literal["passed", "FAILED", "not run"]


@dataclasses.dataclass(frozen=True)
class CheckedItem:
    """One pre-flight check.

    Attributes:
        name: what was checked.
        outcome: `"passed"`, `"FAILED"` or `"not run"` (an earlier failure made it meaningless).
        sentence: what was found.
        problem: the named problem where it failed.
    """

    name: str
    outcome: Outcome
    sentence: str
    problem: Problem | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class EnergyCheck:
    """The verdict of `check_energy`: the checks in order, each with its own sentence.

    Attributes:
        energy: how the energy is called.
        checks: the checks in the order they ran.
    """

    energy: str
    checks: tuple[CheckedItem, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems of the checks that failed."""
        return tuple(item.problem for item in self.checks if item.problem is not None)

    @property
    def ok(self) -> bool:
        """Every check passed."""
        return all(item.outcome == "passed" for item in self.checks)

    def __repr__(self) -> str:
        lines = [f"EnergyCheck of {self._summary}"]
        lines += [f"  {item.outcome:8}{item.name:16}{item.sentence}" for item in self.checks]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{'✓' if item.outcome == 'passed' else '✗' if item.problem else '–'} {item.outcome}</td>"
            f"<td>{html.escape(item.name)}</td><td style='text-align:left'>{html.escape(item.sentence)}</td></tr>"
            for item in self.checks
        )
        return f"<table><caption>EnergyCheck of {html.escape(self._summary)}</caption>{rows}</table>"

    @property
    def _summary(self) -> str:
        passed = sum(item.outcome == "passed" for item in self.checks)
        return f"{self.energy}: {passed} of {len(self.checks)} checks passed"
