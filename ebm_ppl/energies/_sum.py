"""Energies add, densities multiply."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from ebm_ppl._checks import what_came
from ebm_ppl._types import Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import check_event, evaluate
from ebm_ppl.energies._support import common_support
from ebm_ppl.errors import EnergyShapeError


class SumEnergy(AbstractEnergy):
    r"""A sum of energies, hence a product of densities: \(E(x; y) = \sum_i E_i(x; y)\).

    Its log Z is *not* the sum of the members' log Z. Members that are unconditional do not see the condition.

    Args:
        energies: at least one; all of one `event_shape`, and those that are conditional of one `condition_shape`.

    Raises:
        ValueError: if there is no member, or two have different supports.
        TypeError: if a member is not an energy.
        EnergyShapeError: if the shapes of two members differ.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> prior = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> posterior = ebm.SumEnergy(prior, ebm.FunctionEnergy(lambda x: 2 * (x[0] - 1) ** 2, (2,)))
        >>> float(posterior(jnp.array([0.0, 2.0])))
        4.0

    References:
        Hinton (2002). Training products of experts by minimizing contrastive divergence. Neural Computation 14(8),
        1771-1800. doi:10.1162/089976602760128018
    """

    energies: tuple[AbstractEnergy, ...]
    event_shape: Any = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __init__(self, *energies: AbstractEnergy) -> None:
        if not energies:
            raise ValueError("`energies` must have at least one member; got none.")
        for index, energy in enumerate(energies):
            check_energy_type(f"energies[{index}]", energy)
            if energy.event_shape != energies[0].event_shape:
                raise EnergyShapeError(
                    f"`energies` must share one event shape: energies[0] has {energies[0].event_shape}, "
                    f"energies[{index}] has {energy.event_shape}."
                )
        conditional = {i: e.condition_shape for i, e in enumerate(energies) if e.condition_shape is not None}
        if len(set(conditional.values())) > 1:
            shapes = ", ".join(f"energies[{index}] has {shape}" for index, shape in conditional.items())
            raise EnergyShapeError(f"`energies` must share one condition shape: {shapes}.")
        self.energies = energies
        self.event_shape = energies[0].event_shape
        self.condition_shape = next(iter(conditional.values()), None)
        names = [f"energies[{index}]" for index in range(len(energies))]
        self.support = common_support([energy.support for energy in energies], names)

    def __call__(self, x: Any, condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x; condition) of one event, in nats."""
        dtype = check_event(self, x, condition)
        terms = [
            evaluate(energy, x, condition if energy.condition_shape is not None else None).astype(dtype)
            for energy in self.energies
        ]
        return sum(terms[1:], start=terms[0])


def check_energy_type(name: str, energy: object) -> None:
    """Refuse what is not an energy, naming the cure."""
    if isinstance(energy, AbstractEnergy):
        return
    message = f"`{name}` must be an ebm.AbstractEnergy; got {what_came(energy)}"
    if isinstance(getattr(energy, "energy", None), AbstractEnergy):
        raise TypeError(f"{message}: pass its `.energy`.")
    cure = "" if isinstance(energy, type) else ": wrap a function or a network with ebm.FunctionEnergy(fn, event_shape)"
    raise TypeError(f"{message}{cure}.")
