"""Is the reported acceptance the frequency with which proposals are accepted?"""

import numpy as np
from jaxtyping import Bool, Float

from ebm_ppl.diagnostics._family import Finding, not_applicable
from ebm_ppl.diagnostics._randomisation import bernoulli_p_value


def acceptance_test(
    rate: Float[np.ndarray, " n"] | None, accepted: Bool[np.ndarray, " n"] | None, rng: np.random.Generator
) -> Finding:
    """The number accepted against its law given the reported rates: independent trials, simulated.

    What the ratio identity says of the reported rate says nothing of a kernel that does something else: one that
    takes every proposal, or leaves its rejections out.
    """
    if rate is None or accepted is None:
        why = "the kernel does not report both a rate and a decision for one proposal"
        return not_applicable("acceptance", "invariance", why)
    if not np.isfinite(rate).all() or (rate < 0).any() or (rate > 1 + 1e-6).any():
        return Finding("acceptance", "invariance", np.inf, 0.0, detail="a reported rate is not between 0 and 1")
    statistic, p_value = bernoulli_p_value(accepted.astype(np.float64), np.minimum(rate, 1.0), rng)
    detail = f"accepted {accepted.mean():.4g}, reported {rate.mean():.4g}"
    return Finding("acceptance", "invariance", statistic, p_value, detail=detail)
