"""Is every chain's starting position usable? Asked by the chain driver before the first step."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ebm_ppl._checks import check_floating
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import evaluate
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._trace import check_gradient, check_value, label
from ebm_ppl.errors import EnergyShapeError, NonDifferentiableEnergyError, NonFiniteEnergyError


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
    starts = _check_static(energy, positions, condition, needs_gradient=needs_gradient)
    values, gradients = values_and_gradients(energy, starts, condition, needs_gradient=needs_gradient)
    _check_values(energy, starts, values, gradients)
    if needs_gradient and not bool(jnp.any(gradients != 0)):
        _check_zero_gradient(energy, starts, condition, np.asarray(values))


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
    starts = _check_static(energy, positions, condition, needs_gradient=needs_gradient)
    values, gradients = values_and_gradients(energy, starts, condition, needs_gradient=needs_gradient)
    return jnp.isfinite(values) & _finite_rows(gradients)


def _check_static(energy: AbstractEnergy, positions: Any, condition: Any, *, needs_gradient: bool) -> Array:
    check_energy_type("energy", energy)
    starts = check_floating("positions", positions)
    shape = energy.event_shape
    if starts.ndim != len(shape) + 1 or starts.shape[1:] != shape or starts.shape[0] == 0:
        expected = "(chain, " + ", ".join(map(str, shape)) + ")" if shape else "(chain,)"
        raise EnergyShapeError(
            f"`positions` must have shape {expected}, at least one chain, for an energy of event_shape {shape}; "
            f"got {starts.shape}."
        )
    event = jax.ShapeDtypeStruct(shape, starts.dtype)
    one = condition[0] if _per_chain(energy, condition) else condition
    check_value(energy, event, one)
    if needs_gradient:
        check_gradient(energy, event, one)
    return starts


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
        f"`{label(energy)}` {what} at the starting position of chain {chain}, {show(positions[chain])}; "
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


def show(array: Array) -> str:
    """An event in a message: first and last few numbers."""
    return np.array2string(np.asarray(array, np.float64), threshold=8, edgeitems=3, precision=4, separator=", ")
