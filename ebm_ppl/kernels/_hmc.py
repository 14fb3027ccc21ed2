"""Hamiltonian Monte Carlo with trajectories of about one length."""

from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import LogDensityFn
from ebm_ppl.kernels._base import AbstractTunableKernel, identity_metric, is_nonfinite, random_length


class HMC(AbstractTunableKernel):
    r"""Hamiltonian Monte Carlo: a leapfrog trajectory of given length, accepted or rejected (`blackjax.hmc`).

        H(x, v) = E(x) + |v|^2 / 2,   v ~ N(0, I),   n leapfrog steps of size step_size,
        n uniform on the integers from num_integration_steps / 2 to 3 num_integration_steps / 2

    The length varies because a fixed one may resonate with the target: on a standard normal in 100 dimensions, tuned
    as usual, trajectories of always 10 steps give more than a hundred times fewer effective draws of x^2 per gradient.
    Masses are one: preconditioning is a change of variables made by the driver, so that it works for every kernel.

    Args:
        step_size: leapfrog step epsilon > 0 (time, not diffusion: one step is MALA with h = epsilon^2/2).
            Warm-up replaces it.
        num_integration_steps: mean number of leapfrog steps per transition, at least 1.
        target_acceptance_rate: mean acceptance rate that warm-up tunes `step_size` to, between 0 and 1.

    Raises:
        ValueError: if `target_acceptance_rate` is not between 0 and 1, `step_size` is not positive and finite,
            or `num_integration_steps` is not a positive integer.

    Example:
        >>> import ebm_ppl as ebm
        >>> ebm.HMC(step_size=0.2, num_integration_steps=5).target_acceptance_rate
        0.8

    References:
        Duane, Kennedy, Pendleton, Roweth (1987). Hybrid Monte Carlo. Physics Letters B 195(2), 216-222.
        doi:10.1016/0370-2693(87)91197-X
        Mackenzie (1989). An improved hybrid Monte Carlo method. Physics Letters B 226(3-4), 369-371 (random lengths).
        doi:10.1016/0370-2693(89)91212-4
        Neal (2011). MCMC using Hamiltonian dynamics. Handbook of Markov Chain Monte Carlo, ch. 5.
        doi:10.1201/b10905-6
    """

    step_size: float | Float[Array, "..."] = 0.1
    num_integration_steps: int = eqx.field(static=True, default=10)
    target_acceptance_rate: float = eqx.field(default=0.8, kw_only=True)

    def __check_init__(self) -> None:
        """At least one step moves."""
        check_count("num_integration_steps", self.num_integration_steps)

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """BlackJAX's HMC transition for this log density."""
        kernel = blackjax.hmc.build_kernel()

        def step(rng_key: Array, state: Any) -> Any:
            length_key, rng_key = jax.random.split(rng_key)
            num_steps: Any = random_length(length_key, self.num_integration_steps)
            metric = identity_metric(state.position)
            return kernel(rng_key, state, logdensity_fn, self.step_size, metric, num_steps)

        return blackjax.base.SamplingAlgorithm(
            lambda position, rng_key=None: blackjax.hmc.init(position, logdensity_fn), step
        )

    def stats(self, state: Any, info: Any) -> dict[str, Array]:
        """`acceptance_rate diverging energy nonfinite_proposal n_steps`; `energy` is the Hamiltonian."""
        return {
            "acceptance_rate": info.acceptance_rate,
            "diverging": info.is_divergent,
            "energy": info.energy,
            "nonfinite_proposal": is_nonfinite(info.proposal.logdensity, info.proposal.logdensity_grad),
            "n_steps": jnp.asarray(info.num_integration_steps, jnp.int32),
        }
