"""Reversibility: a pair and the same pair the other way round are equally likely."""

import numpy as np
from jaxtyping import Float

from ebm_ppl.diagnostics._family import Finding, not_applicable
from ebm_ppl.diagnostics._randomisation import sign_flip_p_value


def wedges(
    before: Float[np.ndarray, "n feature"], after: Float[np.ndarray, "n feature"]
) -> Float[np.ndarray, "n statistic"]:
    """f_i(x) f_j(y) - f_j(x) f_i(y), i < j: antisymmetric, and 0 where nothing moved."""
    rows, columns = np.triu_indices(before.shape[1], 1)
    return before[:, rows] * after[:, columns] - before[:, columns] * after[:, rows]


def exchangeability_test(
    before: Float[np.ndarray, "n feature"],
    after: Float[np.ndarray, "n feature"],
    rng: np.random.Generator,
) -> tuple[Finding, float]:
    """(x, y) and (y, x) have one law: antisymmetric statistics, signs flipped at random; exact for any number.

    Args:
        before: centred features at x, those of momenta and other auxiliary variables included.
        after: the same at y.
        rng: of the flips.

    Returns:
        The finding, and a lower bound of the entropy production per step in nats: log(1 + 2 m^2 / var) of the largest
        statistic, m its mean less four standard errors (Hasegawa, Van Vu 2019, doi:10.1103/PhysRevLett.123.110602).
    """
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        finding = Finding("exchangeability", "reversibility", np.inf, 0.0, detail="a statistic is not finite")
        return finding, np.nan
    statistics = wedges(before, after)
    moved = (statistics != 0).any(axis=1)
    if not moved.any():
        return not_applicable("exchangeability", "reversibility", "nothing moved"), 0.0
    z, p_value = sign_flip_p_value(statistics[moved], rng)
    mean, deviation = statistics.mean(axis=0), statistics.std(axis=0)
    sure = np.maximum(np.abs(mean) - 4 * deviation / np.sqrt(len(statistics)), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        production = np.nanmax(np.where(deviation > 0, np.log1p(2 * (sure / deviation) ** 2), 0.0))
    detail = f"largest of {len(z)} antisymmetric statistics"
    return Finding("exchangeability", "reversibility", float(z.max()), p_value, detail=detail), float(production)
