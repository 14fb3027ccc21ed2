"""The unadjusted Langevin algorithm."""

from typing import Any, ClassVar

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc.diffusions import overdamped_langevin
from jaxtyping import Array, Float

from ebm_ppl._checks import check_positive
from ebm_ppl._types import LogDensityFn
from ebm_ppl.energies._parameters import as_parameter, concrete
from ebm_ppl.kernels._base import AbstractKernel
from ebm_ppl.kernels._unadjusted import UnadjustedInfo, UnadjustedState, take_unless_nonfinite, unadjusted_stats


def _as_curvature(value: Any) -> Array:
    curvature = as_parameter("largest_curvature", value, 0)
    host = concrete(curvature)
    if host is not None and host < 0:
        raise ValueError(f"`largest_curvature` must not be negative; got {value!r}.")
    return curvature


class ULA(AbstractKernel):
    r"""Unadjusted Langevin algorithm: every Langevin proposal is taken, so the law is biased by the step size.

        x' = x - step_size * grad E(x) + sqrt(2 * step_size) * xi,   xi ~ N(0, I)

    On a Gaussian of precision p the stationary variance is 1 / (p (1 - h p / 2)) instead of 1 / p; it exists for
    h < 2 / p only. Where the chain leaves the numbers (an energy or gradient that is NaN or infinite) it is kept at
    its last finite point, `diverging` from then on: lower `step_size` below 2 / L, L the largest curvature.

    Args:
        step_size: h > 0, BlackJAX's convention as above. A text's epsilon (x' = x - epsilon^2/2 grad E + epsilon xi)
            is h = epsilon^2/2; one with x' = x - (epsilon/2) grad E + sqrt(epsilon) xi has h = epsilon/2.
            There is no acceptance rate to tune it by: warm-up leaves it alone, and `sampling.ula_within_bias` chooses
            it by a rule.
        largest_curvature: L, for `stated_bias` only: what the rule went by; 0: not known.

    Raises:
        ValueError: if `step_size` is not positive and finite, or `largest_curvature` is negative or not finite.

    Example:
        >>> import jax, ebm_ppl as ebm
        >>> kernel = ebm.ULA(step_size=0.5)
        >>> algorithm = kernel.build(lambda x: -0.5 * x**2)
        >>> state, info = algorithm.step(jax.random.key(0), algorithm.init(jax.numpy.array(1.0)))
        >>> bool(kernel.stats(state, info)["diverging"])
        False

    References:
        Parisi (1981). Correlation functions and computer simulations. Nuclear Physics B 180(3), 378-384.
        doi:10.1016/0550-3213(81)90056-0
        Durmus, Moulines (2017). Nonasymptotic convergence analysis for the unadjusted Langevin algorithm. Annals
        of Applied Probability 27(3), 1551-1587. doi:10.1214/16-AAP1238
    """

    step_size: float | Float[Array, "..."] = 0.01
    largest_curvature: Float[Array, ""] = eqx.field(converter=_as_curvature, default=0.0)
    target_acceptance_rate: ClassVar[float | None] = None
    adjusted: ClassVar[bool] = False
    reversible: ClassVar[bool] = False

    def __check_init__(self) -> None:
        """Only a positive step moves."""
        check_positive("step_size", self.step_size)

    @property
    def stated_bias(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The excess h L / (2 - h L) of the variance in the direction of curvature L; None where L is not known."""
        product = float(jnp.mean(jnp.asarray(self.step_size))) * float(self.largest_curvature)
        if product == 0:
            return None
        return {
            "largest_curvature": float(self.largest_curvature),
            "relative_variance": product / (2 - product) if product < 2 else float("inf"),
            "holds": "exactly for a Gaussian, where the curvature is largest; less in all other directions",
        }

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The unadjusted Langevin transition for this log density."""
        propose: Any = overdamped_langevin(jax.value_and_grad(logdensity_fn))

        def init(position: Any, rng_key: Array | None = None) -> UnadjustedState:
            return UnadjustedState(*blackjax.mala.init(position, logdensity_fn), diverged=jnp.zeros((), bool))

        def step(rng_key: Array, state: Any) -> Any:
            return take_unless_nonfinite(state, tuple(propose(rng_key, state[:3], self.step_size)))

        return blackjax.base.SamplingAlgorithm(init, step)

    def stats(self, state: UnadjustedState, info: UnadjustedInfo) -> dict[str, Array]:
        """`diverging nonfinite_proposal n_steps`; no `acceptance_rate`, because nothing is ever rejected."""
        return unadjusted_stats(state, info)
