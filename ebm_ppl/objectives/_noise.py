"""One face for whatever may serve as noise: a NumPyro or FlowJAX distribution, or a reference energy."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import AbstractReferenceEnergy
from ebm_ppl.errors import EnergyShapeError, InvalidDataError


class Noise(NamedTuple):
    """A distribution that is never trained: no gradient flows into its parameters or out of its draws."""

    distribution: Any
    event_shape: tuple[int, ...]

    def log_prob(self, x: Float[Array, "..."]) -> Scalar:
        """Normalised log density of one event, in nats."""
        fixed = _stop_gradient(self.distribution)
        if isinstance(fixed, AbstractReferenceEnergy):
            return -fixed(x) - fixed.log_normalizer
        value = fixed.log_prob(x)
        if value.shape != ():
            raise EnergyShapeError(
                f"`noise.log_prob` must be a scalar for one event of shape {self.event_shape}; got shape "
                f"{value.shape}: in NumPyro declare the event with `.to_event({len(value.shape)})`."
            )
        return value

    def sample(self, key: PRNGKey, count: int) -> Float[Array, "count ..."]:
        """`count` independent events."""
        fixed = _stop_gradient(self.distribution)
        draws = jax.vmap(lambda key: jax.lax.stop_gradient(fixed.sample(key, ())))(jax.random.split(key, count))
        if draws.shape != (count, *self.event_shape):
            raise EnergyShapeError(
                f"`noise` must have event shape {self.event_shape}, as the energy has; got {draws.shape[1:]}."
            )
        return draws


def check_noise(noise: Any) -> None:
    """Anything with `log_prob(x)` and `sample(key, shape)`, or a reference energy."""
    usable = isinstance(noise, AbstractReferenceEnergy) or callable(getattr(noise, "log_prob", None))
    if not (usable and callable(getattr(noise, "sample", None))):
        raise TypeError(
            f"`noise` must have log_prob(x) and sample(key, shape), as NumPyro and FlowJAX distributions have, or be a "
            f"reference energy; got {type(noise).__name__}."
        )


def check_coverage(noise: Noise, x: Float[Array, "n ..."]) -> None:
    """Data where the noise has no density would be told from noise with certainty, and teach nothing."""
    covered = np.asarray(_covered(noise, x))
    if not covered.all():
        first = int(np.argmin(covered))
        raise InvalidDataError(
            f"`noise` has no density at {int((~covered).sum())} of {covered.size} data, the first at index {first}: "
            "it must cover the data; use wider noise."
        )


@eqx.filter_jit
def _covered(noise: Noise, x: Array) -> Array:
    support = getattr(noise.distribution, "support", None)  # NumPyro checks it only with validate_args=True

    def covered(x: Array) -> Array:
        inside = jnp.all(jnp.asarray(support(x))) if callable(support) else jnp.asarray(True)  # noqa: FBT003
        return inside & jnp.isfinite(noise.log_prob(x))

    return jax.vmap(covered)(x)


def _stop_gradient(tree: Any) -> Any:
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(jax.lax.stop_gradient, arrays), rest)
