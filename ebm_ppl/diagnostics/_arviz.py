"""ArviZ, imported after NumPyro, and its array functions with plain floats as results.

`import arviz` leaves a lazy stand-in for `numpyro`; a later `import numpyro.distributions` would then execute the
package twice and break every model with a constrained site. A plain `import numpyro` first prevents it.
"""

from typing import Any

import numpyro  # noqa: F401

# isort: split
import arviz as az
import numpy as np
from arviz_stats.base.array import array_stats
from jaxtyping import Float, Int

__all__ = [
    "TAIL_PROBABILITY",
    "az",
    "bfmi",
    "ess_bulk",
    "ess_tail",
    "mcse_mean",
    "mcse_sd",
    "nested_r_hat",
    "rank_r_hat",
]

TAIL_PROBABILITY = 0.89  # ArviZ' default: the tails are the 11 % and the 89 % quantile
_FUNCTIONS: Any = array_stats

type Chains = Float[np.ndarray, "chain draw"]


def ess_bulk(draws: Chains) -> float:
    """Effective sample size of the rank-normalised draws."""
    return float(_FUNCTIONS.ess(draws, method="bulk"))


def ess_tail(draws: Chains) -> float:
    """Effective sample size of the lower and the upper quantile, the smaller one."""
    return float(_FUNCTIONS.ess(draws, method="tail", prob=TAIL_PROBABILITY))


def rank_r_hat(draws: Chains) -> float:
    """Rank-normalised split R-hat, the larger one of bulk and folded draws."""
    return float(_FUNCTIONS.rhat(draws, method="rank"))


def nested_r_hat(draws: Chains, superchains: Int[np.ndarray, " chain"]) -> float:
    """R-hat of superchains: chains that share a number started at one position; bulk or folded, the larger one."""
    return float(_FUNCTIONS.rhat_nested(draws, superchains, method="rank"))


def mcse_mean(draws: Chains) -> float:
    """Monte Carlo standard error of the mean."""
    return float(_FUNCTIONS.mcse(draws, method="mean"))


def mcse_sd(draws: Chains) -> float:
    """Monte Carlo standard error of the standard deviation."""
    return float(_FUNCTIONS.mcse(draws, method="sd"))


def bfmi(hamiltonian: Chains) -> Float[np.ndarray, " chain"]:
    """Estimated fraction of missing information of each chain."""
    return np.atleast_1d(_FUNCTIONS.bfmi(hamiltonian))
