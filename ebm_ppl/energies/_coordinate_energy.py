"""The energy of a target's coordinates, for code that works on energies of real arrays."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from ebm_ppl._types import Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._coordinates import Coordinates
from ebm_ppl.energies._target import Target


class CoordinateEnergy(AbstractEnergy):
    r"""z -> E(T(z); y) - log |det dT/dz|: minus the target, as an energy on all reals.

    Its log Z is that of the energy on its support.
    """

    target: Target
    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """Energy at the coordinates `x`, in nats."""
        return -self.target.at_condition(condition)(x)

    @property
    def name(self) -> str:
        """The name of the energy of events, for messages."""
        return self.target.name

    @property
    def coordinates(self) -> Coordinates:
        """The change of variables."""
        return self.target.coordinates


def coordinate_energy(energy: AbstractEnergy | Any, dtype: Any = None) -> CoordinateEnergy:
    """`energy` in the coordinates of its support, traced anew: where compiled code that takes an energy begins.

    Raises what `Target` raises.
    """
    target = Target(energy, dtype=dtype)
    return CoordinateEnergy(target=target, event_shape=target.shape, condition_shape=energy.condition_shape)
