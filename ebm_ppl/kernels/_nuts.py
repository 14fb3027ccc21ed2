"""The no-U-turn sampler."""

from typing import Any

import blackjax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import LogDensityFn
from ebm_ppl.kernels._base import AbstractTunableKernel, identity_metric, is_nonfinite


class NUTS(AbstractTunableKernel):
    r"""No-U-turn sampler: Hamiltonian trajectories that stop when they turn back (`blackjax.nuts`).

        H(x, v) = E(x) + |v|^2 / 2,   v ~ N(0, I),   at most 2^max_num_doublings leapfrog steps of size step_size

    Masses are one: preconditioning is a change of variables made by the driver, so that it works for every kernel.

    Args:
        step_size: leapfrog step epsilon > 0 (time, not diffusion: one step is MALA with h = epsilon^2/2).
            Warm-up replaces it.
        max_num_doublings: the trajectory doubles at most this often, at least 1.
        target_acceptance_rate: mean acceptance rate that warm-up tunes `step_size` to, between 0 and 1.

    Raises:
        ValueError: if `target_acceptance_rate` is not between 0 and 1, `step_size` is not positive and finite,
            or `max_num_doublings` is not a positive integer.

    Example:
        >>> import ebm_ppl as ebm
        >>> ebm.NUTS(max_num_doublings=8)
        NUTS(max_num_doublings=8)

    References:
        Hoffman, Gelman (2014). The no-U-turn sampler. Journal of Machine Learning Research 15, 1593-1623.
        arXiv:1111.4246
        Betancourt (2017). A conceptual introduction to Hamiltonian Monte Carlo. arXiv:1701.02434
    """

    step_size: float | Float[Array, "..."] = 0.1
    max_num_doublings: int = eqx.field(static=True, default=10)
    target_acceptance_rate: float = eqx.field(default=0.8, kw_only=True)

    def __check_init__(self) -> None:
        """At least one doubling moves."""
        check_count("max_num_doublings", self.max_num_doublings)

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """BlackJAX's NUTS transition for this log density."""
        kernel = blackjax.nuts.build_kernel()

        def step(rng_key: Array, state: Any) -> Any:
            metric = identity_metric(state.position)
            return kernel(rng_key, state, logdensity_fn, self.step_size, metric, self.max_num_doublings)

        return blackjax.base.SamplingAlgorithm(
            lambda position, rng_key=None: blackjax.nuts.init(position, logdensity_fn), step
        )

    def stats(self, state: Any, info: Any) -> dict[str, Array]:
        """`acceptance_rate diverging energy nonfinite_proposal n_steps tree_depth`; `energy` is the Hamiltonian."""
        left, right = info.trajectory_leftmost_state, info.trajectory_rightmost_state
        return {
            "acceptance_rate": info.acceptance_rate,
            "diverging": info.is_divergent,
            "energy": info.energy,
            "nonfinite_proposal": is_nonfinite(left.logdensity, left.logdensity_grad)
            | is_nonfinite(right.logdensity, right.logdensity_grad),
            "n_steps": jnp.asarray(info.num_integration_steps, jnp.int32),
            "tree_depth": jnp.asarray(info.num_trajectory_expansions, jnp.int32),
        }
