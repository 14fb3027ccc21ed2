"""One comparison of a number that this machine computed with the number that it should be."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

ALPHA = 1e-5  # chance that a correct package on a correct machine fails, over all rows together
RESOLUTION = 0.1  # a standard error larger than this share of max(1, |expected|) shows nothing


@dataclasses.dataclass(frozen=True)
class Row:
    """A quantity, what it should be, what it is, and the standard error of the difference.

    Args:
        what: folder and name, e.g. `"objectives.DenoisingScoreMatching"`.
        quantity: which number, e.g. `"loss"`.
        expected: from a closed form, an enumeration or quadrature; NaN where the check could not be made.
        got: what the package gives here.
        standard_error: of `got`; where nothing is random, what rounding may do.
        note: why there is no number.
    """

    what: str
    quantity: str
    expected: float
    got: float
    standard_error: float
    note: str = ""

    @property
    def error(self) -> float:
        """`got - expected` in standard errors; NaN where that means nothing."""
        return (self.got - self.expected) / self.standard_error if self.standard_error > 0 else math.nan

    def ok(self, limit: float) -> bool:
        """Whether the error is within `limit`, and small enough to have been noticed if it were not."""
        sharp = self.standard_error <= RESOLUTION * max(1.0, abs(self.expected))
        return not self.note and sharp and abs(self.error) <= limit

    def as_dict(self, limit: float) -> dict[str, Any]:
        """For JSON, which has no NaN: None instead."""
        fields = dataclasses.asdict(self) | {"error": self.error, "ok": self.ok(limit)}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }


def failure(what: str, note: str) -> Row:
    """A row for a check that could not be made."""
    return Row(what, "", math.nan, math.nan, math.nan, note)


def critical_value(num_comparisons: int) -> float:
    """Two-sided Bonferroni quantile of the normal law: the limit of every row's error."""
    return float(stats.norm.isf(ALPHA / (2 * max(1, num_comparisons))))


def mean_rows(what: str, quantities: Sequence[str], expected: Iterable[float], draws: Any) -> list[Row]:
    """Means over the leading axis of independent draws `(n, quantity)`."""
    draws = np.asarray(draws, float)
    errors = draws.std(0, ddof=1) / math.sqrt(len(draws))
    columns = zip(quantities, expected, draws.mean(0), errors, strict=True)
    return [Row(what, name, float(truth), float(mean), float(error)) for name, truth, mean, error in columns]


HEADER = f"{'what':<43} {'quantity':<30} {'expected':>12} {'got':>12} {'error/se':>9}  ok"


def format_row(row: Row, limit: float) -> str:
    """One line of the table."""
    if row.note:
        return f"{row.what:<43} {row.note}  FAILED"
    verdict = "yes" if row.ok(limit) else "FAILED"
    numbers = f"{row.expected:>12.6g} {row.got:>12.6g} {row.error:>9.2f}"
    return f"{row.what:<43} {row.quantity:<30} {numbers}  {verdict}"
