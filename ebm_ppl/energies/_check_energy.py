"""Pre-flight checks of an energy, in order, each with its own sentence."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ebm_ppl._checks import check_floating, check_key
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._check_start import describe_nonfinite, event_rows, show, values_and_gradients
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy, coordinate_energy
from ebm_ppl.energies._energy_check import CheckedItem, EnergyCheck
from ebm_ppl.energies._probes import gradient_mismatch, idle_coordinates, neighbourhood, zero_gradient_range
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._tails import slowest_ray
from ebm_ppl.energies._trace import check_gradient, check_value, label
from ebm_ppl.errors import (
    EnergyDtypeError,
    EnergyShapeError,
    NonDifferentiableEnergyError,
    NonFiniteEnergyError,
    Problem,
)

_ORDER = ("shape", "dtype", "finite", "differentiable", "coordinates", "tails")
_ERRORS = {
    "ENERGY_SHAPE": EnergyShapeError,
    "ENERGY_DTYPE": EnergyDtypeError,
    "NONFINITE_ENERGY": NonFiniteEnergyError,
    "NON_DIFFERENTIABLE": NonDifferentiableEnergyError,
    "ZERO_GRADIENT": NonDifferentiableEnergyError,
    "WRONG_GRADIENT": NonDifferentiableEnergyError,
    "UNUSED_COORDINATE": EnergyShapeError,
    "POSSIBLY_IMPROPER": ValueError,
}


def check_energy(
    energy: AbstractEnergy, x: Any, condition: Any = None, *, key: Any = None, strict: bool = False
) -> EnergyCheck:
    r"""Ordered pre-flight checks of an energy around one event; ask before you sample or train.

    1. shape: event, condition and value have the declared shapes, the value is a scalar.
    2. dtype: event and value are floating-point.
    3. finite: E and its gradient are finite at `x`.
    4. differentiable: JAX has a derivative, it is not zero where E varies, and it agrees with finite differences.
    5. coordinates: each one changes E.
    6. tails: \(dE/d\log r\) far out exceeds the dimension in random directions, and 1 along axes, without which
       \(\int \exp(-E)\) diverges. Necessary, not sufficient, and judged at finite radii: "possibly" improper.

    Args:
        energy: E.
        x: a typical event, shape `energy.event_shape`: its size sets the scale for the tails.
        condition: one condition, or None.
        key: JAX key of the random directions; None: a fixed one.
        strict: raise the error of the first failed check instead of returning it.

    Returns:
        The verdict, with `.ok`, `.problems` and a readable `repr`.

    Raises:
        TypeError: if `energy` is not an energy.
        EnergyShapeError: `strict`, and check 1 or 5 failed.
        EnergyDtypeError: `strict`, and check 2 failed.
        NonFiniteEnergyError: `strict`, and check 3 failed.
        NonDifferentiableEnergyError: `strict`, and check 4 failed.
        ValueError: `strict`, and check 6 failed.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> ebm.check_energy(ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2)), jnp.ones(2)).ok
        True
        >>> upside_down = ebm.FunctionEnergy(lambda x: -jnp.sum(x**4), (2,))
        >>> [problem.code for problem in ebm.check_energy(upside_down, jnp.ones(2)).problems]
        ['POSSIBLY_IMPROPER']

    References:
        Gelman, Vehtari, Simpson, et al. (2020). Bayesian workflow. arXiv:2011.01808
    """
    check_energy_type("energy", energy)
    probe_key, tail_key = jax.random.split(jax.random.key(0) if key is None else check_key(key))
    if energy.support is None and not isinstance(energy.event_shape, Mapping):
        items = _check_static(energy, x, condition)
        if items[-1].problem is None:
            items += _check_dynamic(energy, check_floating("x", x), condition, probe_key, tail_key)
    else:
        inner, z = _in_coordinates(energy, x)
        items = [*_check_static(inner, z, condition), *_check_dynamic(inner, z, condition, probe_key, tail_key)]
    done = {item.name: item for item in items}
    skipped = "an earlier check failed"
    report = EnergyCheck(label(energy), tuple(done.get(n, CheckedItem(n, "not run", skipped)) for n in _ORDER))
    if strict and report.problems:
        first = report.problems[0]
        raise _ERRORS[first.code](first.advice)
    return report


def _in_coordinates(energy: AbstractEnergy, x: Any) -> tuple[CoordinateEnergy, Array]:
    """The energy and one event in the real coordinates of its support."""
    leaves = [check_floating("x", leaf) for leaf in jax.tree.leaves(x)]
    inner = coordinate_energy(energy, leaves[0].dtype if leaves else None)
    inner.coordinates.check_event(x)
    rows = jax.tree.map(lambda leaf: check_floating("x", leaf)[None], x)
    return inner, event_rows(inner, "x", rows, axis="event")[0]


def _check_static(energy: AbstractEnergy, x: Any, condition: Any) -> list[CheckedItem]:
    """Checks 1 and 2, by abstract evaluation; and 4 where tracing itself fails."""
    shape = _passed("shape", f"one event of shape {energy.event_shape} gives one scalar")
    try:
        event = check_floating("x", x)
        check_value(energy, event, condition)
    except EnergyShapeError as error:
        return [_failed("shape", "ENERGY_SHAPE", str(error))]
    except EnergyDtypeError as error:
        return [shape, _failed("dtype", "ENERGY_DTYPE", str(error))]
    except NonDifferentiableEnergyError as error:
        return [shape, _failed("differentiable", "NON_DIFFERENTIABLE", str(error))]
    return [shape, _passed("dtype", f"event and energy are {event.dtype}")]


def _check_dynamic(
    energy: AbstractEnergy, x: Array, condition: Any, probe_key: Array, tail_key: Array
) -> list[CheckedItem]:
    """Checks 3 to 6, by evaluation around `x`."""
    try:
        check_gradient(energy, x, condition)
        untraceable = None
    except NonDifferentiableEnergyError as error:
        untraceable = _failed("differentiable", "NON_DIFFERENTIABLE", str(error))
    points = neighbourhood(x, probe_key)
    values, gradients = values_and_gradients(energy, points, condition, needs_gradient=untraceable is None)
    finite = _check_finite(energy, x, values[0], gradients[0])
    if finite.problem is not None:
        return [finite] if untraceable is None else [finite, untraceable]
    return [
        finite,
        untraceable or _check_derivative(energy, points, values, gradients, condition, probe_key),
        _check_coordinates(energy, points, None if untraceable else gradients, condition),
        _check_tails(energy, x, condition, tail_key),
    ]


def _check_finite(energy: AbstractEnergy, x: Array, value: Array, gradient: Array) -> CheckedItem:
    if bool(jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))):
        return _passed("finite", f"energy {float(value):.6g} and its gradient are finite at x")
    what, why = describe_nonfinite(value, gradient)
    sentence = f"`{label(energy)}` {what} at x = {show(x)}: {why}."
    return _failed("finite", "NONFINITE_ENERGY", sentence, float(value))


def _check_derivative(
    energy: AbstractEnergy, points: Array, values: Array, gradients: Array, condition: Any, key: Array
) -> CheckedItem:
    extremes = zero_gradient_range(values, gradients)
    if extremes is not None:
        sentence = (
            f"the gradient of `{label(energy)}` is exactly zero at x and around, while its energy varies from "
            f"{extremes[0]:.6g} to {extremes[1]:.6g}: look for round, floor, sign, a comparison or stop_gradient."
        )
        return _failed("differentiable", "ZERO_GRADIENT", sentence, 0.0)
    mismatch = gradient_mismatch(energy, points, gradients, condition, key)
    if mismatch is not None:
        sentence = (
            f"the gradient of `{label(energy)}` is not its derivative: {mismatch[0]:.6g} against {mismatch[1]:.6g} by "
            "finite differences, at most points tried: look for stop_gradient, round, or a wrong custom derivative."
        )
        return _failed("differentiable", "WRONG_GRADIENT", sentence, mismatch[0])
    return _passed("differentiable", "the gradient agrees with finite differences")


def _check_coordinates(energy: AbstractEnergy, points: Array, gradients: Array | None, condition: Any) -> CheckedItem:
    idle = idle_coordinates(energy, points, gradients, condition)
    size = int(np.prod(points.shape[1:]))
    if not idle:
        return _passed("coordinates", f"each of the {size} coordinates changes the energy")
    names = ", ".join(f"x[{', '.join(map(str, index))}]" for index in idle[:8]) + (", ..." if len(idle) > 8 else "")
    sentence = (
        f"{len(idle)} of {size} coordinates have no effect on `{label(energy)}`: {names}. Its density is flat there, "
        "hence improper; is event_shape right, or an index wrong?"
    )
    return _failed("coordinates", "UNUSED_COORDINATE", sentence, float(len(idle)))


def _check_tails(energy: AbstractEnergy, x: Array, condition: Any, key: Array) -> CheckedItem:
    ray = slowest_ray(energy, x, condition, key)
    if ray is None:
        return _passed("tails", "the energy grows fast enough along every ray tried")
    sentence = (
        f"`{label(energy)}` grows too slowly {ray.where}: dE/d log r ends at {ray.slope:.4g} and must exceed "
        f"{ray.bound} for exp(-E) to have a finite integral. Look for a sign error, or add a base: "
        "SumEnergy(energy, Gaussian(...))."
    )
    return _failed("tails", "POSSIBLY_IMPROPER", sentence, ray.slope)


def _passed(name: str, sentence: str) -> CheckedItem:
    return CheckedItem(name, "passed", sentence)


def _failed(name: str, code: str, sentence: str, value: float | None = None) -> CheckedItem:
    return CheckedItem(name, "FAILED", f"{code}: {sentence}", Problem(code, sentence, value=value))
