"""What effective draws cost, and whether the energy still drifts."""

import math
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy import signal

from ebm_ppl.diagnostics._arviz import mcse_mean
from ebm_ppl.diagnostics._attributes import settings_from


def autocorrelation_time(num_draws: int, sizes: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    r"""Draws per effective draw: \(1 + 2 \sum_t \rho_t\); infinite where nothing moves."""
    with np.errstate(divide="ignore"):
        return num_draws / sizes


def costs(
    sizes: Float[np.ndarray, " parameter"], statistics: xr.Dataset, attributes: dict[Any, Any]
) -> dict[str, tuple[str, Float[np.ndarray, " parameter"]]]:
    """Effective draws per gradient and per second, where the work and the time are on record."""
    found = {}
    if "n_steps" in statistics:
        work = float(statistics["n_steps"].sum())
        found["ess_per_gradient"] = ("parameter", sizes / work if work else np.full_like(sizes, np.nan))
    seconds = settings_from(attributes).get("seconds", attributes.get("sampling_time"))
    if seconds is not None and float(seconds) > 0:
        found["ess_per_second"] = ("parameter", sizes / float(seconds))
    return found


def energy_drift(log_density: Float[np.ndarray, "chain draw"]) -> Float[np.ndarray, " chain"]:
    """Change of the mean energy from the first to the second half of each chain, in its standard errors.

    Standard normal for a chain in equilibrium. A trend inside a half would pass for autocorrelation and hide itself
    in the standard error: lines are taken out of the halves before that is estimated. NaN where it does not exist:
    fewer than 8 draws, non-finite values, a half in which the energy never changes.
    """
    half = log_density.shape[1] // 2
    return np.array([_drift(chain[:half], chain[-half:]) for chain in log_density])


def _drift(first: Float[np.ndarray, " draw"], second: Float[np.ndarray, " draw"]) -> float:
    halves = (first, second)
    if len(first) < 4 or not all(np.isfinite(half).all() and np.ptp(half) > 0 for half in halves):
        return np.nan
    error = math.hypot(*(mcse_mean(signal.detrend(half)[None]) for half in halves))
    return float((first.mean() - second.mean()) / error)
