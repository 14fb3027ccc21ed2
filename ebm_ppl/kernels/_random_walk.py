"""The random-walk Metropolis algorithm."""

from typing import Any, ClassVar

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc.random_walk import RWState, normal
from jaxtyping import Array, Float

from ebm_ppl._types import LogDensityFn
from ebm_ppl.kernels._base import AbstractTunableKernel
from ebm_ppl.kernels._metropolis import MetropolisInfo, accept_or_reject, one_proposal_stats


class RandomWalk(AbstractTunableKernel):
    r"""Random-walk Metropolis: normal noise is added, the move is accepted or rejected; no gradient is used.

        x' = x + step_size * xi,   xi ~ N(0, I)
        accept with probability  min(1, p(x') / p(x))

    For energies without a gradient, and as the yardstick for those with one: it needs of the order of d times as many
    energies as d grows. On N(0, I) in d dimensions the mean acceptance is 2 P(F > (q + s^2) / (q - s^2)) with
    q = sqrt(s^4 + 4 s^2), s = `step_size` and F of the F(d, d) law.

    The same transition as `blackjax.normal_random_walk`, built from BlackJAX's own parts so that the proposal can be
    looked at: what BlackJAX 1.7 calls `info.proposal` is the state after the decision.

    Args:
        step_size: standard deviation of the noise, > 0, in units of x: a length, not `MALA`'s diffusion step. Warm-up
            replaces it, by one that accepts 0.234; with one or two dimensions 0.44 or 0.35 would be a little better.
        target_acceptance_rate: mean acceptance rate that warm-up tunes `step_size` to, between 0 and 1.

    Raises:
        ValueError: if `target_acceptance_rate` is not between 0 and 1, or `step_size` is not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> stairs = ebm.FunctionEnergy(lambda x: jnp.floor(jnp.sum(jnp.abs(x))), (1,))    # no gradient anywhere
        >>> draws = ebm.sample(stairs, ebm.RandomWalk(2.0), key=jax.random.key(0), num_warmup=0, num_samples=4000,
        ...                    progress_bar=False)
        >>> draws.ok
        True
        >>> bool(abs((abs(draws.positions) < 1).mean() - 0.632) < 0.05)                    # 1 - 1/e
        True

    References:
        Metropolis, Rosenbluth, Rosenbluth, Teller, Teller (1953). Equation of state calculations by fast computing
        machines. Journal of Chemical Physics 21(6), 1087-1092. doi:10.1063/1.1699114
        Roberts, Gelman, Gilks (1997). Weak convergence and optimal scaling of random walk Metropolis algorithms.
        Annals of Applied Probability 7(1), 110-120 (the acceptance rate 0.234). doi:10.1214/aoap/1034625254
    """

    step_size: float | Float[Array, "..."] = 0.5
    target_acceptance_rate: float = eqx.field(default=0.234, kw_only=True)
    uses_gradient: ClassVar[bool] = False

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The random-walk transition for this log density."""

        def evaluate(position: Any) -> Any:
            logdensity: Any = logdensity_fn(position)
            return RWState(position, logdensity)

        def step(rng_key: Array, state: Any) -> Any:
            proposal_key, accept_key = jax.random.split(rng_key)
            move = normal(jnp.asarray(self.step_size))(proposal_key, state.position)
            position = jax.tree.map(jnp.add, state.position, move)
            proposal = evaluate(position)
            return accept_or_reject(accept_key, proposal.logdensity - state.logdensity, state, proposal)

        return blackjax.base.SamplingAlgorithm(lambda position, rng_key=None: evaluate(position), step)

    def stats(self, state: RWState, info: MetropolisInfo) -> dict[str, Array]:
        """`acceptance_rate diverging nonfinite_proposal n_steps`; `n_steps` counts energies, there is no gradient."""
        return one_proposal_stats(info)
