"""A density raised to a power."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._types import Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import check_event, evaluate
from ebm_ppl.energies._parameters import as_parameter, concrete
from ebm_ppl.energies._sum import check_energy_type


class TemperedEnergy(AbstractEnergy):
    r"""An energy at another temperature: \(\beta E(x; y)\), β = `inverse_temperature`.

    β < 1 flattens, β > 1 sharpens. β = 0 is allowed (one end of an annealing path): the energy is then flat, and its
    density proper only in the company of another energy (`SumEnergy`) or on a bounded support. Where E is +inf, β = 0
    gives NaN. log Z of the tempered energy is not a function of the log Z of `energy`.

    Args:
        energy: the energy at β = 1.
        inverse_temperature: β >= 0, a scalar; an array field, so that a new value compiles nothing, and it may be
            traced.

    Raises:
        ValueError: if a concrete `inverse_temperature` is negative or not a finite scalar.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> hot = ebm.TemperedEnergy(ebm.energies.Gaussian(0.0, 1.0), 0.5)
        >>> float(hot(jnp.asarray(2.0)))
        1.0

    References:
        Swendsen, Wang (1986). Replica Monte Carlo simulation of spin-glasses. Physical Review Letters 57(21),
        2607-2609. doi:10.1103/PhysRevLett.57.2607
    """

    energy: AbstractEnergy
    inverse_temperature: Float[Array, ""]
    event_shape: Any = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __init__(self, energy: AbstractEnergy, inverse_temperature: Any) -> None:
        check_energy_type("energy", energy)
        self.energy = energy
        self.inverse_temperature = as_parameter("inverse_temperature", inverse_temperature, 0)
        host = concrete(self.inverse_temperature)
        if host is not None and not np.all(host >= 0):
            raise ValueError(f"`inverse_temperature` must be non-negative; got {inverse_temperature!r}.")
        self.event_shape, self.condition_shape = energy.event_shape, energy.condition_shape
        self.support = energy.support

    def __call__(self, x: Any, condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x; condition) of one event, in nats."""
        dtype = check_event(self, x, condition)
        return self.inverse_temperature.astype(dtype) * evaluate(self.energy, x, condition).astype(dtype)
