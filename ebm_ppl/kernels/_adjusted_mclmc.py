"""Metropolis-adjusted microcanonical Hamiltonian Monte Carlo."""

from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc.adjusted_mclmc import adjusted_mclmc_proposal
from blackjax.mcmc.hmc import HMCState
from blackjax.mcmc.integrators import IntegratorState, isokinetic_mclachlan, with_isokinetic_maruyama
from blackjax.util import generate_unit_vector
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import LogDensityFn
from ebm_ppl.kernels._base import AbstractTunableKernel, check_two_dimensions, is_nonfinite, random_length
from ebm_ppl.kernels._mclmc import GRADIENTS_PER_STEP


class AdjustedMCLMC(AbstractTunableKernel):
    r"""Metropolis-adjusted microcanonical Hamiltonian Monte Carlo: a trajectory at unit speed, accepted or rejected.

        u uniform on the unit sphere;  n steps of length step_size along
        dx = u dt,   du = -(I - u u') grad E(x) / (d - 1) dt,
        n uniform on the integers from num_integration_steps / 2 to 3 num_integration_steps / 2;
        accept with probability  min(1, exp(-W)),   W = E(x') - E(x) + change of the kinetic energy on the way

    `MCLMC` made exact (`blackjax.adjusted_mclmc`): the direction is drawn afresh before every trajectory.
    The length varies for the same reason as in `HMC`: a fixed one may resonate with the target.

    Args:
        step_size: epsilon > 0, length of one step in units of x (unit speed: time and length are the same). Warm-up
            replaces it.
        num_integration_steps: mean number of steps per transition, at least 1; each evaluates two gradients.
        target_acceptance_rate: mean acceptance rate that warm-up tunes `step_size` to, between 0 and 1.

    Raises:
        ValueError: if `target_acceptance_rate` is not between 0 and 1, `step_size` is not positive and finite,
            `num_integration_steps` is not a positive integer, or
            the energy has only one dimension.

    Example:
        >>> import jax, ebm_ppl as ebm
        >>> kernel = ebm.kernels.AdjustedMCLMC(step_size=0.3, num_integration_steps=1)
        >>> algorithm = kernel.build(lambda x: -0.5 * (x**2).sum())
        >>> state, info = algorithm.step(jax.random.key(0), algorithm.init(jax.numpy.ones(3)))
        >>> bool(info.acceptance_rate > 0.99), int(kernel.stats(state, info)["n_steps"])
        (True, 2)

    References:
        Robnik, Cohn-Gordon, Seljak (2025). Metropolis adjusted microcanonical Hamiltonian Monte Carlo.
        arXiv:2503.01707
    """

    step_size: float | Float[Array, "..."] = 0.1
    num_integration_steps: int = eqx.field(static=True, default=5)
    target_acceptance_rate: float = eqx.field(default=0.9, kw_only=True)

    def __check_init__(self) -> None:
        """At least one step moves."""
        check_count("num_integration_steps", self.num_integration_steps)

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The adjusted microcanonical transition for this log density, put together from BlackJAX's parts."""
        unit_mass: Any = 1.0  # BlackJAX annotates it otherwise
        integrator: Any = with_isokinetic_maruyama(isokinetic_mclachlan(logdensity_fn, unit_mass))

        def init(position: Any, rng_key: Array | None = None) -> Any:
            check_two_dimensions("AdjustedMCLMC", position)
            return blackjax.adjusted_mclmc.init(position, logdensity_fn)

        def step(rng_key: Array, state: Any) -> Any:
            length_key, rng_key = jax.random.split(rng_key)
            momentum_key, integrator_key = jax.random.split(rng_key)
            num_steps: Any = random_length(length_key, self.num_integration_steps)
            step_size: Any = self.step_size
            propose = adjusted_mclmc_proposal(integrator, step_size, jnp.inf, num_steps)
            momentum = generate_unit_vector(momentum_key, state.position)
            new, info, _ = propose(
                integrator_key, IntegratorState(state.position, momentum, state.logdensity, state.logdensity_grad)
            )
            return HMCState(new.position, new.logdensity, new.logdensity_grad), info

        return blackjax.base.SamplingAlgorithm(init, step)

    def stats(self, state: Any, info: Any) -> dict[str, Array]:
        """`acceptance_rate diverging nonfinite_proposal n_steps`; `n_steps` counts gradients, two per step."""
        return {
            "acceptance_rate": info.acceptance_rate,
            "diverging": info.is_divergent,
            "nonfinite_proposal": is_nonfinite(info.proposal.logdensity, info.proposal.logdensity_grad),
            "n_steps": jnp.asarray(GRADIENTS_PER_STEP * info.num_integration_steps, jnp.int32),
        }
