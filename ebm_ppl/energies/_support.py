"""Supports of events: NumPyro's constraints, and what they say of one event."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro  # noqa: F401  (before any of its submodules)
from jax.core import Tracer
from jaxtyping import Array
from numpyro.distributions import constraints
from numpyro.distributions.constraints import Constraint

from ebm_ppl.errors import EnergyShapeError

# Tested by comparisons, so exact also for values that come out of a bijection. The other constraints (simplices,
# matrices) are tested up to rounding: at 30 x 30 NumPyro's own test of positive definiteness rejects 4 of 10 values
# of its own bijection.
EXACT = (
    constraints.greater_than,
    constraints.greater_than_eq,
    constraints.less_than,
    constraints.less_than_eq,
    constraints.interval,
    constraints.integer_interval,
    constraints.integer_greater_than,
    type(constraints.ordered_vector),
    type(constraints.positive_ordered_vector),
    type(constraints.boolean),
)


def resolve_support(support: Any, event_shape: tuple[int, ...], name: str = "support") -> Constraint:
    """`support` as a constraint on whole events; None is all reals, a smaller one applies to every row.

    Raises:
        TypeError: not a constraint of NumPyro, or one that depends on other parameters.
        EnergyShapeError: a constraint of more dimensions than the event has.
    """
    support = constraints.real if support is None else support
    if not isinstance(support, Constraint) or constraints.is_dependent(support):
        raise TypeError(
            f"`{name}` must be one of numpyro.distributions.constraints, such as constraints.positive; got {support!r}."
        )
    missing = len(event_shape) - support.event_dim
    if missing < 0:
        raise EnergyShapeError(
            f"`{name}` {support!r} constrains {support.event_dim}-dimensional events; the energy's `event_shape` is "
            f"{event_shape}."
        )
    return constraints.independent(support, missing) if missing else support


def check_support(support: Any, event_shape: Any) -> Any:
    """`support` as an energy of `event_shape` keeps it: None, a constraint, or a dictionary of constraints.

    The constraint of all reals becomes None. A dictionary may leave parts out: they are real.

    Raises:
        TypeError: not a constraint, or a dictionary where the event has no named parts (or the reverse).
        ValueError: a name that the event has not.
        EnergyShapeError: a constraint of more dimensions than the event has.
    """
    if support is None:
        return None
    if not isinstance(event_shape, Mapping):
        if isinstance(support, Mapping):
            raise TypeError(f"`support` must be one constraint for an event of shape {event_shape}; got a dictionary.")
        return None if is_real(resolve_support(support, event_shape)) else support
    if not isinstance(support, Mapping):
        raise TypeError(
            f"`support` must be a dictionary of constraints for an event with the parts {list(event_shape)}; "
            f"got {support!r}."
        )
    unknown = [name for name in support if name not in event_shape]
    if unknown:
        raise ValueError(f"`support` names {unknown[0]!r}, which is no part of the event: {list(event_shape)}.")
    kept = {
        name: one
        for name, one in support.items()
        if one is not None and not is_real(resolve_support(one, event_shape[name], f"support[{name!r}]"))
    }
    return kept or None


def base_support(support: Constraint) -> Constraint:
    """What each row, or each coordinate, is constrained to."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def is_real(support: Constraint) -> bool:
    """Whether every number is allowed."""
    return base_support(support) in (constraints.real, constraints.real_vector, constraints.real_matrix)


def is_inside(support: Constraint, x: Array) -> Array:
    """Whether one event that comes out of a bijection is a finite point inside the support, not rounded onto its edge.

    Far out in the coordinates events overflow to infinity or are rounded onto the edge, where the density is zero. NaN
    counts as inside, so that it stays visible.
    """
    inside = ~jnp.any(jnp.isinf(x))
    base = base_support(support)
    if isinstance(base, EXACT):
        inside &= jnp.all(jnp.asarray(support(x)))
    elif base is constraints.simplex:
        inside &= jnp.all(x > 0)
    return inside | jnp.any(jnp.isnan(x))


def has_arrays(support: Constraint) -> bool:
    """Whether its bounds are arrays (they may be traced) rather than numbers."""
    return any(isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in jax.tree.leaves(support))


def describe_support(support: Any) -> str:
    """The support in a message or a table."""
    if support is None:
        return "real"
    if isinstance(support, Mapping):
        return "{" + ", ".join(f"{name}: {describe_support(one)}" for name, one in support.items()) + "}"
    return repr(support)


def with_support[E](energy: E, support: Any) -> E:
    """The same energy on another support; `support` as `check_support` returns it."""
    copy = object.__new__(type(energy))
    for name, value in vars(energy).items():
        object.__setattr__(copy, name, value)
    object.__setattr__(copy, "support", support)
    return copy


def common_support(supports: list[Any], names: list[str]) -> Any:
    """The support of a product of densities: the one that the factors share; reals restrict nothing.

    Raises:
        ValueError: two different supports meet; their intersection is not formed.
    """
    restricted = [(name, support) for name, support in zip(names, supports, strict=True) if support is not None]
    if not restricted:
        return None
    first_name, first = restricted[0]
    for name, support in restricted[1:]:
        if not _same(first, support):
            raise ValueError(
                f"`{first_name}` has the support {describe_support(first)}, but `{name}` has "
                f"{describe_support(support)}: give both the same support, or one of them none."
            )
    return first


def same_support(one: Constraint, other: Constraint, event_shape: tuple[int, ...]) -> bool:
    """Whether two constraints say the same of an event, whichever of its axes they are declared for."""
    bases = [base_support(resolve_support(support, event_shape)) for support in (one, other)]
    return _same(*bases)


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(_same_bound(first, second) for first, second in pairs)


def _same_bound(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tracer) or isinstance(other, Tracer):
        return False
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))
