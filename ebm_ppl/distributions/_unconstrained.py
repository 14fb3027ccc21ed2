"""An energy on a support, seen from unconstrained space: what chains move in."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro  # noqa: F401  (before any of its submodules)
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.constraints import Constraint

from ebm_ppl._types import Scalar
from ebm_ppl.distributions._support import base_support, is_real
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import EnergyShapeError


class UnconstrainedEnergy(AbstractEnergy):
    r"""u -> E(T(u); y) - log |det dT(u)/du|, u a vector of all reals and T NumPyro's bijection onto the support.

    NumPyro's bijection onto the circle cuts it at \(\pm\pi\), and no chain crosses the cut. Here u is a point of the
    plane and T its angle: u -> E(T(u); y) + |u|^2 / 2, where angle and radius are independent; log Z is the same.
    """

    energy: AbstractEnergy
    support: Constraint
    shape: tuple[int, ...] = eqx.field(static=True)
    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """Energy of one unconstrained event, in nats."""
        if is_real(self.support):
            return self.energy(x.reshape(self.shape), condition)
        event, log_jacobian = self._transform(x)
        return self.energy(event, condition) - log_jacobian

    def constrain(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """T(u)."""
        return x.reshape(self.shape) if is_real(self.support) else self._transform(x)[0]

    def _transform(self, x: Array) -> tuple[Array, Array]:
        if _is_circular(self.support):
            u = x.reshape(self.shape)
            return jnp.arctan2(u[1], u[0]), -jnp.sum(u**2) / 2
        # NumPyro's transforms mix Python numbers and arrays, and broadcast freely.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            transform = biject_to(self.support)
            u = x.reshape(self.shape)
            event: Any = transform(u)
            log_jacobian: Any = transform.log_abs_det_jacobian(u, event)
        if jnp.shape(event) != self.energy.event_shape or jnp.shape(log_jacobian) != ():
            raise EnergyShapeError(
                f"the bounds of the support {self.support!r} must be those of one event of shape "
                f"{self.energy.event_shape}: a sampler draws for one batch element at a time."
            )
        return jnp.asarray(event, x.dtype), jnp.asarray(log_jacobian, x.dtype)


def unconstrained(energy: AbstractEnergy, support: Constraint) -> UnconstrainedEnergy:
    """`energy` on `support` as an energy of a vector of all reals.

    Raises:
        NotImplementedError: there is no bijection onto the support: it is discrete, for instance.
    """
    try:
        shape = tuple(biject_to(support).inverse_shape(tuple(energy.event_shape)))
    except NotImplementedError as error:
        raise NotImplementedError(
            f"chains need a bijection from all reals, and NumPyro has none onto {support!r}: give `sampler=`, a "
            "function (energy, key, sample_shape) -> draws."
        ) from error
    if _is_circular(support):
        shape = (2, *shape)
    return UnconstrainedEnergy(
        energy=energy,
        support=support,
        shape=shape,
        event_shape=(math.prod(shape),),
        condition_shape=energy.condition_shape,
    )


def _is_circular(support: Constraint) -> bool:
    return base_support(support) is constraints.circular
