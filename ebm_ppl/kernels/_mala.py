"""The Metropolis-adjusted Langevin algorithm."""

import operator
from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc.diffusions import overdamped_langevin
from blackjax.mcmc.mala import MALAState
from blackjax.mcmc.proposal import compute_asymmetric_acceptance_ratio
from jaxtyping import Array, Float

from ebm_ppl._types import LogDensityFn
from ebm_ppl.kernels._base import AbstractTunableKernel
from ebm_ppl.kernels._metropolis import MetropolisInfo, accept_or_reject, one_proposal_stats


class MALA(AbstractTunableKernel):
    r"""Metropolis-adjusted Langevin algorithm: a Langevin proposal, accepted or rejected.

        x' = x - step_size * grad E(x) + sqrt(2 * step_size) * xi,   xi ~ N(0, I)
        accept with probability  min(1, p(x') q(x', x) / (p(x) q(x, x')))

    The same transition as `blackjax.mala`, bit for bit, built from BlackJAX's own parts so that the proposal can
    be looked at: BlackJAX's info does not tell a non-finite proposal from a poor one.

    Args:
        step_size: h > 0, BlackJAX's convention as above. A text's epsilon (x' = x - epsilon^2/2 grad E + epsilon xi)
            is h = epsilon^2/2; one with x' = x - (epsilon/2) grad E + sqrt(epsilon) xi has h = epsilon/2.
            Warm-up replaces it.
        target_acceptance_rate: mean acceptance rate that warm-up tunes `step_size` to, between 0 and 1.

    Raises:
        ValueError: if `target_acceptance_rate` is not between 0 and 1, or `step_size` is not positive and finite.

    Example:
        >>> import jax, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jax.numpy.zeros(2), covariance=jax.numpy.eye(2))
        >>> draws = ebm.sample(energy, ebm.MALA(0.5), key=jax.random.key(0), num_samples=500, progress_bar=False)
        >>> draws.positions.shape, draws.ok
        ((4, 500, 2), True)

    References:
        Roberts, Tweedie (1996). Exponential convergence of Langevin distributions and their discrete
        approximations. Bernoulli 2(4), 341-363. doi:10.2307/3318418
        Roberts, Rosenthal (1998). Optimal scaling of discrete approximations to Langevin diffusions. Journal of
        the Royal Statistical Society B 60(1), 255-268. doi:10.1111/1467-9868.00123
    """

    step_size: float | Float[Array, "..."] = 0.1
    target_acceptance_rate: float = eqx.field(default=0.574, kw_only=True)

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The MALA transition for this log density."""
        propose: Any = overdamped_langevin(jax.value_and_grad(logdensity_fn))
        log_acceptance = compute_asymmetric_acceptance_ratio(_transition_energy)

        def step(rng_key: Array, state: Any) -> Any:
            proposal_key, accept_key = jax.random.split(rng_key)
            proposal = MALAState(*propose(proposal_key, state, self.step_size))
            log_ratio: Any = log_acceptance(state, proposal, step_size=self.step_size)
            return accept_or_reject(accept_key, log_ratio, state, proposal, proposal.logdensity_grad)

        return blackjax.base.SamplingAlgorithm(
            lambda position, rng_key=None: blackjax.mala.init(position, logdensity_fn), step
        )

    def stats(self, state: MALAState, info: MetropolisInfo) -> dict[str, Array]:
        """`acceptance_rate diverging nonfinite_proposal n_steps`; a one-step proposal has no trajectory to diverge."""
        return one_proposal_stats(info)


def _transition_energy(state: MALAState, new_state: MALAState, step_size: float | Array) -> Array:
    """-log p(new) - log q(new -> old), up to a constant: BlackJAX's convention for asymmetric proposals."""
    squares = jax.tree.map(
        lambda x, new_x, gradient: jnp.sum((x - new_x - step_size * gradient) ** 2),
        state.position,
        new_state.position,
        new_state.logdensity_grad,
    )
    return -new_state.logdensity + 0.25 * (1.0 / step_size) * jax.tree.reduce(operator.add, squares)
