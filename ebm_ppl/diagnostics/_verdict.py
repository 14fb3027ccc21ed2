"""The outcome of one statistical test."""

import dataclasses

import xarray as xr

from ebm_ppl.errors import Problem


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """Outcome of a test of "these draws come from this energy", with a calibrated p-value.

    Args:
        test: name of the test.
        statistic: its statistic.
        p_value: probability of a statistic at least as extreme if the draws are right, over the whole family of
            statistics; 0 where a statistic is not finite.
        level: what `p_value` must not fall below.
        table: every statistic with its error and its own p-value.
        problems: reasons why the test could not judge the draws; any of them makes `ok` False.
    """

    test: str
    statistic: float
    p_value: float
    level: float
    table: xr.Dataset
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the draws pass: nothing prevented the test, and it does not reject."""
        return not self.problems and bool(self.p_value >= self.level)

    def __repr__(self) -> str:
        """Statistic, p-value and verdict on one line, problems below."""
        verdict = "ok" if self.ok else "NOT ok"
        head = f"{self.test}: statistic {self.statistic:.4g}, p = {self.p_value:.3g} (level {self.level:g}): {verdict}"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])
