"""The outcome of simulation-based calibration."""

import dataclasses
import html

import numpy as np
import xarray as xr
from jaxtyping import Int

from ebm_ppl.errors import Problem

_SHOWN = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Outcome of `simulation_based_calibration`: ranks, PIT values and a verdict with calibrated p-values.

    Args:
        datatree: PIT values in [0, 1] by site in the group `prior_sbc`, the simulations along `draw`: as it is for
            `az.plot_ecdf_pit(result.datatree)`.
        table: per quantity: `p_value` of uniformity, `p_value_adjusted` (Holm over all quantities), `ecdf_difference`
            (largest difference from the diagonal), `mean_pit` (.5 when calibrated; below it draws are too large),
            `sd_pit` (.289; larger when draws are too narrow), `median_ess`, `median_r_hat`. A quantity that is
            constant, as the corner of a Cholesky factor is, has NaN for its p-values and is not judged.
        ranks: number of draws below the true value, `(simulation, quantity)`.
        num_draws: nearly independent draws behind each rank: ranks run from 0 to `num_draws`.
        thinning: one of how many transitions was kept.
        level: family-wise error: how often a right model is rejected by any of its quantities.
        problems: reasons why ranks could not be judged; any of them makes `ok` False.
        diverging: share of divergent transitions; NaN where the kernel does not report them.
    """

    datatree: xr.DataTree
    table: xr.Dataset
    ranks: Int[np.ndarray, "simulation quantity"]
    num_draws: int
    thinning: int
    level: float
    problems: tuple[Problem, ...] = ()
    diverging: float = float("nan")

    @property
    def p_value(self) -> float:
        """Smallest p-value, adjusted for the number of quantities."""
        return float(self.table["p_value_adjusted"].min())

    @property
    def ok(self) -> bool:
        """Whether the model passes: nothing prevented the test, and it does not reject."""
        return not self.problems and self.p_value >= self.level

    def __repr__(self) -> str:
        """Size and verdict; the quantities that are rejected; problems."""
        number, quantities = self.ranks.shape
        head = (
            f"simulation_based_calibration: {number} simulations x {quantities} quantities, ranks among "
            f"{self.num_draws} draws (1 of {self.thinning} kept), p = {self.p_value:.3g} (level {self.level:g}): "
            f"{'ok' if self.ok else 'NOT ok'}"
        )
        table = self.table.sortby("p_value_adjusted")
        rejected = table.isel(quantity=np.flatnonzero(table["p_value_adjusted"].values < self.level))
        rows = [
            f"  {label}: p = {p:.3g}, mean PIT {mean:.3f} (.5), sd {sd:.3f} (.289)"
            for label, p, mean, sd in zip(
                rejected["quantity"].values,
                rejected["p_value_adjusted"].values,
                rejected["mean_pit"].values,
                rejected["sd_pit"].values,
                strict=True,
            )
        ]
        more = [f"  ... and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
        return "\n".join([head, *rows[:_SHOWN], *more, *(f"  {problem}" for problem in self.problems)])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"
