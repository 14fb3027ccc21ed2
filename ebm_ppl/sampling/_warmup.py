"""Warm-up of one chain: step size by dual averaging, preconditioning by a change of variables.

Everything here is a pure function of one chain; `jax.vmap` makes it many. The chain lives in whitened coordinates
z, x = T z, where the kernel works with unit metric: so preconditioning serves every kernel alike. What leaves
this file (positions, log densities) is in the user's coordinates.

Kernels without a target acceptance rate (ULA) adapt nothing: their step size stays as given, and scales learnt from
a chain that moves with a fixed step would shrink from window to window, since a slow chain looks narrow.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.staged_adaptation import build_schedule
from blackjax.adaptation.step_size import dual_averaging_adaptation, find_reasonable_step_size
from jaxtyping import Array, Float

from ebm_ppl._types import LogDensityFn, PRNGKey, Scalar
from ebm_ppl.energies import AbstractLogDensity
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.kernels._parts import at_noise_scale, minibatch_density
from ebm_ppl.sampling._low_rank import initial_preconditioner
from ebm_ppl.sampling._preconditioners import AbstractPreconditioner


class Whitened(AbstractLogDensity):
    """z -> log p(T z). The constant log-Jacobian is left out, so that values stay those of the user's density."""

    logdensity_fn: LogDensityFn
    preconditioner: AbstractPreconditioner

    def __call__(self, z: Float[Array, "..."]) -> Scalar:
        """Log density at whitened coordinates."""
        return self.logdensity_fn(self.preconditioner.to_user(z))

    def minibatch(self, key: PRNGKey, batch_size: int) -> "Whitened":
        """The same with a few of the data, where the density knows them."""
        return Whitened(minibatch_density(self.logdensity_fn, key, batch_size), self.preconditioner)

    def at_noise_scale(self, noise_scale: Array) -> "Whitened":
        """The same at another noise scale, where the density knows its own."""
        return Whitened(at_noise_scale(self.logdensity_fn, noise_scale), self.preconditioner)


class ChainState(NamedTuple):
    """One chain: BlackJAX's state in whitened coordinates, the step size and the preconditioner it uses."""

    inner: Any
    step_size: Array
    preconditioner: AbstractPreconditioner

    @property
    def position(self) -> Array:
        """Where the chain is, in the user's coordinates."""
        return self.preconditioner.to_user(self.inner.position)


class Adaptation(NamedTuple):
    """What warm-up learns: dual averaging of the step size, and what the preconditioner gathers of the draws."""

    averaging: Any
    moments: Any


class Window(NamedTuple):
    """A stretch of warm-up; `slow` ones also learn the preconditioner, which is put to use at their end."""

    num_steps: int
    slow: bool


def warmup_windows(num_warmup: int) -> list[Window]:
    """Stan's schedule: a fast window, slow windows of doubling length, a fast window; their lengths add up.

    Below 150 steps Stan leaves a tenth for the last window, too little for the step size to settle after the last
    change of scale: here it is 30 % fast, 30 % slow, 40 % fast.

    Example:
        >>> [window.num_steps for window in warmup_windows(1000)]
        [75, 25, 50, 100, 200, 500, 50]
    """
    if num_warmup == 0:
        return []
    windows, length = [], 0
    # BlackJAX stacks (int, bool) pairs in a JAX array: not under strict promotion, not inside somebody's trace.
    with jax.numpy_dtype_promotion("standard"), jax.ensure_compile_time_eval():
        schedule = np.asarray(build_schedule(num_warmup, **_sizes(num_warmup)), bool).tolist()
    for step, (slow, end) in enumerate(schedule):
        length += 1
        if end or step + 1 == num_warmup or schedule[step + 1][0] != slow:
            windows.append(Window(length, slow))
            length = 0
    return windows


def _sizes(num_warmup: int) -> dict[str, int]:
    if num_warmup >= 150:
        return {}
    first, last = int(0.3 * num_warmup), int(0.4 * num_warmup)
    return {"initial_buffer_size": first, "first_window_size": num_warmup - first - last, "final_buffer_size": last}


def start_chain(
    kernel: AbstractKernel, logdensity_fn: LogDensityFn, position: Array, key: PRNGKey, precondition: str = "diagonal"
) -> ChainState:
    """A chain at `position`, with the kernel's own step size and the identity as preconditioner."""
    preconditioner = initial_preconditioner(precondition, position, uses_gradient=kernel.uses_gradient)
    step_size = jnp.asarray(kernel.step_size, position.dtype)
    inner = _algorithm(kernel, logdensity_fn, step_size, preconditioner).init(position, key)
    return ChainState(inner, step_size, preconditioner)


def advance_chain(
    kernel: AbstractKernel, logdensity_fn: LogDensityFn, chain: ChainState, key: PRNGKey
) -> tuple[ChainState, dict[str, Array]]:
    """One transition and its statistics: those of the kernel, `lp` and `step_size`."""
    inner, info = _algorithm(kernel, logdensity_fn, chain.step_size, chain.preconditioner).step(key, chain.inner)
    stats = kernel.stats(inner, info) | {"lp": inner.logdensity, "step_size": chain.step_size}
    return chain._replace(inner=inner), stats


def start_adaptation(
    kernel: AbstractKernel, logdensity_fn: LogDensityFn, chain: ChainState, key: PRNGKey
) -> tuple[ChainState, Adaptation]:
    """A reasonable first step size (doubling or halving until acceptance crosses the target), and empty moments."""
    target, dtype = kernel.target_acceptance_rate, chain.step_size.dtype
    if target is not None:

        def transition(step_size: Any) -> Any:
            return _algorithm(kernel, logdensity_fn, step_size, chain.preconditioner).step

        # BlackJAX's search never ends from 0 or infinity, which stay what they are however often they are doubled or
        # halved. An earlier window ends there where every proposal is accepted (a flat energy), or none.
        searchable = (chain.step_size >= jnp.finfo(dtype).tiny) & jnp.isfinite(chain.step_size)
        first: Any = jnp.where(searchable, chain.step_size, jnp.ones_like(chain.step_size))
        step_size = jnp.asarray(find_reasonable_step_size(key, transition, chain.inner, first, target), dtype)
        chain = chain._replace(step_size=jnp.where(searchable, step_size, chain.step_size))
    averaging_init, _, _ = dual_averaging_adaptation(0.5 if target is None else target)
    # Counters become floats: strict promotion refuses integer arrays in the float arithmetic.
    averaging = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), averaging_init(chain.step_size))
    return chain, Adaptation(averaging, chain.preconditioner.start_moments())


def adapt_chain(
    kernel: AbstractKernel, chain: ChainState, adaptation: Adaptation, stats: dict[str, Array], slow: Array
) -> tuple[ChainState, Adaptation]:
    """Learn from one transition: the step size always, the moments of the position in slow windows."""
    averaging, moments = adaptation
    if kernel.target_acceptance_rate is not None:
        _, update, _ = dual_averaging_adaptation(kernel.target_acceptance_rate)
        averaging = _keep_dtype(update(averaging, stats["acceptance_rate"]), averaging)
        chain = chain._replace(step_size=jnp.exp(averaging.log_step_size))
    gradient = getattr(chain.inner, "logdensity_grad", None)
    return chain, Adaptation(averaging, chain.preconditioner.observe(moments, chain.position, gradient, slow))


def end_slow_window(
    kernel: AbstractKernel, logdensity_fn: LogDensityFn, chain: ChainState, adaptation: Adaptation, key: PRNGKey
) -> tuple[ChainState, Adaptation]:
    """Put what was learnt to use: re-express the chain in the new coordinates and restart the adaptation."""
    return use_preconditioner(kernel, logdensity_fn, chain, chain.preconditioner.learn_from(adaptation.moments), key)


def use_preconditioner(
    kernel: AbstractKernel,
    logdensity_fn: LogDensityFn,
    chain: ChainState,
    preconditioner: AbstractPreconditioner,
    key: PRNGKey,
) -> tuple[ChainState, Adaptation]:
    """The same place in the coordinates of `preconditioner`, and a fresh adaptation."""
    init_key, step_key = jax.random.split(key)
    algorithm = _algorithm(kernel, logdensity_fn, chain.step_size, preconditioner)
    inner: Any = algorithm.init(preconditioner.to_whitened(chain.position), init_key)
    if kernel.carried:
        inner = inner._replace(**{name: getattr(chain.inner, name) for name in kernel.carried})
    return start_adaptation(kernel, logdensity_fn, ChainState(inner, chain.step_size, preconditioner), step_key)


def finish_warmup(kernel: AbstractKernel, chain: ChainState, adaptation: Adaptation) -> ChainState:
    """Fix the step size at the average that dual averaging converged to."""
    if kernel.target_acceptance_rate is None:
        return chain
    _, _, final = dual_averaging_adaptation(kernel.target_acceptance_rate)
    return chain._replace(step_size=final(adaptation.averaging))


def _algorithm(
    kernel: AbstractKernel, logdensity_fn: LogDensityFn, step_size: Array, preconditioner: AbstractPreconditioner
) -> Any:
    return with_step_size(kernel, step_size).build(Whitened(logdensity_fn, preconditioner))


def _keep_dtype(new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.asarray(n, o.dtype), new, old)
