"""The change of variables between events on a support and vectors of real numbers."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro  # noqa: F401  (before any of its submodules)
from jaxtyping import Array
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.constraints import Constraint

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._named_shapes import NamedShapes, as_event_shape
from ebm_ppl.energies._support import base_support, check_support, is_inside, resolve_support
from ebm_ppl.errors import EnergyShapeError

type Event = Array | dict[str, Array]
"""One event: an array, or a dictionary of its named parts."""


class Coordinates(eqx.Module):
    r"""The coordinates z of events x on a support: x = T(z), T NumPyro's bijection of that support (`biject_to`).

    A density p of x has, in the coordinates, the density \(p(T(z)) |\det dT/dz|\), with the same integral: log Z is
    taken with respect to the measure in which NumPyro's own distributions on the support integrate to one.

    - An array event on all reals is its own coordinates: z = x, of `event_shape`.
    - Any other array event has a vector of coordinates; so has an event with named parts, where the coordinates of the
      parts follow each other in the order of `event_shape`.
    - NumPyro's bijection onto the circle cuts it at \(\pm\pi\), and no chain crosses the cut. Here an angle has two
      coordinates, a point of the plane whose direction is the angle; the radius is independent of it, and its density
      is that of two standard normals. log Z is the same.

    Args:
        event_shape: shape of one event, or a dictionary of the shapes of its parts.
        support: a constraint, a dictionary of constraints, or None for all reals. Bounds may be arrays.

    Raises:
        NotImplementedError: NumPyro has no bijection onto the support (it is discrete, for instance).

    Example:
        >>> import jax.numpy as jnp, numpyro
        >>> from ebm_ppl.energies._coordinates import Coordinates
        >>> coordinates = Coordinates({"w": (2,), "tau": ()}, {"tau": numpyro.distributions.constraints.positive})
        >>> coordinates.shape
        (3,)
        >>> coordinates.to_event(jnp.zeros(3))
        {'w': Array([0., 0.], dtype=float32), 'tau': Array(1., dtype=float32)}

    References:
        Stan Development Team (2024). Stan reference manual, ch. 10: constraint transforms (a statement of the same
        change of variables). Carpenter et al. (2017). Journal of Statistical Software 76(1). doi:10.18637/jss.v076.i01
    """

    event_shape: tuple[int, ...] | NamedShapes = eqx.field(static=True)
    support: Any
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, event_shape: Any, support: Any = None) -> None:
        self.event_shape = as_event_shape(event_shape)
        self.support = check_support(support, self.event_shape)
        if isinstance(self.event_shape, NamedShapes):
            self.shape = (sum(math.prod(shape) for shape in self._part_shapes().values()),)
        elif self.support is None:
            self.shape = self.event_shape
        else:
            self.shape = (math.prod(_coordinate_shape(self.support, self.event_shape)),)

    @property
    def is_identity(self) -> bool:
        """Whether events are their own coordinates."""
        return self.support is None and not isinstance(self.event_shape, NamedShapes)

    @property
    def dimension(self) -> int:
        """The number of coordinates."""
        return math.prod(self.shape)

    def to_event(self, z: Array) -> Any:
        """T(z): the event at the coordinates z."""
        return self.to_event_and_log_jacobian(z)[0]

    def log_jacobian(self, z: Array) -> Scalar:
        """Log |det dT/dz|, in nats."""
        return self.to_event_and_log_jacobian(z)[1]

    def to_event_and_log_jacobian(self, z: Array) -> tuple[Any, Scalar]:
        """T(z) and log |det dT/dz|.

        Raises:
            EnergyShapeError: `z` has not the shape of the coordinates.
        """
        z = jnp.asarray(z)
        if z.shape != self.shape:
            raise EnergyShapeError(f"coordinates must have shape {self.shape}; got {jnp.shape(z)}.")
        zero = jnp.zeros((), z.dtype)
        if self.is_identity:
            return z, zero
        if not isinstance(self.event_shape, NamedShapes):
            return _to_event(self.support, self.event_shape, z)
        event, total, first = {}, zero, 0
        for name, shape in self._part_shapes().items():
            last = first + math.prod(shape)
            support = self._support_of(name)
            if support is None:
                event[name] = z[first:last].reshape(shape)
            else:
                event[name], log_jacobian = _to_event(support, self.event_shape[name], z[first:last])
                total = total + log_jacobian
            first = last
        return event, total

    def is_inside(self, z: Array) -> Array:
        """Whether the event at z is a finite point inside the support; far out in z rounding puts it elsewhere."""
        if self.is_identity:
            return jnp.ones((), bool)
        event = self.to_event(z)
        if not isinstance(self.event_shape, NamedShapes):
            return is_inside(resolve_support(self.support, self.event_shape), event)
        inside = jnp.ones((), bool)
        for name, shape in self.event_shape.items():
            inside &= is_inside(resolve_support(self._support_of(name), shape), event[name])
        return inside

    def log_density(self, energy: Callable[[Any], Scalar], z: Array) -> Scalar:
        """-E(T(z)) + log |det dT/dz| in nats; -inf where T(z) is no point inside the support (see `is_inside`)."""
        if self.is_identity:
            return -energy(z)
        # Outside, the energy is evaluated at some event inside: neither its value nor its gradient may become NaN.
        inside = self.is_inside(z)
        event, log_jacobian = self.to_event_and_log_jacobian(jnp.where(inside, z, jnp.zeros_like(z)))
        return jnp.where(inside, log_jacobian - energy(event).astype(log_jacobian.dtype), -jnp.inf)

    def to_coordinates(self, x: Any, key: PRNGKey | None = None) -> Array:
        """T^-1(x): the coordinates of an event.

        An angle has a radius besides, which its density says nothing of: one where `key` is None, good for starts;
        with a key a draw of its distribution given the angle, so that draws of the energy become draws of the target.

        Raises:
            EnergyShapeError: `x` is not one event of `event_shape`.
        """
        self.check_event(x)
        if self.is_identity:
            return x
        if not isinstance(self.event_shape, NamedShapes):
            return _to_coordinates(self.support, self.event_shape, x, key)
        parts = []
        for index, (name, shape) in enumerate(self.event_shape.items()):
            own = None if key is None else jax.random.fold_in(key, index)
            support = self._support_of(name)
            part = jnp.asarray(x[name])
            parts.append(part.reshape(-1) if support is None else _to_coordinates(support, shape, part, own))
        return jnp.concatenate(parts)

    def check_event(self, x: Any) -> None:
        """Raise where `x` is not one event: the names and shapes of its parts."""
        if not isinstance(self.event_shape, NamedShapes):
            if isinstance(x, Mapping) or jnp.shape(x) != self.event_shape:
                got = f"a dictionary of {sorted(x)}" if isinstance(x, Mapping) else f"shape {jnp.shape(x)}"
                raise EnergyShapeError(f"an event must have shape {self.event_shape}; got {got}.")
            return
        if not isinstance(x, Mapping) or set(x) != set(self.event_shape):
            got = f"{sorted(x)}" if isinstance(x, Mapping) else f"an array of shape {jnp.shape(x)}"
            raise EnergyShapeError(f"an event must have the parts {list(self.event_shape)}; got {got}.")
        for name, shape in self.event_shape.items():
            if jnp.shape(x[name]) != shape:
                raise EnergyShapeError(f"part {name!r} of an event must have shape {shape}; got {jnp.shape(x[name])}.")

    def pack(self, x: Any) -> Array:
        """An event as one array: itself, or its named parts one after the other, raveled."""
        if not isinstance(self.event_shape, NamedShapes):
            return x
        return jnp.concatenate([jnp.ravel(x[name]) for name in self.event_shape])

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """The shape of `pack(x)`."""
        if not isinstance(self.event_shape, NamedShapes):
            return self.event_shape
        return (sum(math.prod(shape) for shape in self.event_shape.values()),)

    def unpack(self, rows: Any) -> Any:
        """What `pack` made of events, with any leading axes, as events again; of NumPy or JAX arrays."""
        return unpack(self.event_shape, rows)

    def coordinate_names(self) -> list[str]:
        """One name per coordinate, for messages: the part and its index."""
        if isinstance(self.event_shape, NamedShapes):
            shapes = self._part_shapes()
        else:
            shapes = {"x" if self.is_identity else "z": self.shape}
        return [
            name + (f"[{', '.join(map(str, index))}]" if index else "")
            for name, shape in shapes.items()
            for index in np.ndindex(shape)
        ]

    def _support_of(self, name: str) -> Any:
        return None if self.support is None else self.support.get(name)

    def _part_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of the coordinates of every part."""
        shapes: dict[str, tuple[int, ...]] = {}
        if not isinstance(self.event_shape, NamedShapes):
            return shapes
        for name, shape in self.event_shape.items():
            support = self._support_of(name)
            shapes[name] = shape if support is None else _coordinate_shape(support, shape)
        return shapes


def angular_parts(coordinates: Coordinates) -> Any:
    """Whether an event, or each named part of it, is made of angles, which are compared modulo a full turn."""
    support = coordinates.support
    if isinstance(coordinates.event_shape, NamedShapes):
        named = support or {}
        return {name: name in named and _is_circular(named[name]) for name in coordinates.event_shape}
    return support is not None and _is_circular(support)


def unpack(event_shape: Any, rows: Any) -> Any:
    """Rows `(..., size)` of packed events as a dictionary of their parts; rows of array events as they are."""
    if not isinstance(event_shape, Mapping):
        return rows
    parts, first = {}, 0
    for name, shape in event_shape.items():
        last = first + math.prod(shape)
        parts[name] = rows[..., first:last].reshape(*rows.shape[:-1], *shape)
        first = last
    return parts


def _is_circular(support: Constraint) -> bool:
    return base_support(support) is constraints.circular


def _coordinate_shape(support: Any, event_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the unconstrained value of an event, as NumPyro has it; of the plane for angles."""
    whole = resolve_support(support, event_shape)
    try:
        shape = tuple(biject_to(whole).inverse_shape(event_shape))
    except (TypeError, ValueError) as error:
        raise EnergyShapeError(
            f"the support {support!r} does not fit events of shape {event_shape}: {error}"
        ) from error
    except NotImplementedError as error:
        kind = "it is discrete" if whole.is_discrete else "NumPyro has none onto it"
        raise NotImplementedError(
            f"a bijection from the reals onto the support {support!r} is needed here, and {kind}."
        ) from error
    if base_support(whole) is constraints.complex:
        raise NotImplementedError(f"events on the support {support!r} are complex; energies take real events.")
    return (2, *shape) if _is_circular(whole) else shape


def _to_event(support: Any, event_shape: tuple[int, ...], z: Array) -> tuple[Array, Array]:
    whole = resolve_support(support, event_shape)
    u = z.reshape(_coordinate_shape(support, event_shape))
    if _is_circular(whole):
        return jnp.arctan2(u[1], u[0]), -jnp.sum(u**2) / 2
    # NumPyro's transforms mix Python numbers and arrays, and broadcast freely.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        transform = biject_to(whole)
        try:
            event: Any = transform(u)
            log_jacobian: Any = transform.log_abs_det_jacobian(u, event)
        except (TypeError, ValueError) as error:
            raise EnergyShapeError(
                f"the support {support!r} does not fit events of shape {event_shape}: {error}"
            ) from error
    if jnp.shape(event) != event_shape or jnp.shape(log_jacobian) != ():
        raise EnergyShapeError(
            f"the bounds of the support {support!r} must be those of one event of shape {event_shape}."
        )
    return jnp.asarray(event, z.dtype), jnp.asarray(log_jacobian, z.dtype)


def _to_coordinates(support: Any, event_shape: tuple[int, ...], x: Array, key: PRNGKey | None) -> Array:
    whole = resolve_support(support, event_shape)
    if _is_circular(whole):
        radius = jnp.ones_like(x)
        if key is not None:
            radius = jnp.sqrt(-2 * jnp.log1p(-jax.random.uniform(key, jnp.shape(x), x.dtype)))
        return jnp.stack([radius * jnp.cos(x), radius * jnp.sin(x)]).reshape(-1)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        u: Any = biject_to(whole).inv(x)
    return jnp.asarray(u, x.dtype).reshape(-1)
