"""Is every chain's starting position usable? Asked by the chain driver before the first step."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from ebm_ppl._checks import check_floating
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy, coordinate_energy
from ebm_ppl.energies._coordinates import Coordinates, angular_parts
from ebm_ppl.energies._event import check_condition, evaluate
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._support import describe_support
from ebm_ppl.energies._trace import check_gradient, label
from ebm_ppl.errors import EnergyShapeError, InvalidDataError, NonDifferentiableEnergyError, NonFiniteEnergyError

MAX_REMEMBERED = 4096
_DIFFERENTIABLE: set[str] = set()  # programs that were found to have a reverse-mode derivative


def check_start(energy: AbstractEnergy, positions: Any, condition: Any = None, *, needs_gradient: bool = True) -> None:
    """Raise the error that names what makes `energy` or a starting position unusable; None where all is well.

    Shapes, dtypes and differentiability are found by abstract evaluation, before anything is compiled; then energy
    and gradient are evaluated once at every position, in one compiled program that equal configurations share.

    Args:
        energy: E.
        positions: starting positions, shape `(chain, *event_shape)`, float32 or float64.
        condition: `condition_shape` for all chains, `(chain, *condition_shape)` for each its own, or None.
        needs_gradient: False for kernels that do not differentiate.

    Raises:
        EnergyShapeError: an event, the condition or the energy's value has the wrong shape.
        EnergyDtypeError: positions or energy are not float32 or float64.
        NonDifferentiableEnergyError: no derivative, or one that is zero everywhere while E varies.
        NonFiniteEnergyError: E or its gradient is not finite at a position; names chain, position and value.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> ebm.energies.check_start(ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2)), jnp.ones((4, 2)))

    References:
        Gelman, Vehtari, Simpson, et al. (2020). Bayesian workflow. arXiv:2011.01808
    """
    check_coordinates(*_coordinates_of(energy, positions, condition), needs_gradient=needs_gradient)


def start_is_finite(
    energy: AbstractEnergy, positions: Any, condition: Any = None, *, needs_gradient: bool = True
) -> Bool[Array, " chain"]:
    """Which starting positions have finite energy and gradient; static misuse raises as in `check_start`.

    Args:
        energy: E.
        positions: shape `(chain, *event_shape)`.
        condition: `condition_shape` for all chains, `(chain, *condition_shape)` for each its own, or None.
        needs_gradient: False for kernels that do not differentiate.

    Returns:
        One flag per chain, so that the driver can redraw the others.

    Raises:
        EnergyShapeError: as `check_start`.
        EnergyDtypeError: as `check_start`.
        NonDifferentiableEnergyError: as `check_start`, where it shows before evaluation.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> wall = ebm.FunctionEnergy(lambda x: jnp.where(x > 0, x, jnp.inf), ())
        >>> ebm.energies.start_is_finite(wall, jnp.array([1.0, -1.0])).tolist()
        [True, False]

    References:
        Gelman, Vehtari, Simpson, et al. (2020). Bayesian workflow. arXiv:2011.01808
    """
    inner, starts, condition = _coordinates_of(energy, positions, condition)
    return finite_coordinates(inner, starts, condition, needs_gradient=needs_gradient)


def check_coordinates(energy: CoordinateEnergy, positions: Array, condition: Any, *, needs_gradient: bool) -> None:
    """As `check_start`, for positions in the coordinates of the energy."""
    _check_differentiable(energy, positions, condition, needs_gradient=needs_gradient)
    values, gradients = values_and_gradients(energy, positions, condition, needs_gradient=needs_gradient)
    _check_values(energy, positions, values, gradients)
    if needs_gradient and not np.any(np.asarray(gradients) != 0):
        _check_zero_gradient(energy, positions, condition, np.asarray(values))


def finite_coordinates(
    energy: CoordinateEnergy, positions: Array, condition: Any, *, needs_gradient: bool
) -> Bool[Array, " chain"]:
    """As `start_is_finite`, for positions in the coordinates of the energy."""
    _check_differentiable(energy, positions, condition, needs_gradient=needs_gradient)
    values, gradients = values_and_gradients(energy, positions, condition, needs_gradient=needs_gradient)
    return jnp.isfinite(values) & _finite_rows(gradients)


def event_rows(
    energy: CoordinateEnergy,
    name: str,
    positions: Any,
    num_rows: int | None = None,
    *,
    axis: str = "chain",
    key: Array | None = None,
) -> Array:
    """Events `(row, *event_shape)` in the coordinates of `energy`, checked: dtype, shape, support.

    With a `key` draws of the energy become draws of its target: see `Coordinates.to_coordinates`.

    Raises:
        EnergyDtypeError: not floating-point.
        EnergyShapeError: not rows of events, or not `num_rows` of them.
        InvalidDataError: an event lies outside the support, or on its boundary; names the row.
    """
    coordinates = energy.coordinates
    parts, shapes = _floating_parts(name, positions, coordinates.event_shape)
    expected = num_rows if num_rows is not None else (jnp.shape(parts[0])[0] if jnp.ndim(parts[0]) else 0)
    for part, (label_, shape) in zip(parts, shapes, strict=True):
        if part.shape != (expected, *shape) or expected == 0:
            count = axis if num_rows is None else str(num_rows)
            wanted = f"({', '.join([count, *map(str, shape)])})" if shape else f"({count},)"
            raise EnergyShapeError(f"`{label_}` must have shape {wanted}, at least one {axis}; got {part.shape}.")
    if coordinates.is_identity:
        return parts[0]
    rows = dict(zip(coordinates.event_shape, parts, strict=True)) if energy.target.parts else parts[0]
    if key is None:
        z = jax.vmap(coordinates.to_coordinates)(rows)
    else:
        z = jax.vmap(coordinates.to_coordinates)(rows, jax.random.split(key, expected))
    check_inside(name, coordinates, rows, z)
    return z


def _floating_parts(name: str, positions: Any, event_shape: Any) -> tuple[list[Array], list[tuple[str, Any]]]:
    if not isinstance(event_shape, Mapping):
        if isinstance(positions, Mapping):
            raise EnergyShapeError(
                f"`{name}` must be an array for an energy of event_shape {event_shape}; got a dictionary."
            )
        return [check_floating(name, positions)], [(name, event_shape)]
    if not isinstance(positions, Mapping) or set(positions) != set(event_shape):
        got = sorted(positions) if isinstance(positions, Mapping) else type(positions).__name__
        raise EnergyShapeError(f"`{name}` must be a dictionary with the parts {list(event_shape)}; got {got}.")
    labels = [(f"{name}[{part!r}]", shape) for part, shape in event_shape.items()]
    return [check_floating(f"{name}[{part!r}]", positions[part]) for part in event_shape], labels


def check_events(name: str, rows: Array, energy: AbstractEnergy) -> None:
    """Concrete array events `(row, *event_shape)` must lie inside the support of the energy.

    Raises:
        InvalidDataError: some do not, or lie on its edge; names the first row.
        NotImplementedError: there are no coordinates of the support.
    """
    if energy.support is None or isinstance(rows, Tracer):
        return
    coordinates = Coordinates(energy.event_shape, energy.support)
    check_inside(name, coordinates, rows, jax.vmap(coordinates.to_coordinates)(rows))


def check_inside(name: str, coordinates: Coordinates, rows: Any, z: Array) -> None:
    """Concrete events must have finite coordinates, and be where their coordinates say."""
    if isinstance(z, Tracer):
        return
    back = jax.vmap(coordinates.to_event)(z)
    tolerance = 1e3 * float(jnp.finfo(z.dtype).eps)
    bad = ~np.isfinite(np.asarray(z)).all(axis=1)
    angular = jax.tree.leaves(angular_parts(coordinates))
    for one, other, is_angle in zip(jax.tree.leaves(back), jax.tree.leaves(rows), angular, strict=True):
        found, given = np.asarray(one, np.float64), np.asarray(other, np.float64)
        difference = np.abs(found - given)
        if is_angle:
            difference = np.abs(np.remainder(difference + np.pi, 2 * np.pi) - np.pi)
        off = ~(difference <= tolerance * (1 + np.abs(given)))
        bad |= off.reshape(len(off), -1).any(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        where = jax.tree.map(lambda leaf: leaf[row], rows)
        raise InvalidDataError(
            f"`{name}` must lie inside the support {describe_support(coordinates.support)}; row {row} is "
            f"{jax.tree.map(show, where)}, {int(bad.sum())} of {bad.size} rows concerned."
        )


def _coordinates_of(energy: AbstractEnergy, positions: Any, condition: Any) -> tuple[CoordinateEnergy, Array, Any]:
    check_energy_type("energy", energy)
    parts, _ = _floating_parts("positions", positions, energy.event_shape)
    inner = coordinate_energy(energy, parts[0].dtype)
    starts = event_rows(inner, "positions", positions)
    condition = None if condition is None else jnp.asarray(condition)
    one = condition[0] if _per_chain(energy, condition) else condition
    check_condition(label(energy), energy.condition_shape, one)
    return inner, starts, condition


def _check_differentiable(energy: CoordinateEnergy, positions: Array, condition: Any, *, needs_gradient: bool) -> None:
    if not needs_gradient or energy.target.program_fingerprint in _DIFFERENTIABLE:
        return
    event = jax.ShapeDtypeStruct(energy.event_shape, positions.dtype)
    check_gradient(energy, event, condition[0] if _per_chain(energy, condition) else condition)
    if len(_DIFFERENTIABLE) >= MAX_REMEMBERED:
        _DIFFERENTIABLE.clear()
    _DIFFERENTIABLE.add(energy.target.program_fingerprint)


def _per_chain(energy: AbstractEnergy, condition: Any) -> bool:
    return condition is not None and jnp.ndim(condition) == len(energy.condition_shape or ()) + 1


@eqx.filter_jit
def values_and_gradients(
    energy: AbstractEnergy, positions: Array, condition: Any, *, needs_gradient: bool = True
) -> tuple[Float[Array, " chain"], Float[Array, "chain ..."]]:
    """E and its gradient (zeros where it is not needed) at every position, compiled once per energy structure."""
    in_axes = (0, 0 if _per_chain(energy, condition) else None)
    if needs_gradient:
        gradient = jax.value_and_grad(evaluate, argnums=1)
        return jax.vmap(lambda x, y: gradient(energy, x, y), in_axes=in_axes)(positions, condition)
    values = jax.vmap(lambda x, y: evaluate(energy, x, y), in_axes=in_axes)(positions, condition)
    return values, jnp.zeros_like(positions)


def _finite_rows(gradients: Float[Array, "chain ..."]) -> Bool[Array, " chain"]:
    return jnp.all(jnp.isfinite(gradients), axis=tuple(range(1, gradients.ndim)))


def _check_values(energy: AbstractEnergy, positions: Array, values: Array, gradients: Array) -> None:
    bad = ~np.asarray(jnp.isfinite(values) & _finite_rows(gradients))
    if not bad.any():
        return
    chain = int(np.argmax(bad))
    what, why = describe_nonfinite(values[chain], gradients[chain])
    raise NonFiniteEnergyError(
        f"`{label(energy)}` {what} at the starting position of chain {chain}, {show_event(energy, positions[chain])}; "
        f"{int(bad.sum())} of {bad.size} chains concerned: {why}."
    )


def describe_nonfinite(value: Array, gradient: Array) -> tuple[str, str]:
    """What is not finite, and where to look; for a non-finite energy or gradient at one event."""
    energy = float(value)
    if np.isfinite(energy):
        what = f"has a non-finite gradient {show(gradient)} although its energy is {energy:.6g}"
        return (
            what,
            "look for a kink (a norm, sqrt or absolute value at 0), a division by 0, or 0 * inf in the derivative",
        )
    if np.isnan(energy):
        return "is NaN", "look for a log or sqrt of a negative number, 0/0 or inf - inf"
    if energy > 0:
        return "is +inf (density zero)", "start inside the support, or look for an overflow"
    return "is -inf", "an energy must not be unbounded below: exp(-E) is infinite there (a sign error?)"


def _check_zero_gradient(energy: AbstractEnergy, positions: Array, condition: Any, values: np.ndarray) -> None:
    """Every gradient is exactly zero. At a stationary point that is right: look around before judging."""
    seen = [values]
    for index, scale in enumerate((0.1, 1.0, 10.0)):
        noise = jax.random.normal(jax.random.key(index), positions.shape, positions.dtype)
        nearby, gradients = values_and_gradients(energy, positions + scale * noise, condition)
        if bool(jnp.any(gradients != 0)):
            return
        seen.append(np.asarray(nearby))
    finite = np.concatenate(seen)
    finite = finite[np.isfinite(finite)]
    if np.ptp(finite) > 0:
        raise NonDifferentiableEnergyError(
            f"`{label(energy)}` has gradient exactly zero at every starting position and around, while its energy "
            f"varies from {finite.min():.6g} to {finite.max():.6g}: "
            "look for round, floor, sign, a comparison or stop_gradient."
        )


def show_event(energy: AbstractEnergy, position: Array) -> str:
    """The event at a position in a message, in the user's variables."""
    if isinstance(energy, CoordinateEnergy) and not energy.coordinates.is_identity:
        return str(jax.tree.map(show, energy.coordinates.to_event(position)))
    return show(position)


def show(array: Array) -> str:
    """An event in a message: first and last few numbers."""
    return np.array2string(np.asarray(array, np.float64), threshold=8, edgeitems=3, precision=4, separator=", ")
