"""The energy of the coordinates that are left free when the others are known."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ebm_ppl._checks import check_floating
from ebm_ppl._types import Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import check_event, evaluate
from ebm_ppl.energies._named_shapes import NamedShapes
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._support import base_support, resolve_support
from ebm_ppl.errors import EnergyShapeError


class ClampedEnergy(AbstractEnergy):
    r"""An energy with some coordinates of its events fixed: \(E(x_\text{free}) = E(x_\text{free}, x_\text{known})\).

    exp(-E) is then, up to its normaliser, the conditional density of the free coordinates given the known ones:
    inpainting, imputation, conditioning on exactly observed entries.

    - Array events: the free coordinates are a vector, in the order of the raveled event.
    - Named parts: `mask` names the parts that are known, as a whole; the event consists of the others.

    Args:
        energy: the energy of whole events.
        values: the known values: an event-shaped array, of which only the entries under `mask` count; or a dictionary
            of the known parts. May be traced.
        mask: which coordinates are known: a boolean array of the event's shape; or an iterable of names, which may be
            left out where `values` is a dictionary.

    Raises:
        TypeError: `energy` is not an energy, or `mask` is not boolean.
        EnergyShapeError: `values` or `mask` do not fit the event.
        ValueError: everything is known, or nothing.
        NotImplementedError: the support of an array event binds its coordinates together, as a simplex does.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> pair = ebm.energies.Gaussian(jnp.zeros(2), jnp.array([[1.0, 0.8], [0.8, 1.0]]))
        >>> rest = ebm.energies.ClampedEnergy(pair, jnp.array([0.0, 2.0]), jnp.array([False, True]))
        >>> rest.event_shape
        (1,)
        >>> rest.complete(jnp.array([1.6])).tolist()                             # 1.6 = 0.8 * 2 is the conditional mean
        [1.600..., 2.0]

    References:
        Koller, Friedman (2009). Probabilistic graphical models, section 4.2.3: reduced Markov networks. MIT Press.
        ISBN 978-0-262-01319-2
    """

    energy: AbstractEnergy
    values: Any
    free: tuple[int, ...] | tuple[str, ...] = eqx.field(static=True)
    event_shape: Any = eqx.field(static=True)

    def __init__(self, energy: AbstractEnergy, values: Any, mask: Any = None) -> None:
        check_energy_type("energy", energy)
        self.energy, self.condition_shape = energy, energy.condition_shape
        if isinstance(energy.event_shape, NamedShapes):
            self._clamp_parts(energy, energy.event_shape, values, mask)
        else:
            self._clamp_coordinates(energy, values, mask)

    def __call__(self, x: Any, condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x_free; condition) of one event of free coordinates, in nats."""
        check_event(self, x, condition)
        return evaluate(self.energy, self.complete(x), condition)

    def complete(self, x: Any) -> Any:
        """The whole event, from its free coordinates."""
        if isinstance(self.event_shape, NamedShapes):
            dtype = next(iter(x.values())).dtype
            known = {name: value.astype(dtype) for name, value in self.values.items()}
            return {name: x[name] if name in x else known[name] for name in self.energy.event_shape}
        whole = jnp.ravel(self.values).astype(x.dtype)
        return whole.at[jnp.asarray(self.free)].set(x).reshape(self.energy.event_shape)

    def _clamp_parts(self, energy: AbstractEnergy, shapes: NamedShapes, values: Any, mask: Any) -> None:
        if not isinstance(values, Mapping):
            raise EnergyShapeError(f"`values` must be a dictionary of known parts; got {type(values).__name__}.")
        if isinstance(mask, str) or not isinstance(mask, Iterable | None):
            raise TypeError(f"`mask` must be a collection of names of parts; got {mask!r}.")
        known = list(values) if mask is None else list(mask)
        for name in [*known, *values]:
            if name not in shapes or name not in values:
                where = "the event" if name not in shapes else "`values`"
                raise EnergyShapeError(f"{name!r} is no part of {where}: {list(shapes)}.")
        self.values = {name: check_floating(f"values[{name!r}]", values[name]) for name in known}
        for name, value in self.values.items():
            if value.shape != shapes[name]:
                raise EnergyShapeError(f"`values[{name!r}]` must have shape {shapes[name]}; got {value.shape}.")
        self.free = tuple(name for name in shapes if name not in self.values)
        _check_some(len(self.free), len(shapes))
        self.event_shape = NamedShapes({name: shapes[name] for name in self.free})
        support = {name: one for name, one in (energy.support or {}).items() if name in self.free}
        self.support = support or None

    def _clamp_coordinates(self, energy: AbstractEnergy, values: Any, mask: Any) -> None:
        shape = energy.event_shape
        self.values = check_floating("values", values)
        if self.values.shape != shape:
            raise EnergyShapeError(f"`values` must have the event's shape {shape}; got {self.values.shape}.")
        if mask is None:
            raise TypeError("`mask` must be a boolean array of the event's shape, True where it is known; got None.")
        if isinstance(mask, Tracer):
            raise TypeError("`mask` must be known when the energy is made; it is traced: which coordinates are free "
                            "decides shapes.")  # fmt: skip
        known = np.asarray(mask)
        if known.dtype != np.bool_:
            raise TypeError(f"`mask` must be a boolean array; got dtype {known.dtype}.")
        if known.shape != shape:
            raise EnergyShapeError(f"`mask` must have the event's shape {shape}; got {known.shape}.")
        self.free = tuple(np.flatnonzero(~known.ravel()).tolist())
        _check_some(len(self.free), math.prod(shape))
        self.event_shape = (len(self.free),)
        self.support = _of_coordinates(energy.support, shape, np.asarray(self.free))


def _check_some(num_free: int, total: int) -> None:
    if num_free in (0, total):
        which = "nothing is free" if num_free == 0 else "nothing is known"
        raise ValueError(f"`mask` must leave some coordinates free and fix some; {which}.")


def _of_coordinates(support: Any, shape: tuple[int, ...], free: np.ndarray) -> Any:
    """The support of single coordinates; bounds that are arrays are those of the free ones."""
    if support is None:
        return None
    base = base_support(resolve_support(support, shape))
    if base.event_dim > 0:
        raise NotImplementedError(
            f"the support {support!r} binds the coordinates of an event together: fixing some of them leaves another "
            "support, which NumPyro does not have."
        )

    def of_free(bound: Any) -> Any:
        if np.ndim(bound) == 0:
            return bound
        return jnp.broadcast_to(jnp.asarray(bound), shape).ravel()[free]

    return jax.tree.map(of_free, base)
