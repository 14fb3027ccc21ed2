"""The verdict on a kernel, for a person and for a script."""

import dataclasses
import html

import numpy as np
import pandas as pd

from ebm_ppl.diagnostics._attributes import to_json
from ebm_ppl.diagnostics._family import Finding
from ebm_ppl.errors import Problem


@dataclasses.dataclass(frozen=True, eq=False)
class BalanceReport:
    """What `detailed_balance` found. `ok` is a plain bool: `assert detailed_balance(...).ok` guards a kernel.

    Args:
        verdict: `"reversible"`: the target is invariant and nothing speaks against detailed balance;
            `"invariant, not reversible"`: the target is invariant, pairs are not exchangeable;
            `"invariant"`: the same for a kernel that claims no reversibility, and none was disproved;
            `"unadjusted"`: no Metropolis step, judged by its bias;
            `"broken"`: not a kernel for this target; `problems` says why.
        problems: every reason not to trust the kernel; each has `code`, `advice`, `value`.
        findings: one per test, in the order of the battery.
        notes: what a reader should know though it is no fault of the kernel.
        kernel: its class and parameters, as text.
        level: family-wise error: the probability that a right kernel fails any of the tests.
        num_pairs: pairs (state, next state) of the last round.
        num_rounds: rounds of sequential control that were needed.

    Example:
        >>> import ebm_ppl as ebm
        >>> problem = ebm.Problem("STALE_CACHE", "the gradient belongs to another point.")
        >>> report = ebm.diagnostics.BalanceReport("broken", (problem,), (), kernel="MyKernel(step_size=0.1)")
        >>> report.ok, report.codes
        (False, ('STALE_CACHE',))
    """

    verdict: str
    problems: tuple[Problem, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    kernel: str = ""
    level: float = 0.01
    num_pairs: int = 0
    num_rounds: int = 1

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the kernel."""
        return not self.problems

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the problems, each once, in order."""
        return tuple(dict.fromkeys(problem.code for problem in self.problems))

    @property
    def table(self) -> pd.DataFrame:
        """One row per test: `part`, `statistic`, `p_value`, `standard_error`, `verdict`, `detail`."""
        rows = pd.DataFrame([dataclasses.asdict(finding) for finding in self.findings]).set_index("test")
        return rows.astype({"p_value": float, "standard_error": float})

    def __getitem__(self, test: str) -> Finding:
        """The finding of one test, by name."""
        for finding in self.findings:
            if finding.test == test:
                return finding
        raise KeyError(f"there is no test {test!r}; there are {[finding.test for finding in self.findings]}.")

    def __repr__(self) -> str:
        """One line per test, problems and notes, then the verdict."""
        rows = [f"  {_line(finding)}" for finding in self.findings]
        rows += [f"  {problem}" for problem in self.problems] + [f"  note: {note}" for note in self.notes]
        return "\n".join([self._title(), *rows, f"  verdict: {self._verdict()}"])

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(str(problem))}</li>" for problem in self.problems)
        items += "".join(f"<li>note: {html.escape(note)}</li>" for note in self.notes)
        table = self.table.to_html(float_format=lambda value: f"{value:.4g}", border=0, na_rep="")
        return (
            f"<div><p>{html.escape(self._title())}</p>{table}<ul>{items}</ul>"
            f"<p><b>verdict: {html.escape(self._verdict())}</b></p></div>"
        )

    def to_json(self) -> str:
        """The report as JSON text; non-finite numbers become strings."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["problems"] = [dataclasses.asdict(problem) for problem in self.problems]
        fields["findings"] = [dataclasses.asdict(finding) for finding in self.findings]
        return to_json({"ok": self.ok, **fields})

    def _title(self) -> str:
        rounds = f", {self.num_rounds} rounds" if self.num_rounds > 1 else ""
        return f"Detailed balance of {self.kernel}: {self.num_pairs} pairs{rounds}, level {self.level:g}"

    def _verdict(self) -> str:
        return f"{self.verdict}, {'ok' if self.ok else 'NOT ok (' + ', '.join(self.codes) + ')'}"


def _line(finding: Finding) -> str:
    parts = [f"{finding.test} ({finding.part}): {finding.verdict}"]
    if not np.isnan(finding.statistic):
        error = "" if finding.standard_error is None else f" +- {finding.standard_error:.2g}"
        parts.append(f"{finding.statistic:.4g}{error}")
    if finding.p_value is not None:
        parts.append(f"p = {finding.p_value:.3g}")
    if finding.detail and not (finding.verdict == "FAIL" and finding.part in ("structure", "ratio")):
        parts.append(finding.detail)
    return ", ".join(parts)
