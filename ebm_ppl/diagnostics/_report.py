"""The verdict on a set of draws, for a person and for a script."""

import dataclasses
import html

import numpy as np
import pandas as pd

from ebm_ppl.diagnostics._attributes import to_json
from ebm_ppl.errors import Problem

_SHOWN_CHAINS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What `diagnose` found. `ok` is a plain bool: `assert ebm.diagnose(draws).ok` guards a pipeline.

    Args:
        problems: every reason not to trust the draws, gravest first; each has `code`, `advice`, `chain`, `value`.
        table: one row per parameter with the columns of `az.summary`: `mean`, `sd`, `eti89_lb`, `eti89_ub`,
            `ess_bulk`, `ess_tail`, `r_hat`, `mcse_mean`, `mcse_sd`, not rounded; frozen chains count 0 draws.
        notes: what a reader should know though it is no fault of the run (an unadjusted kernel, for instance).
        group: the group judged.
        num_chains: number of chains.
        num_draws: draws per chain.

    Example:
        >>> import numpy as np, ebm_ppl as ebm
        >>> report = ebm.diagnose(np.ones((4, 1000)))
        >>> report.ok, report.codes
        (False, ('STUCK_CHAIN',))
    """

    problems: tuple[Problem, ...]
    table: pd.DataFrame
    notes: tuple[str, ...] = ()
    group: str = "posterior"
    num_chains: int = 0
    num_draws: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the draws."""
        return not self.problems

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the problems, each once, in order."""
        return tuple(dict.fromkeys(problem.code for problem in self.problems))

    def __repr__(self) -> str:
        """One line per finding, then the worst of the table, then the verdict."""
        rows = [f"  {head}: {advice}" for head, advice in self._lines()]
        return "\n".join([self._title(), *rows, f"  worst: {self._worst()}", f"  verdict: {self._verdict()}"])

    def _repr_html_(self) -> str:
        items = "".join(f"<li><b>{html.escape(head)}</b>: {html.escape(advice)}</li>" for head, advice in self._lines())
        table = self.table.to_html(max_rows=20, float_format=lambda value: f"{value:.4g}", border=0)
        return (
            f"<div><p>{html.escape(self._title())}</p><ul>{items}</ul>"
            f"<p><b>verdict: {html.escape(self._verdict())}</b></p>{table}</div>"
        )

    def to_json(self) -> str:
        """The report as JSON text, fit for the attributes of a `DataTree`; non-finite numbers become strings."""
        table = {str(label): row.to_dict() for label, row in self.table.iterrows()}
        content = {
            "ok": self.ok,
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
            "notes": self.notes,
            "group": self.group,
            "num_chains": self.num_chains,
            "num_draws": self.num_draws,
            "table": table,
        }
        return to_json(content)

    def _title(self) -> str:
        size = f"{self.num_chains} chain{'s' * (self.num_chains != 1)} x {self.num_draws} draws"
        return f"Report on {self.group}: {size}, {len(self.table)} parameter{'s' * (len(self.table) != 1)}"

    def _verdict(self) -> str:
        return "ok, no problems found" if self.ok else f"NOT ok ({', '.join(self.codes)})"

    def _worst(self) -> str:
        shown = []
        for column, largest, digits in (("r_hat", True, ".3f"), ("ess_bulk", False, ".0f"), ("ess_tail", False, ".0f")):
            values = self.table[column].dropna()
            if len(values):
                label = values.idxmax() if largest else values.idxmin()
                shown.append(f"{column} {values[label]:{digits}} ({label})")
        return ", ".join(shown) if shown else "nothing could be computed"

    def _lines(self) -> list[tuple[str, str]]:
        """Problems of one code on one line, with the chains concerned."""
        grouped: dict[str, list[Problem]] = {}
        for problem in self.problems:
            grouped.setdefault(problem.code, []).append(problem)
        lines = []
        for code, group in grouped.items():
            chains = [problem.chain for problem in group if problem.chain is not None]
            where = f" ({_chains(chains, self.num_chains)})" if chains else _value(group[0].value)
            lines.append((code + where, group[0].advice))
        return lines + [("note", note) for note in self.notes]


def _chains(chains: list[int], num_chains: int) -> str:
    shown = ", ".join(str(chain) for chain in chains[:_SHOWN_CHAINS])
    more = ", ..." if len(chains) > _SHOWN_CHAINS else ""
    return f"{len(chains)} of {num_chains} chains: {shown}{more}" if len(chains) > 1 else f"chain {shown}"


def _value(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f" ({value:.4g})"
