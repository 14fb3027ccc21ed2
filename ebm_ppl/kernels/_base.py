"""The uniform face of a transition kernel."""

import abc
from typing import Any, ClassVar

import blackjax
import equinox as eqx
from jaxtyping import Array, Float

from ebm_ppl._types import LogDensityFn


class AbstractKernel(eqx.Module):
    """A transition kernel: hyperparameters as fields, the transition itself BlackJAX's.

    `build(logdensity_fn)` gives a `blackjax.SamplingAlgorithm(init, step)`; `stats(state, info)` gives the
    statistics of one transition under ArviZ names. Every kernel reports at least

    - `acceptance_rate` (absent where the kernel never rejects),
    - `diverging`: the transition left the region where the integrator can be trusted,
    - `nonfinite_proposal`: energy NaN or -inf, or gradient NaN or infinite, at the proposed point. An energy of
      +inf is a wall (density zero) and is not counted,
    - `n_steps`: gradients (or densities, for kernels without gradient) this transition evaluated.

    Attributes:
        step_size: the kernel's step size; each docstring says in which convention.
        target_acceptance_rate: what warm-up tunes `step_size` to; None: nothing to tune by.
        adjusted: whether the kernel leaves exp(-E) exactly invariant (it has a Metropolis step, or needs none).
    """

    step_size: eqx.AbstractVar[float | Float[Array, "..."]]
    target_acceptance_rate: eqx.AbstractClassVar[float | None]
    adjusted: ClassVar[bool] = True

    @abc.abstractmethod
    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The transition for this log density. `init(position, rng_key)`, `step(rng_key, state)`."""

    @abc.abstractmethod
    def stats(self, state: Any, info: Any) -> dict[str, Array]:
        """Statistics of one transition under ArviZ names; scalars."""
