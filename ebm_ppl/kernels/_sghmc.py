"""Stochastic gradient Hamiltonian Monte Carlo."""

from typing import Any, ClassVar, NamedTuple

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count, check_positive
from ebm_ppl._types import LogDensityFn
from ebm_ppl.kernels._base import AbstractKernel, as_hyperparameter
from ebm_ppl.kernels._parts import minibatch_density
from ebm_ppl.kernels._unadjusted import UnadjustedInfo, take_unless_nonfinite, unadjusted_stats


class SGHMCState(NamedTuple):
    """A point and the estimate of its log density; once `diverged`, the chain stays at its last finite point."""

    position: Any
    logdensity: Array
    logdensity_grad: tuple[()]  # none is kept
    diverged: Array


class SGHMC(AbstractKernel):
    r"""Stochastic gradient Hamiltonian Monte Carlo (`blackjax.sghmc`): a damped trajectory, gradients of a few data.

        v ~ N(0, I);   then num_integration_steps times:
        x <- x + step_size * v,   v <- (1 - friction * step_size) v - step_size * G + sqrt(2 * friction * step_size) xi

    G is the gradient where x was before it moved, by the batch of this transition. Unadjusted. For energies that are
    sums over many data (`energies.DataSumEnergy`). The scheme (BlackJAX's) is explicit: in a direction of precision p
    it is stable for step_size < friction / p only; and the noise of G widens the law as in `SGLD`. The statistic `lp`
    is the estimate of -E by a fresh batch.

    Args:
        step_size: time step > 0 (time, not diffusion). There is no acceptance rate to tune it by.
        friction: alpha > 0, per unit of time.
        num_integration_steps: steps per transition, at least 1; each evaluates one gradient.
        batch_size: data per transition, drawn with replacement, at least 1.

    Raises:
        ValueError: if a number is not positive and finite, or a count not a positive integer.
        TypeError: when sampling, if the energy is not a `DataSumEnergy`.

    Example:
        >>> import ebm_ppl as ebm
        >>> kernel = ebm.kernels.SGHMC(step_size=0.01, friction=2.0, batch_size=10)
        >>> kernel.adjusted, kernel.num_integration_steps
        (False, 10)

    References:
        Chen, Fox, Guestrin (2014). Stochastic gradient Hamiltonian Monte Carlo. ICML, PMLR 32(2), 1683-1691.
        arXiv:1402.4102
        Ma, Chen, Fox (2015). A complete recipe for stochastic gradient MCMC. Advances in Neural Information
        Processing Systems 28. arXiv:1506.04696
    """

    step_size: float | Float[Array, "..."] = 1e-2
    friction: Float[Array, ""] = eqx.field(converter=as_hyperparameter("friction"), default=1.0)
    num_integration_steps: int = eqx.field(static=True, default=10)
    batch_size: int = eqx.field(static=True, default=32)
    target_acceptance_rate: ClassVar[float | None] = None
    adjusted: ClassVar[bool] = False
    reversible: ClassVar[bool] = False

    def __check_init__(self) -> None:
        """Only a positive step moves, only data give a gradient."""
        check_positive("step_size", self.step_size)
        check_count("num_integration_steps", self.num_integration_steps)
        check_count("batch_size", self.batch_size)

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The transition for this log density, which must know its data; `init` needs a key, for the first batch."""

        def density(key: Array) -> LogDensityFn:
            return minibatch_density(logdensity_fn, key, self.batch_size)

        def init(position: Any, rng_key: Any) -> SGHMCState:
            return SGHMCState(position, density(rng_key)(position), (), jnp.zeros((), bool))

        def step(rng_key: Array, state: Any) -> Any:
            move_key, batch_key, value_key = jax.random.split(rng_key, 3)
            friction: Any = self.friction.astype(state.logdensity.dtype)
            step_size: Any = self.step_size
            kernel: Any = blackjax.sghmc.build_kernel(friction)
            gradient = jax.grad(density(batch_key))
            moved = kernel(
                move_key, state.position, lambda x, _: gradient(x), None, step_size, self.num_integration_steps
            )
            return take_unless_nonfinite(state, (moved, density(value_key)(moved), ()))

        return blackjax.base.SamplingAlgorithm(init, step)

    def stats(self, state: SGHMCState, info: UnadjustedInfo) -> dict[str, Array]:
        """`diverging nonfinite_proposal n_steps`; `n_steps` counts gradients of minibatches."""
        return unadjusted_stats(state, info, self.num_integration_steps)
