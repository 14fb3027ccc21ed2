"""What the tests of a kernel have in common: one row each, families of statistics, and their error rates."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Finding:
    """One row of the report.

    Args:
        test: its name.
        part: `"structure"`, `"ratio"`, `"invariance"`, `"reversibility"` or `"violation"`.
        statistic: the test statistic, or the number measured.
        p_value: over all statistics of the test; None where it is deterministic or only measures.
        standard_error: Monte Carlo standard error of a measured number.
        verdict: `"pass"`, `"FAIL"`, `"measured"`, `"not applicable"`.
        detail: which statistic was largest, or why the test does not apply.
    """

    test: str
    part: str
    statistic: float = np.nan
    p_value: float | None = None
    standard_error: float | None = None
    verdict: str = "pass"
    detail: str = ""


def not_applicable(test: str, part: str, why: str) -> Finding:
    """A row that says why there is nothing to say."""
    return Finding(test, part, verdict="not applicable", detail=why)


def mean_test(test: str, part: str, columns: Float[np.ndarray, "n statistic"], names: Sequence[str]) -> Finding:
    """Every column has mean 0: Student's t for each, Bonferroni over them. A column of zeros is no statistic.

    A value that is not finite fails the test.
    """
    if not np.isfinite(columns).all():
        return Finding(test, part, np.inf, 0.0, detail="a statistic is not finite")
    used = (columns != 0).any(axis=0)
    if not used.any():
        return not_applicable(test, part, "nothing moved")
    columns, names = columns[:, used], [name for name, use in zip(names, used, strict=True) if use]
    count = len(columns)
    with np.errstate(divide="ignore"):
        z = np.abs(columns.mean(axis=0)) / (columns.std(axis=0, ddof=1) / np.sqrt(count))
    p_value = min(1.0, len(z) * float(2 * stats.t.sf(z.max(), count - 1)))
    return Finding(test, part, float(z.max()), p_value, detail=f"largest of {len(z)}: {names[int(z.argmax())]}")


def holm(p_values: Float[np.ndarray, " test"], level: float) -> Bool[np.ndarray, " test"]:
    """Which tests are rejected when the family-wise error is at most `level` (Holm's step-down rule)."""
    rejected = np.zeros(len(p_values), dtype=bool)
    for rank, index in enumerate(np.argsort(p_values)):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected
