"""Invariance through the reported acceptance: accepted flow forward equals accepted flow backward, on average."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ebm_ppl.diagnostics._family import Finding, mean_test, not_applicable


def accepted_flux_test(
    here: Float[np.ndarray, "n feature"],
    there: Float[np.ndarray, "n feature"] | None,
    rate: Float[np.ndarray, " n"] | None,
    log_ratio: Float[np.ndarray, " n"] | None,
    names: Sequence[str],
) -> Finding:
    r"""E[a(x, y) A(x, y)] = 0 for antisymmetric A, x from the target, y proposed, a the reported acceptance.

    A runs over f(y) - f(x), sign(W) and tanh(W), W the log Metropolis ratio. Everything is bounded: Creutz's
    identity (1988), E exp(W) = 1, has tails so heavy that its z-test rejects right kernels
    (doi:10.1103/PhysRevD.38.1228).

    Args:
        here: features at x.
        there: features at the proposal y; None: the kernel does not show it.
        rate: reported acceptance; None: the kernel does not reject.
        log_ratio: W, antisymmetric under exchange of x and y.
        names: of the features.
    """
    if there is None or rate is None:
        return not_applicable("accepted_flux", "invariance", "the kernel does not show its proposals (`info.proposal`)")
    differences = there - here
    if log_ratio is not None:
        log_ratio = np.where(np.isnan(log_ratio), -np.inf, log_ratio)
        differences = np.concatenate([differences, np.sign(log_ratio)[:, None], np.tanh(log_ratio)[:, None]], axis=1)
        names = [*names, "sign of log ratio", "tanh of log ratio"]
    columns = np.where(rate[:, None] == 0, 0.0, rate[:, None] * differences)
    return mean_test("accepted_flux", "invariance", columns, names)
