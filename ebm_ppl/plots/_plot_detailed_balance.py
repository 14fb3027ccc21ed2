"""`plot_detailed_balance`: the battery of a kernel as a picture."""

from typing import Any

import numpy as np

from ebm_ppl.diagnostics import BalanceReport
from ebm_ppl.plots._arviz import PlotCollection
from ebm_ppl.plots._panels import BAD, GOOD, MUTED, Panels

SMALLEST = 1e-12  # p-values below are drawn there
COLORS = {"pass": GOOD, "FAIL": BAD}


def plot_detailed_balance(report: BalanceReport | Any, *, backend: str | None = None) -> PlotCollection:
    r"""Show what `detailed_balance` found: the p-value of every test, and what was measured.

    `tests`: one row per test; a dot at log10 of its p-value (those below 1e-12 at 1e-12) and the line of the
    family-wise level. Tests without a p-value say their verdict. `measured`: the numbers that are no test, such as
    the fraction of moves that a Metropolis step would have had to reject, with 2 standard errors.

    Args:
        report: what `ebm.diagnostics.detailed_balance` returned.
        backend: of arviz-plots.

    Returns:
        A `PlotCollection` with these panels (`measured` only where something was); artists `level`,
        `p_value NAME`, `verdict NAME`, `value NAME`, `error NAME`.

    Raises:
        TypeError: `report` is something else.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1))
        >>> report = ebm.diagnostics.detailed_balance(energy, ebm.ULA(0.5), key=jax.random.key(0), num_pairs=2000)
        >>> picture = ebm.plot_detailed_balance(report)
        >>> print(picture.get_viz("figure_title").get_text())
        ULA(step_size=0.5): unadjusted

    References:
        Gandy, Scott (2020). Unit testing for MCMC and other Monte Carlo methods. arXiv:2001.06465
    """
    if not isinstance(report, BalanceReport):
        raise TypeError(
            f"`report` must be a BalanceReport, what ebm.diagnostics.detailed_balance returns; got "
            f"{type(report).__name__}."
        )
    measured = [one for one in report.findings if one.p_value is None and np.isfinite(one.statistic)]
    measured = [one for one in measured if one.standard_error is not None or one.verdict == "measured"]
    tests = [one for one in report.findings if one not in measured]
    panels = Panels(["tests", "measured"] if measured else ["tests"], backend, columns=2, width=6.0)
    for row, one in enumerate(tests):
        color = COLORS.get(one.verdict, MUTED)
        if one.p_value is None:
            panels.draw("tests", f"verdict {one.test}", "text", 0.0, row, one.verdict, color=color)
        else:
            x = float(np.log10(max(one.p_value, SMALLEST)))
            panels.draw("tests", f"p_value {one.test}", "scatter", [x], [row], color=color, size=40)
    panels.draw("tests", "level", "vline", float(np.log10(report.level)), color=MUTED, linestyle="--")
    panels.rows("tests", [one.test for one in tests])
    panels.label("tests", "log10 of the p-value")
    for row, one in enumerate(measured):
        color = COLORS.get(one.verdict, MUTED)
        panels.draw("measured", f"value {one.test}", "scatter", [one.statistic], [row], color=color, size=40)
        if one.standard_error is not None:
            ends = [one.statistic - 2 * one.standard_error, one.statistic + 2 * one.standard_error]
            panels.draw("measured", f"error {one.test}", "line", ends, [row, row], color=color)
    if measured:
        panels.rows("measured", [one.test for one in measured])
        panels.label("measured", "value, with 2 standard errors")
    return panels.title(f"{report.kernel}: {report.verdict}")
