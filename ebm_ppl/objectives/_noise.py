"""Whatever may serve as noise: a NumPyro or FlowJAX distribution, or a reference energy, never trained."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._known_density import KnownDensity, check_known_density
from ebm_ppl.energies._support import describe_support, same_support
from ebm_ppl.errors import EnergyShapeError, InvalidDataError
from ebm_ppl.objectives._drawn_once import drawn_once


class Noise(NamedTuple):
    """A distribution that is never trained: no gradient flows into its parameters or out of its draws."""

    distribution: Any
    event_shape: tuple[int, ...]
    name: str = "noise"  # the argument it came in by

    def log_prob(self, x: Float[Array, "..."]) -> Scalar:
        """Normalised log density of one event, in nats."""
        return self._fixed.log_prob(x)

    def sample(self, key: PRNGKey, count: int) -> Float[Array, "count ..."]:
        """`count` independent events."""
        return drawn_once(jax.lax.stop_gradient(self._fixed.sample(key, count)))

    @property
    def _fixed(self) -> KnownDensity:
        return KnownDensity(stop_gradient(self.distribution), self.event_shape, self.name)


def check_noise(noise: Any, name: str = "noise") -> None:
    """Anything with `log_prob(x)` and `sample(key, shape)`, or a reference energy."""
    check_known_density(name, noise)


def check_noise_support(noise: Any, energy: AbstractEnergy) -> None:
    """An energy with a support is contrasted with noise on that support: elsewhere it is not defined.

    Raises:
        ValueError: the noise states no support, or another one.
    """
    if energy.support is None:
        return
    given = getattr(noise, "support", None)
    try:
        same = given is not None and same_support(given, energy.support, energy.event_shape)
    except (TypeError, ValueError, EnergyShapeError):
        same = False
    if not same:
        stated = "no support" if given is None else describe_support(given)
        raise ValueError(
            f"`noise` must be a NumPyro distribution on the support of the energy, {describe_support(energy.support)}; "
            f"{type(noise).__name__} has {stated}."
        )


def check_coverage(noise: Noise, x: Float[Array, "n ..."]) -> None:
    """Data where the noise has no density would be told from noise with certainty, and teach nothing."""
    covered = np.asarray(_covered(KnownDensity(noise.distribution, noise.event_shape), x))
    if not covered.all():
        first = int(np.argmin(covered))
        raise InvalidDataError(
            f"`noise` has no density at {int((~covered).sum())} of {covered.size} data, the first at index {first}: "
            "it must cover the data; use wider noise."
        )


@eqx.filter_jit
def _covered(noise: KnownDensity, x: Array) -> Array:
    return jax.vmap(noise.log_prob_in_support)(x) > -jnp.inf


def stop_gradient(tree: Any) -> Any:
    """The same pytree, through whose floating arrays no gradient flows."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(jax.lax.stop_gradient, arrays), rest)
