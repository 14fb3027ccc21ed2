"""One transition of the exchange algorithm, in the form that warm-up and driver know: a kernel over a log density."""

from typing import Any, ClassVar, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import LogDensityFn
from ebm_ppl.infer._auxiliary import ExchangePotential
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import is_nonfinite
from ebm_ppl.kernels._metropolis import accept_or_reject, reject_nonfinite


class ExchangeState(NamedTuple):
    """Where the chain is, and what its auxiliary chains have shown.

    Attributes:
        position: latent values, whitened.
        logdensity: log joint density with every unknown log Z left out: never to be compared between positions.
        auxiliary: the auxiliary data of the last proposal that was accepted, by site.
        inner_step_size: of the auxiliary chains.
        jump: sum of squared distances between data and auxiliary data of accepted proposals, since warm-up ended.
        spread: the same between auxiliary data that follow each other.
        num_accepted: proposals accepted since warm-up ended.
        num_transitions: transitions so far.
    """

    position: Array
    logdensity: Array
    auxiliary: dict[str, Array]
    inner_step_size: Array
    jump: Array
    spread: Array
    num_accepted: Array
    num_transitions: Array


class ExchangeInfo(NamedTuple):
    """What a human needs to know of one transition."""

    acceptance_rate: Array
    nonfinite_proposal: Array
    distrusted: Array
    auxiliary_acceptance_rate: Array
    auxiliary_memory: Array


class _Candidate(NamedTuple):
    """What the decision is about; the rest of the state goes on either way."""

    position: Array
    logdensity: Array


class ExchangeWalk(AbstractKernel):
    """Random-walk proposals, decided by the exchange ratio of an `ExchangePotential`.

    Args:
        step_size: standard deviation of the noise in whitened coordinates.
        inner_step_size: of the auxiliary chains, where tuning starts.
        inner_target: acceptance rate that the inner step size is tuned to during warm-up; None: it stays as it is.
        min_inner_acceptance: proposals whose auxiliary chains accepted less are rejected, and counted.
        num_warmup: transitions during which the inner step size is tuned.
    """

    step_size: float | Float[Array, "..."] = 0.5
    inner_step_size: float | Float[Array, "..."] = 0.1
    inner_target: float | None = None
    min_inner_acceptance: float = 0.1
    num_warmup: int = 0
    target_acceptance_rate: ClassVar[float | None] = 0.35  # between .44 in one dimension and .234 in many
    uses_gradient: ClassVar[bool] = False
    carried: ClassVar[tuple[str, ...]] = (
        "auxiliary",
        "inner_step_size",
        "jump",
        "spread",
        "num_accepted",
        "num_transitions",
    )

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The transition; `logdensity_fn` is a flat density in whitened coordinates over an `ExchangePotential`."""
        whitened: Any = logdensity_fn
        flat = whitened.logdensity_fn
        potential: ExchangePotential = flat.potential_fn

        def latent(position: Array) -> Any:
            return flat.unravel(whitened.preconditioner.to_user(position))

        def init(position: Any, rng_key: Any = None) -> Any:
            logdensity = whitened(position)
            data = potential.data(latent(position))
            step_size = jnp.asarray(self.inner_step_size, logdensity.dtype)
            zero, none = jnp.zeros_like(logdensity), jnp.zeros((), jnp.int32)
            return ExchangeState(position, logdensity, data, step_size, zero, zero, none, none)

        def step(rng_key: Array, state: Any) -> Any:
            move_key, auxiliary_key, accept_key = jax.random.split(rng_key, 3)
            noise = jax.random.normal(move_key, state.position.shape, state.position.dtype)
            position = state.position + self.step_size * noise
            proposal = _Candidate(position, whitened(position))
            drawn = potential.draw(auxiliary_key, latent(state.position), latent(position), state.inner_step_size)
            # NaN, the rate of exact draws and of kernels that never reject, is not below any bound.
            distrusted = drawn.acceptance_rate < self.min_inner_acceptance
            nonfinite = is_nonfinite(proposal.logdensity) | drawn.nonfinite
            log_ratio = proposal.logdensity - state.logdensity + drawn.log_ratio
            log_ratio = reject_nonfinite(log_ratio, nonfinite | distrusted)
            kept, info = accept_or_reject(accept_key, log_ratio, _Candidate(state.position, state.logdensity), proposal)
            state = state._replace(position=kept.position, logdensity=kept.logdensity)
            data = potential.data(latent(position))
            state = self._watch(state, drawn.values, data, drawn.acceptance_rate, info.is_accepted)
            memory = _memory(state.jump, state.spread, state.num_accepted)
            if potential.inner_kernel is None:  # exact draws start nowhere; few or closely fitted data look like memory
                memory = jnp.full_like(memory, jnp.nan)
            found = ExchangeInfo(info.acceptance_rate, nonfinite, distrusted, drawn.acceptance_rate, memory)
            return state, found

        return blackjax.base.SamplingAlgorithm(init, step)

    def stats(self, state: ExchangeState, info: ExchangeInfo) -> dict[str, Array]:
        """`acceptance_rate auxiliary_acceptance_rate auxiliary_memory diverging nonfinite_proposal n_steps`."""
        return {
            "acceptance_rate": info.acceptance_rate,
            "auxiliary_acceptance_rate": info.auxiliary_acceptance_rate,
            "auxiliary_memory": info.auxiliary_memory,
            "diverging": info.distrusted,
            "nonfinite_proposal": info.nonfinite_proposal,
            "n_steps": jnp.ones((), jnp.int32),
        }

    def _watch(
        self, state: ExchangeState, drawn: dict[str, Array], data: dict[str, Array], rate: Array, accepted: Array
    ) -> Any:
        """Tune the inner step size during warm-up; afterwards, watch whether auxiliary data forget their start."""
        warming = state.num_transitions < self.num_warmup
        count = state.num_transitions + 1
        step_size = state.inner_step_size
        if self.inner_target is not None:
            gain = count.astype(rate.dtype) ** -0.6  # Robbins and Monro; a NaN rate teaches nothing
            change = jnp.where(warming & jnp.isfinite(rate), gain * (rate - self.inner_target), 0)
            step_size = step_size * jnp.exp(change).astype(step_size.dtype)
        # Of proposals far out the auxiliary data have another spread: only those accepted can be compared.
        counted = accepted & ~warming
        jump, spread = _square_distance(drawn, data), _square_distance(drawn, state.auxiliary)
        return state._replace(
            auxiliary={name: jnp.where(accepted, x, state.auxiliary[name]) for name, x in drawn.items()},
            inner_step_size=step_size,
            jump=state.jump + jnp.where(counted, jump, 0).astype(state.jump.dtype),
            spread=state.spread + jnp.where(counted, spread, 0).astype(state.spread.dtype),
            num_accepted=state.num_accepted + counted.astype(jnp.int32),
            num_transitions=count,
        )


def _memory(jump: Array, spread: Array, num_accepted: Array) -> Array:
    r"""Autocorrelation of the auxiliary chains from start to end, over the run so far; NaN at its beginning.

    Two chains of correlation r with one start y end at x and x': E|x - y|^2 = 2 V (1 - r), E|x - x'|^2 =
    2 V (1 - r^2), and the quotient of the second and the first is 1 + r. Chains that never left their start: r = 1.
    """
    unmoved = jnp.where(num_accepted > 0, jnp.full_like(jump, 2), jnp.nan)
    return jnp.where(jump > 0, spread / jnp.where(jump > 0, jump, 1), unmoved) - 1


def _square_distance(a: dict[str, Array], b: dict[str, Array]) -> Array:
    return sum((jnp.sum((a[name] - b[name]) ** 2) for name in a), start=jnp.zeros(()))
