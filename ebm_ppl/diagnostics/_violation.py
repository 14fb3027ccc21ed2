"""How far from detailed balance, as numbers: moves that should have been rejected, entropy produced per step."""

import numpy as np
from jaxtyping import Bool, Float

from ebm_ppl.diagnostics._family import Finding, not_applicable

ROUNDING = 1e-3  # of a reported rate in single precision


def violation(
    log_ratio: Float[np.ndarray, " n"] | None,
    rate: Float[np.ndarray, " n"] | None,
    accepted: Bool[np.ndarray, " n"] | None = None,
) -> tuple[Finding, Finding]:
    r"""The share of moves a Metropolis step would have rejected, and the entropy production, with standard errors.

    For x from the target and y proposed, with W the log Metropolis ratio, m = min(1, exp(W)) and a the kernel's own
    acceptance (1 where it takes every proposal):

        violation = E[(a - m)_+] / E[a],        entropy production = E[a (log a - log m)]; without rejections E[-W]

    Both are 0 for a kernel in detailed balance. Crooks (1999), doi:10.1103/PhysRevE.60.2721.

    Args:
        log_ratio: W; None: unknown.
        rate: a as reported; None: nothing is rejected.
        accepted: the decisions, where they contradict `rate`.
    """
    if log_ratio is None:
        why = "the kernel's proposal density is unknown"
        return not_applicable("violation", "violation", why), not_applicable("entropy_production", "violation", why)
    log_ratio = np.where(np.isnan(log_ratio), -np.inf, log_ratio)
    metropolis = np.exp(np.minimum(log_ratio, 0))
    if accepted is not None:
        taken = accepted.astype(np.float64)
    elif rate is None:
        taken = np.ones_like(metropolis)
    else:
        taken = np.where(np.abs(rate - metropolis) < ROUNDING, metropolis, rate)
    fraction, error = _ratio_of_means(np.maximum(taken - metropolis, 0), taken)
    detail = "share of moves that a Metropolis step would have rejected"
    first = Finding("violation", "violation", fraction, standard_error=error, verdict="measured", detail=detail)
    if rate is None:
        production = -log_ratio
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            production = np.where(taken > 0, taken * (np.log(taken) - np.minimum(log_ratio, 0)), 0.0)
        production = np.where(taken == metropolis, 0.0, production)
    with np.errstate(invalid="ignore"):
        mean, error = production.mean(), production.std() / np.sqrt(len(production))
    detail = "nats per step, of the forward flow over the backward flow"
    second = Finding("entropy_production", "violation", float(mean), None, float(error), "measured", detail)
    return first, second


def entropy_bound(bound: float) -> Finding:
    """Where no density of the transitions is known: what the antisymmetric statistics prove at least."""
    detail = "nats per step, at least (from the antisymmetric statistics)"
    return Finding("entropy_production", "violation", bound, None, None, "measured", detail)


def _ratio_of_means(numerator: Float[np.ndarray, " n"], denominator: Float[np.ndarray, " n"]) -> tuple[float, float]:
    centre = denominator.mean()
    if centre == 0:
        return np.nan, np.nan
    ratio = numerator.mean() / centre
    return float(ratio), float((numerator - ratio * denominator).std() / (centre * np.sqrt(len(numerator))))
