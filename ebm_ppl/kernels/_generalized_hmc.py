"""Generalised (underdamped) Hamiltonian Monte Carlo."""

from typing import Any, ClassVar, NamedTuple

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc.ghmc import GHMCState, update_momentum
from blackjax.mcmc.integrators import IntegratorState, velocity_verlet
from blackjax.mcmc.metrics import default_metric
from jaxtyping import Array, Float

from ebm_ppl._types import LogDensityFn
from ebm_ppl.kernels._base import AbstractTunableKernel, as_hyperparameter, identity_metric, is_nonfinite
from ebm_ppl.kernels._metropolis import reject_nonfinite

DIVERGENCE_THRESHOLD = 1000.0  # nats; BlackJAX's and Stan's


class GeneralizedHMCInfo(NamedTuple):
    """What a human needs to know of one transition."""

    acceptance_rate: Array
    is_accepted: Array
    is_divergent: Array
    nonfinite_proposal: Array


class GeneralizedHMC(AbstractTunableKernel):
    r"""Generalised Hamiltonian Monte Carlo: one leapfrog step at a time with a momentum that persists (underdamped).

        v <- sqrt(1 - alpha) v + sqrt(alpha) xi,   xi ~ N(0, I),   alpha = 1 - exp(-2 * damping * step_size)
        u <- (u + 1 + alpha / 2) mod 2 - 1
        (x', v') = one leapfrog step of size step_size from (x, v);   r = exp(H(x, v) - H(x', v'))
        |u| < r:  x, v, u <- x', v', u / r;   otherwise  v <- -v

    with H(x, v) = E(x) + |v|^2 / 2. Long trajectories grow out of many short steps, each a draw: one gradient per
    transition as in `MALA`, without MALA's random walk. The decision variable u also persists, which bunches the
    rejections that turn the momentum round. The chain is not reversible, yet exp(-E) is exactly invariant.

    The same transition as `blackjax.ghmc` with unit metric, built from BlackJAX's own parts: there a decision variable
    of exactly 0 lets a proposal of density zero or NaN through.

    Args:
        step_size: leapfrog step epsilon > 0 (time, not diffusion). Warm-up replaces it.
        damping: gamma > 0, per unit of time: the momentum is forgotten after a time of about 1 / gamma. In whitened
            coordinates, where every standard deviation is near 1, a value near 1 suits most targets; lower it where
            some direction is much wider than the others.
        target_acceptance_rate: mean acceptance rate that warm-up tunes `step_size` to, between 0 and 1.

    Raises:
        ValueError: if `step_size` or `damping` is not positive and finite.

    Example:
        >>> import jax, ebm_ppl as ebm
        >>> kernel = ebm.kernels.GeneralizedHMC(step_size=0.3, damping=0.5)
        >>> algorithm = kernel.build(lambda x: -0.5 * (x**2).sum())
        >>> start = algorithm.init(jax.numpy.ones(3), jax.random.key(0))      # the key draws the first momentum
        >>> state, info = algorithm.step(jax.random.key(1), start)
        >>> bool(info.is_accepted), kernel.reversible
        (True, False)

    References:
        Horowitz (1991). A generalized guided Monte Carlo algorithm. Physics Letters B 268(2), 247-252.
        doi:10.1016/0370-2693(91)90812-5
        Neal (2020). Non-reversibly updating a uniform [0,1] value for Metropolis accept/reject decisions.
        arXiv:2001.11950
        Hoffman, Sountsov (2022). Tuning-free generalized Hamiltonian Monte Carlo. AISTATS, PMLR 151, 7799-7813
        (alpha, and the shift alpha / 2).
    """

    step_size: float | Float[Array, "..."] = 0.1
    damping: Float[Array, ""] = eqx.field(converter=as_hyperparameter("damping"), default=1.0)
    target_acceptance_rate: float = eqx.field(default=0.8, kw_only=True)
    reversible: ClassVar[bool] = False

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The generalised HMC transition for this log density; `init` needs a key, for the first momentum."""

        def init(position: Any, rng_key: Any) -> GHMCState:
            state: Any = blackjax.ghmc.init(position, logdensity_fn, rng_key)
            return state._replace(slice=state.slice.astype(state.logdensity.dtype))

        return blackjax.base.SamplingAlgorithm(init, lambda rng_key, state: self._step(logdensity_fn, rng_key, state))

    def _step(self, logdensity_fn: LogDensityFn, rng_key: Array, state: Any) -> tuple[GHMCState, GeneralizedHMCInfo]:
        metric = default_metric(identity_metric(state.position))
        alpha = -jnp.expm1(-2 * self.damping.astype(state.logdensity.dtype) * self.step_size)
        momentum = update_momentum(jax.random.split(rng_key)[0], state, alpha, metric.sample_momentum)
        decision = (state.slice + 1 + alpha / 2) % 2 - 1
        start = IntegratorState(state.position, momentum, state.logdensity, state.logdensity_grad)
        leapfrog: Any = velocity_verlet(logdensity_fn, metric.kinetic_energy)
        end = leapfrog(start, self.step_size)
        nonfinite = is_nonfinite(end.logdensity, end.logdensity_grad)
        kinetic_change: Any = metric.kinetic_energy(end.momentum) - metric.kinetic_energy(momentum)
        log_ratio = reject_nonfinite(end.logdensity - start.logdensity - kinetic_change, nonfinite)
        accepted = jnp.log(jnp.abs(decision)) < log_ratio
        turned = start._replace(momentum=jax.tree.map(jnp.negative, momentum))
        new = jax.tree.map(lambda moved, stayed: jnp.where(accepted, moved, stayed), end, turned)
        decision: Any = jnp.where(accepted, decision * jnp.exp(-log_ratio), decision)
        new_state = GHMCState(new.position, new.momentum, new.logdensity, new.logdensity_grad, decision)
        # An infinite energy one step away is a wall or an overflow, not an integrator that lost its way.
        diverging = (-log_ratio > DIVERGENCE_THRESHOLD) & jnp.isfinite(log_ratio)
        return new_state, GeneralizedHMCInfo(jnp.exp(jnp.minimum(log_ratio, 0)), accepted, diverging, nonfinite)

    def stats(self, state: GHMCState, info: GeneralizedHMCInfo) -> dict[str, Array]:
        """`acceptance_rate diverging nonfinite_proposal n_steps`; no `energy`: the momentum is not drawn afresh."""
        return {
            "acceptance_rate": info.acceptance_rate,
            "diverging": info.is_divergent,
            "nonfinite_proposal": info.nonfinite_proposal,
            "n_steps": jnp.ones((), jnp.int32),
        }
