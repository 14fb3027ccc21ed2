"""Microcanonical Langevin Monte Carlo, unadjusted."""

import math
from typing import Any, ClassVar, NamedTuple

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc.integrators import IntegratorState
from blackjax.util import generate_unit_vector
from jaxtyping import Array, Float

from ebm_ppl._checks import check_positive
from ebm_ppl._types import LogDensityFn
from ebm_ppl.kernels._base import AbstractKernel, as_hyperparameter, check_two_dimensions, is_nonfinite

GRADIENTS_PER_STEP = 2  # of McLachlan's integrator, BlackJAX's choice


class MCLMCInfo(NamedTuple):
    """What a human needs to know of one transition."""

    energy_change: Array
    nonfinite_proposal: Array


class MCLMC(AbstractKernel):
    r"""Microcanonical Langevin Monte Carlo, unadjusted: motion at unit speed, its direction turned by the gradient.

        dx = u dt,   du = -(I - u u') grad E(x) / (d - 1) dt + noise that forgets u over the length L,   |u| = 1

    A thin face over `blackjax.mclmc`. Every step is taken, so the law is biased by the step size; the bias has the size
    of `energy_change`, the error of the integrator per step, which would be 0 at step size 0. Rule of thumb: lower
    `step_size` until the mean of `energy_change**2` per dimension is below 5e-4. Few gradients per independent draw in
    many dimensions; use `AdjustedMCLMC` where the law must be exact.

    A step that leaves the numbers (energy or gradient NaN or infinite) is not taken: the particle stays and flies off
    in a fresh direction; `nonfinite_proposal` counts these.

    Args:
        step_size: epsilon > 0, length of one step in units of x (unit speed: time and length are the same). There is
            no acceptance rate to tune it by: warm-up leaves it alone.
        decoherence_length: the length over which the direction is forgotten, > 0, in units of sqrt(d), the radius of
            a standard normal law: BlackJAX's L is decoherence_length * sqrt(d).

    Raises:
        ValueError: if a parameter is not positive and finite, or the energy has only one dimension.

    Example:
        >>> import jax, ebm_ppl as ebm
        >>> kernel = ebm.MCLMC(step_size=0.3)
        >>> algorithm = kernel.build(lambda x: -0.5 * (x**2).sum())
        >>> start = algorithm.init(jax.numpy.ones(10), jax.random.key(0))     # the key draws the first direction
        >>> state, info = algorithm.step(jax.random.key(1), start)
        >>> bool(info.energy_change**2 / 10 < 5e-4)
        True

    References:
        Robnik, De Luca, Silverstein, Seljak (2023). Microcanonical Hamiltonian Monte Carlo. Journal of Machine
        Learning Research 24(311), 1-34. arXiv:2212.08549
        Robnik, Seljak (2024). Fluctuation without dissipation: microcanonical Langevin Monte Carlo. arXiv:2303.18221
    """

    step_size: float | Float[Array, "..."] = 0.1
    decoherence_length: Float[Array, ""] = eqx.field(converter=as_hyperparameter("decoherence_length"), default=1.0)
    target_acceptance_rate: ClassVar[float | None] = None
    adjusted: ClassVar[bool] = False
    reversible: ClassVar[bool] = False

    def __check_init__(self) -> None:
        """Only a positive step moves."""
        check_positive("step_size", self.step_size)

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The microcanonical transition for this log density; `init` needs a key, for the first direction."""
        kernel = blackjax.mclmc.build_kernel()

        def init(position: Any, rng_key: Any) -> IntegratorState:
            check_two_dimensions("MCLMC", position)
            return blackjax.mclmc.init(position, logdensity_fn, rng_key)

        def step(rng_key: Array, state: Any) -> tuple[IntegratorState, MCLMCInfo]:
            size = sum(leaf.size for leaf in jax.tree.leaves(state.position))
            length = self.decoherence_length.astype(state.logdensity.dtype) * math.sqrt(size)
            new_state, info = kernel(rng_key, state, logdensity_fn, 1.0, length, self.step_size)
            # BlackJAX looks at the energy only: a NaN gradient would be kept, and stop the chain for good.
            lost = is_nonfinite(new_state.logdensity, new_state.logdensity_grad)
            stayed = state._replace(momentum=generate_unit_vector(jax.random.fold_in(rng_key, 1), state.position))
            new_state = jax.tree.map(lambda old, new: jnp.where(lost, old, new), stayed, new_state)
            return new_state, MCLMCInfo(jnp.where(lost, 0, info.energy_change), lost | ~info.nonans)

        return blackjax.base.SamplingAlgorithm(init, step)

    def stats(self, state: IntegratorState, info: MCLMCInfo) -> dict[str, Array]:
        """`diverging energy_change nonfinite_proposal n_steps`; no `acceptance_rate`: no finite step is rejected."""
        return {
            "diverging": jnp.zeros_like(info.nonfinite_proposal),
            "energy_change": info.energy_change,
            "nonfinite_proposal": info.nonfinite_proposal,
            "n_steps": jnp.asarray(GRADIENTS_PER_STEP, jnp.int32),
        }
