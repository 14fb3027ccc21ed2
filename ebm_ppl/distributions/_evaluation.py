"""Tracing an energy on one abstract event: is it a scalar, and what does it capture from its surroundings?"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ebm_ppl._types import Scalar
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._event import evaluate
from ebm_ppl.energies._trace import check_value
from ebm_ppl.errors import EbmPplError


def evaluate_one(static: AbstractEnergy, arrays: Any, condition: Array | None, x: Array) -> Scalar:
    """The energy of ONE event, its arrays apart from the rest."""
    return evaluate(eqx.combine(arrays, static), x, condition)


def trace_energy(static: AbstractEnergy, arrays: Any, condition: Any) -> list[Any]:
    """Check the energy on one abstract event, and return the arrays that it captures beside its own.

    Args:
        static: the energy without its arrays.
        arrays: the arrays, of one batch element, as `jax.ShapeDtypeStruct`.
        condition: one condition as `jax.ShapeDtypeStruct`, or None.

    Raises:
        EnergyShapeError: it cannot be evaluated on such an event, or does not return a scalar.
        EnergyDtypeError: it returns something that is not floating-point.
        NonDifferentiableEnergyError: it needs concrete values.
    """
    event = jax.ShapeDtypeStruct(tuple(static.event_shape), event_dtype(arrays))

    def one(arrays: Any, condition: Any, x: Array) -> Scalar:
        return evaluate_one(static, arrays, condition, x)

    try:
        return list(jax.make_jaxpr(one)(arrays, condition, event).consts)
    except EbmPplError:
        raise
    except (TypeError, ValueError):
        check_value(eqx.combine(arrays, static), event, condition)  # says what is wrong, in this package's words
        raise


def event_dtype(arrays: Any) -> Any:
    """The dtype of the energy's own floating parameters; JAX's default without any, or in half precision."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(arrays) if leaf.dtype in (jnp.float32, jnp.float64)]
    return dtypes[0] if dtypes else jnp.result_type(float)
