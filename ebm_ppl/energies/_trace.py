"""Whether JAX can trace and differentiate an energy: found out by abstract evaluation, before anything is compiled."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.errors import ConcretizationTypeError, TracerArrayConversionError

from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import check_event, evaluate
from ebm_ppl.errors import EbmPplError, EnergyDtypeError, EnergyShapeError, NonDifferentiableEnergyError


def check_value(energy: AbstractEnergy, x: Any, condition: Any = None) -> None:
    """One event has the declared shape and the energy is a floating scalar of it; `x` may be abstract."""
    check_event(energy, x, condition)
    if x.dtype not in (jnp.float32, jnp.float64):
        raise EnergyDtypeError(
            f"positions must be float32 or float64; got {x.dtype}: sums and accept ratios lose their digits in half "
            "precision. Cast the positions; the energy may compute in half precision inside."
        )
    name = label(energy)
    try:
        _abstract(evaluate, energy, x, condition)
    except EbmPplError:
        raise
    except TracerArrayConversionError as error:
        raise NonDifferentiableEnergyError(
            f"`{name}` calls NumPy (or SciPy) on its event, so JAX cannot differentiate it: use jax.numpy."
        ) from error
    except ConcretizationTypeError as error:
        raise NonDifferentiableEnergyError(
            f"`{name}` needs the value of its event in Python (an `if`, `float()`, `int()` or a data-dependent shape), "
            "so JAX cannot trace it: use jnp.where or jax.lax.cond."
        ) from error
    except (TypeError, ValueError) as error:
        if not re.search(r"shape|dimension|broadcast", str(error)):
            raise
        raise EnergyShapeError(
            f"`{name}` fails on one event of shape {x.shape}, its event_shape: {_first_line(error)}"
        ) from error


def check_gradient(energy: AbstractEnergy, x: Any, condition: Any = None) -> None:
    """JAX has a reverse-mode derivative of the energy; call after `check_value`."""
    try:
        _abstract(jax.grad(evaluate, argnums=1), energy, x, condition)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise NonDifferentiableEnergyError(
            f"`{label(energy)}` has no reverse-mode derivative: {_first_line(error)} "
            "Loops need jax.lax.scan; callbacks need jax.custom_vjp."
        ) from error


def label(energy: AbstractEnergy) -> str:
    """How messages call an energy: its class, and the function where it wraps one."""
    known = getattr(energy, "name", None)  # a traced energy has the name of what was traced
    if isinstance(known, str):
        return known
    name = type(energy).__name__
    fn = getattr(energy, "fn", None)
    return f"{name}({getattr(fn, '__name__', type(fn).__name__)})" if fn is not None else name


def _abstract(fn: Any, energy: AbstractEnergy, x: Any, condition: Any) -> Any:
    return eqx.filter_eval_shape(fn, energy, jax.ShapeDtypeStruct(x.shape, x.dtype), condition)


def _first_line(error: Exception) -> str:
    line = str(error).strip().split("\n", maxsplit=1)[0]
    return line if len(line) <= 200 else line[:200] + "..."
