"""What `diagnose` looks at, gathered once."""

import dataclasses
import functools

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from ebm_ppl.diagnostics._attributes import settings_from
from ebm_ppl.diagnostics._mixing import constants_allowed, pooled_statistics
from ebm_ppl.diagnostics._parameters import Parameter, chains_of, iterate_parameters


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """Draws and statistics of one group.

    Args:
        dataset: the draws, every variable with `chain` and `draw`.
        statistics: the sampler's statistics; may be empty.
    """

    dataset: xr.Dataset
    statistics: xr.Dataset

    @functools.cached_property
    def chains(self) -> Int[np.ndarray, " chain"]:
        """Chain numbers, as the coordinate gives them."""
        return chains_of(self.dataset)[0]

    @functools.cached_property
    def num_draws(self) -> int:
        """Draws of each chain."""
        return chains_of(self.dataset)[1]

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return len(self.chains)

    @functools.cached_property
    def parameters(self) -> list[Parameter]:
        """Every scalar of the draws."""
        return list(iterate_parameters(self.dataset, constants_allowed=constants_allowed(self.dataset)))

    @functools.cached_property
    def summaries(self) -> list[dict[str, float]]:
        """The row of `az.summary` of every parameter."""
        return [pooled_statistics(parameter) for parameter in self.parameters]

    @functools.cached_property
    def settings(self) -> dict[str, object]:
        """The sampler's settings, where the draws are ours."""
        return settings_from(self.dataset.attrs)

    def statistic(self, name: str) -> Float[np.ndarray, "chain draw"] | None:
        """One statistic as `(chain, draw)` in float64, or None where the sampler does not report it."""
        if name not in self.statistics or set(self.statistics[name].dims) != {"chain", "draw"}:
            return None
        return self.statistics[name].transpose("chain", "draw").values.astype(np.float64)

    @functools.cached_property
    def judged(self) -> list[tuple[Parameter, dict[str, float]]]:
        """Parameters whose convergence can be judged, with their rows: finite, and frozen in no chain."""
        rows = zip(self.parameters, self.summaries, strict=True)
        return [(parameter, row) for parameter, row in rows if parameter.judgeable and not parameter.stuck.any()]
