"""Negatives: draws from the model by short or persistent Markov chains, through which no gradient flows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._coordinates import Coordinates
from ebm_ppl.energies._event import evaluate
from ebm_ppl.energies._parameters import cast_floating
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.objectives._base import Metrics, as_floating
from ebm_ppl.objectives._noise import stop_gradient

RADIUS = 2**31  # folded into a chain's key for the radii of angles


class Advanced(NamedTuple):
    """Where a chain has come to, its mean acceptance rate (None: it never rejects), and whether it met a fault."""

    position: Float[Array, "..."]
    acceptance_rate: Scalar | None
    nonfinite: Bool[Array, ""]


def as_kernel(kernel: Any) -> Any:
    """The kernel with its step size as an array, so that another value compiles nothing."""
    if not isinstance(kernel, AbstractKernel):
        return kernel
    return with_step_size(kernel, as_floating(kernel.step_size))


def check_kernel(kernel: Any) -> None:
    """A kernel of ours."""
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"`kernel` must be a kernel such as ebm.MALA(0.1); got {kernel!r}.")


def advance(
    kernel: AbstractKernel,
    energy: AbstractEnergy,
    start: Float[Array, "..."],
    condition: Float[Array, "..."] | None,
    num_steps: int,
    *,
    key: PRNGKey,
) -> Advanced:
    """`num_steps` transitions of one chain that leave exp(-energy) invariant, from a kernel state made here and now.

    On a support the chain moves in its real coordinates, the Jacobian included; start and end are events.

    BlackJAX's states cache log density and gradient. A state kept from before the last change of parameters would
    compare proposals under the new energy with a position valued under the old one.
    """
    # BlackJAX draws its noise in JAX's default precision, and the chain takes it on; the energy keeps that of the data.
    dtype = jnp.result_type(float)
    energy, condition = stop_gradient(energy), stop_gradient(condition)
    coordinates = Coordinates(energy.event_shape, energy.support)

    def log_p(z: Array) -> Array:
        value = coordinates.log_density(lambda event: evaluate(energy, event, condition), z.astype(start.dtype))
        return value.astype(dtype)

    algorithm = cast_floating(kernel, dtype).build(log_p)
    init_key, step_key = jax.random.split(key)

    def step(state: Any, key: Array) -> tuple[Any, tuple[Array | None, Array]]:
        state, info = algorithm.step(key, state)
        stats = kernel.stats(state, info)
        return state, (stats.get("acceptance_rate"), stats["nonfinite_proposal"])

    z = coordinates.to_coordinates(jax.lax.stop_gradient(start), jax.random.fold_in(key, RADIUS))
    initial = algorithm.init(z.astype(dtype), init_key)
    state, (acceptance, nonfinite) = jax.lax.scan(step, initial, jax.random.split(step_key, num_steps))
    position = coordinates.to_event(jax.lax.stop_gradient(state.position).astype(start.dtype))
    return Advanced(position, None if acceptance is None else jnp.mean(acceptance), jnp.any(nonfinite))


def contrast(
    energy: AbstractEnergy,
    data: tuple[Array, Array | None],
    negatives: tuple[Array, Array | None],
    acceptance_rate: Array | None,
    nonfinite: Bool[Array, " chain"],
) -> tuple[Scalar, Metrics]:
    """Mean E(data) - mean E(negatives), the gradient of which is that of the negative log likelihood; and metrics."""
    at_negatives = jax.vmap(energy)(*negatives)
    gap = jnp.mean(jax.vmap(energy)(*data)) - jnp.mean(at_negatives)
    faults = nonfinite | ~jnp.isfinite(at_negatives)
    metrics = {"energy_gap": gap, "nonfinite_negatives": jnp.sum(faults, dtype=gap.dtype)}
    if acceptance_rate is not None:
        metrics["acceptance_rate"] = jnp.mean(acceptance_rate).astype(gap.dtype)
    return gap, metrics
