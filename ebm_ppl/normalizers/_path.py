"""The annealing path from a density that is known to the energy, and moves that leave one of its laws invariant."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import LogDensityFn, PRNGKey, Scalar
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._event import evaluate
from ebm_ppl.energies._known_density import KnownDensity
from ebm_ppl.kernels import MALA, AbstractKernel
from ebm_ppl.kernels._base import check_invariant, with_step_size

FIRST_STEP = 1.36  # l^2 / 2 at the best l = 1.65 of MALA on a standard normal; tuned from there
ADAPTATION_GAIN = 2.0  # of the log step size, per unit of excess acceptance


class AnnealingPath(eqx.Module):
    r"""The laws \(\pi_\beta \propto q^{1 - \beta} \exp(-\beta E)\) on the common support of q and exp(-E)."""

    energy: AbstractEnergy
    base: KnownDensity
    condition: Any

    def log_base(self, x: Float[Array, "..."]) -> Scalar:
        """Log q(x) where exp(-E) > 0, else -inf: the law that the path starts from, unnormalised."""
        value = evaluate(self.energy, x, self.condition)
        log_q = self.base.log_prob_in_support(x, self.condition).astype(value.dtype)
        return jnp.where(value == jnp.inf, -jnp.inf, log_q)

    def log_ratio(self, x: Float[Array, "..."]) -> Scalar:
        """-E(x) - log q(x): the log weight from one end of the path to the other; -inf where exp(-E) = 0."""
        value = evaluate(self.energy, x, self.condition)
        log_q = self.base.log_prob_in_support(x, self.condition).astype(value.dtype)
        return jnp.where(value == jnp.inf, -jnp.inf, -value - log_q)

    def at(self, inverse_temperature: Array) -> LogDensityFn:
        """The log density of one law, up to a constant."""
        return _Tempered(self, inverse_temperature)


class _Tempered(eqx.Module):
    path: AnnealingPath
    inverse_temperature: Array

    def __call__(self, x: Array) -> Scalar:
        path, beta = self.path, self.inverse_temperature
        value = evaluate(path.energy, x, path.condition)
        log_q = path.base.log_prob_in_support(x, path.condition).astype(value.dtype)
        return jnp.where(value == jnp.inf, -jnp.inf, (1 - beta) * log_q - beta * value)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class Moved(NamedTuple):
    """A particle, under the name that BlackJAX reads."""

    position: Array


class Mover(eqx.Module):
    """`num_steps` transitions of a kernel, in coordinates scaled to unit spread."""

    kernel: AbstractKernel
    num_steps: int = eqx.field(static=True)

    def __call__(
        self, key: PRNGKey, particle: Moved, logdensity_fn: LogDensityFn, step_size: Array, scale: Array
    ) -> tuple[Moved, Array]:
        """The particle after the transitions, and their mean acceptance rate."""
        algorithm = with_step_size(self.kernel, step_size).build(_Scaled(logdensity_fn, scale))
        keys = jax.random.split(key, self.num_steps + 1)
        start = algorithm.init(particle.position / scale, keys[0])

        def step(state: Any, key: Array) -> tuple[Any, Array]:
            state, info = algorithm.step(key, state)
            return state, self.kernel.stats(state, info)["acceptance_rate"]

        state, rates = jax.lax.scan(step, start, keys[1:])
        return Moved(state.position * scale), jnp.mean(rates)

    def first_step_size(self, dimension: int, dtype: Any) -> Array:
        """Of MALA, for a law of unit spread; of another kernel, its own."""
        if isinstance(self.kernel, MALA):
            return jnp.asarray(FIRST_STEP * max(dimension, 1) ** (-1 / 3), dtype)
        return jnp.asarray(self.kernel.step_size, dtype)

    def adapted(self, step_size: Array, acceptance_rate: Array) -> Array:
        """A larger step where more than the target was accepted, a smaller one where less."""
        target = self.kernel.target_acceptance_rate
        if target is None:
            return step_size
        return step_size * jnp.exp(ADAPTATION_GAIN * (acceptance_rate - target))


class _Scaled(eqx.Module):
    logdensity_fn: LogDensityFn
    scale: Array

    def __call__(self, z: Array) -> Scalar:
        return self.logdensity_fn(z * self.scale)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def check_mover(kernel: Any, num_steps: int) -> Mover:
    """Only kernels that leave the laws invariant give unbiased weights."""
    kernel = MALA() if kernel is None else kernel
    check_invariant("kernel", kernel)
    if kernel.target_acceptance_rate is None:
        raise ValueError(
            f"`kernel` must report an acceptance rate, by which its steps are tuned; {type(kernel).__name__} has none: "
            "use ebm.MALA(), ebm.HMC() or ebm.NUTS()."
        )
    # An array, so that another step size compiles nothing.
    return Mover(with_step_size(kernel, jnp.asarray(kernel.step_size, float)), num_steps)
