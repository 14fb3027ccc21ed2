"""Invariance on the kernel's output: a draw from the target is one after a transition, too."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ebm_ppl.diagnostics._family import Finding, mean_test


def one_step_test(
    before: Float[np.ndarray, "n feature"], after: Float[np.ndarray, "n feature"], names: Sequence[str]
) -> Finding:
    """E[f(x_1) - f(x_0)] = 0 for x_0 from the target: paired, so that what does not move adds no noise.

    Needs no reversibility and nothing that the kernel reports. Geweke (2004), doi:10.1198/016214504000001132.
    """
    return mean_test("one_step", "invariance", after - before, names)
