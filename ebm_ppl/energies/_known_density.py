"""One face for whatever has a density and draws: a NumPyro or FlowJAX distribution, or a reference energy."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._base import AbstractReferenceEnergy
from ebm_ppl.errors import EnergyShapeError


class KnownDensity(eqx.Module):
    """A distribution whose normalised density can be evaluated and from which one can draw, one event at a time.

    Args:
        distribution: anything with `log_prob(x)` and `sample(key, shape)`, or a reference energy. One that has a
            `cond_shape`, as FlowJAX's have, also takes the condition.
        event_shape: shape of one event.
        name: the argument it came in by, for messages.

    References:
        Ward (2023). FlowJAX: distributions and normalizing flows in JAX. doi:10.5281/zenodo.10402073
    """

    distribution: Any
    event_shape: tuple[int, ...] = eqx.field(static=True)
    name: str = eqx.field(static=True, default="noise")

    def log_prob(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """Normalised log density of one event, in nats; not meaningful outside the support."""
        if isinstance(self.distribution, AbstractReferenceEnergy):
            value = -self.distribution(x)
            return value - self.distribution.log_normalizer.astype(value.dtype)
        value = self.distribution.log_prob(x, *self._condition(condition))
        if value.shape != ():
            raise EnergyShapeError(
                f"`{self.name}.log_prob` must be a scalar for one event of shape {self.event_shape}; got shape "
                f"{value.shape}: in NumPyro declare the event with `.to_event({len(value.shape)})`."
            )
        return value

    def log_prob_in_support(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """`log_prob`, -inf outside the support: NumPyro checks its supports only with `validate_args=True`."""
        value = self.log_prob(x, condition)
        support = getattr(self.distribution, "support", None)
        inside = jnp.isfinite(value)
        if callable(support):
            inside &= jnp.all(jnp.asarray(support(x)))
        return jnp.where(inside, value, -jnp.inf)

    def draw(self, key: PRNGKey, condition: Float[Array, "..."] | None = None) -> Float[Array, "..."]:
        """One event."""
        if isinstance(self.distribution, AbstractReferenceEnergy):
            value = self.distribution.sample(key)
        else:
            value = self.distribution.sample(key, (), *self._condition(condition))
        if value.shape != self.event_shape:
            raise EnergyShapeError(
                f"`{self.name}` must have event shape {self.event_shape}, as the energy has; got {value.shape}."
            )
        return value

    def sample(
        self, key: PRNGKey, count: int, condition: Float[Array, "..."] | None = None
    ) -> Float[Array, "count ..."]:
        """`count` independent events."""
        return jax.vmap(lambda key: self.draw(key, condition))(jax.random.split(key, count))

    def _condition(self, condition: Array | None) -> tuple[Array, ...]:
        conditional = getattr(self.distribution, "cond_shape", None) is not None
        return (condition,) if conditional and condition is not None else ()


def check_known_density(name: str, distribution: Any) -> None:
    """Anything with `log_prob(x)` and `sample(key, shape)`, or a reference energy."""
    usable = isinstance(distribution, AbstractReferenceEnergy) or callable(getattr(distribution, "log_prob", None))
    if not (usable and callable(getattr(distribution, "sample", None))):
        raise TypeError(
            f"`{name}` must have log_prob(x) and sample(key, shape), as NumPyro and FlowJAX distributions have, or be "
            f"a reference energy; got {type(distribution).__name__}."
        )
