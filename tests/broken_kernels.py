"""Deliberately broken kernels: every statistical test of a sampler must fail on them."""

from typing import ClassVar

import blackjax
import jax
import jax.numpy as jnp
from blackjax.mcmc.diffusions import overdamped_langevin
from blackjax.mcmc.mala import MALAState

from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import is_nonfinite
from ebm_ppl.kernels._mala import MALAInfo


class BrokenMALA(AbstractKernel):
    """MALA with one fault. `fault`: "" (correct), "no_correction", "wrong_sign", "no_proposal_ratio", "half_noise"."""

    step_size: float = 0.1
    fault: str = ""
    target_acceptance_rate: ClassVar[float | None] = 0.574

    def build(self, logdensity_fn):
        gradient = jax.value_and_grad(logdensity_fn)

        def step(key, state):
            proposal_key, accept_key = jax.random.split(key)
            proposal = MALAState(*overdamped_langevin(gradient)(proposal_key, state, self.step_size))
            if self.fault == "half_noise":
                drift = state.position + self.step_size * state.logdensity_grad
                position = drift + (proposal.position - drift) / jnp.sqrt(jnp.asarray(2.0, drift.dtype))
                proposal = MALAState(position, *gradient(position))
            forward = self._log_q(proposal, state)
            backward = self._log_q(state, proposal)
            ratio = proposal.logdensity - state.logdensity
            ratio += {"wrong_sign": forward - backward, "no_proposal_ratio": 0.0}.get(self.fault, backward - forward)
            rate = jnp.exp(jnp.minimum(ratio, 0.0))
            if self.fault == "no_correction":
                rate = jnp.ones_like(rate)
            accepted = jax.random.uniform(accept_key, dtype=rate.dtype) < rate
            new = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), proposal, state)
            return new, MALAInfo(rate, accepted, is_nonfinite(proposal.logdensity, proposal.logdensity_grad))

        return blackjax.base.SamplingAlgorithm(lambda x, rng_key=None: blackjax.mala.init(x, logdensity_fn), step)

    def _log_q(self, to, start):
        return -jnp.sum((to.position - start.position - self.step_size * start.logdensity_grad) ** 2) / (
            4 * self.step_size
        )

    def stats(self, state, info):
        false = jnp.zeros((), bool)
        return {
            "acceptance_rate": info.acceptance_rate,
            "diverging": false,
            "nonfinite_proposal": info.nonfinite_proposal,
            "n_steps": jnp.ones((), jnp.int32),
        }
