"""The Barker proposal."""

from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc.barker import BarkerState
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ebm_ppl._types import LogDensityFn
from ebm_ppl.kernels._base import AbstractTunableKernel
from ebm_ppl.kernels._metropolis import MetropolisInfo, accept_or_reject, one_proposal_stats


class Barker(AbstractTunableKernel):
    r"""The Barker proposal: each coordinate moves by normal noise, whose sign leans towards lower energy.

        z ~ N(0, step_size^2 I),   x'_i = x_i + z_i with probability 1 / (1 + exp(z_i * grad_i E(x))), else x_i - z_i
        accept with probability  min(1, p(x') q(x', x) / (p(x) q(x, x')))

    As efficient as `MALA` in many dimensions, and far less sensitive to a step size that is too large, to scales that
    differ and to a steep energy: the gradient only chooses between two signs, it never sets the length of a move.

    The same transition as `blackjax.barker` with unit metric where that does not overflow: BlackJAX 1.7 computes
    log(1 + exp(a)) as written, infinite for a > 88 in float32, and so rejects every long move down a steep energy;
    and it reports NaN as the acceptance rate of a NaN proposal.

    Args:
        step_size: standard deviation of the noise z, > 0, in units of x: a length, not `MALA`'s diffusion step (MALA's
            h moves by noise of standard deviation sqrt(2 h)). Warm-up replaces it.
        target_acceptance_rate: mean acceptance rate that warm-up tunes `step_size` to, between 0 and 1.

    Raises:
        ValueError: if `target_acceptance_rate` is not between 0 and 1, or `step_size` is not positive and finite.

    Example:
        >>> import jax, ebm_ppl as ebm
        >>> kernel = ebm.Barker(step_size=0.5)
        >>> algorithm = kernel.build(lambda x: -(x**4))                       # steep: gradient 108,000 at 30
        >>> state, info = algorithm.step(jax.random.key(0), algorithm.init(jax.numpy.array(30.0)))
        >>> bool(state.position < 30.0), float(info.acceptance_rate)
        (True, 1.0)

    References:
        Livingstone, Zanella (2022). The Barker proposal: combining robustness and efficiency in gradient-based MCMC.
        Journal of the Royal Statistical Society B 84(2), 496-523. doi:10.1111/rssb.12482
        Vogrinc, Livingstone, Zanella (2023). Optimal design of the Barker proposal and other locally balanced
        Metropolis-Hastings algorithms (the acceptance rate). Biometrika 110(3), 579-595. doi:10.1093/biomet/asac056
    """

    step_size: float | Float[Array, "..."] = 0.5
    target_acceptance_rate: float = eqx.field(default=0.574, kw_only=True)

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The Barker transition for this log density."""
        value_and_grad = jax.value_and_grad(logdensity_fn)

        def step(rng_key: Array, state: Any) -> Any:
            proposal_key, accept_key = jax.random.split(rng_key)
            position = _propose(proposal_key, state, self.step_size)
            proposal = BarkerState(position, *value_and_grad(position))
            log_ratio = proposal.logdensity - state.logdensity + _log_proposal_ratio(state, proposal)
            return accept_or_reject(accept_key, log_ratio, state, proposal, proposal.logdensity_grad)

        return blackjax.base.SamplingAlgorithm(
            lambda position, rng_key=None: blackjax.barker.init(position, logdensity_fn), step
        )

    def stats(self, state: BarkerState, info: MetropolisInfo) -> dict[str, Array]:
        """`acceptance_rate diverging nonfinite_proposal n_steps`; a one-step proposal has no trajectory to diverge."""
        return one_proposal_stats(info)


def _propose(key: Array, state: BarkerState, step_size: float | Array) -> Any:
    x, unravel = ravel_pytree(state.position)
    gradient, _ = ravel_pytree(state.logdensity_grad)
    noise_key, sign_key = jax.random.split(key)
    noise = step_size * jax.random.normal(noise_key, x.shape, x.dtype)
    keep_sign = jax.random.bernoulli(jax.random.split(sign_key, 1)[0], jax.nn.sigmoid(gradient * noise))
    return unravel(x + jnp.where(keep_sign, noise, -noise))


def _log_proposal_ratio(state: BarkerState, proposal: BarkerState) -> Array:
    """Log q(proposal -> state) - log q(state -> proposal); the normal densities of the noise cancel."""
    move = ravel_pytree(proposal.position)[0] - ravel_pytree(state.position)[0]
    here, there = ravel_pytree(state.logdensity_grad)[0], ravel_pytree(proposal.logdensity_grad)[0]
    return jnp.sum(jax.nn.softplus(-move * here) - jax.nn.softplus(move * there))
