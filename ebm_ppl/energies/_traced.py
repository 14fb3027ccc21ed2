"""Energies as traced programs: what compiled code is looked up by."""

import re
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import ConcretizationTypeError, TracerArrayConversionError
from jaxtyping import Array, Float

from ebm_ppl._types import Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._data_sum import DataSumEnergy
from ebm_ppl.energies._event import compute_dtype, evaluate, event_structure
from ebm_ppl.energies._named_shapes import NamedShapes
from ebm_ppl.energies._program import Program, trace_program
from ebm_ppl.energies._trace import label
from ebm_ppl.errors import EbmPplError, EnergyDtypeError, EnergyShapeError, NonDifferentiableEnergyError


class TracedEnergy(AbstractEnergy):
    """An energy as JAX traced it: a program and the arrays it takes, those that it closed over among them.

    Two traced energies of the same program and array shapes share compiled code, however the functions behind them
    were defined; an energy whose globals, closure or attributes have changed has other arrays or another program.

    Attributes:
        program: the traced computation.
        arrays: what the function closed over, then the arrays of the energy itself.
        dtype: the dtype of events that it was traced for; others are cast on the way in and out.
        name: the energy's name in messages.
    """

    program: Program = eqx.field(static=True)
    arrays: tuple[Array, ...]
    dtype: np.dtype = eqx.field(static=True)
    name: str = eqx.field(static=True)
    event_shape: tuple[int, ...] | NamedShapes = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, x: Any, condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x; condition) of one event, in nats."""
        leaves = jax.tree.leaves(x)
        dtype = compute_dtype(leaves[0])
        leaves = [jnp.asarray(leaf, self.dtype) for leaf in leaves]
        extra = () if condition is None else (jnp.asarray(condition, self.dtype),)
        value = self.program(*self.arrays, *leaves, *extra)[0]
        return value.astype(dtype) if leaves[0].dtype != jax.tree.leaves(x)[0].dtype else value


def traced(energy: AbstractEnergy, dtype: Any = None) -> AbstractEnergy:
    """`energy`, traced anew: nothing is computed and nothing compiled.

    A `DataSumEnergy` stays one, of a traced prior and a traced term, because kernels on minibatches ask for its data.

    Args:
        energy: any energy; one that is traced already is returned as it is.
        dtype: of the events; JAX's default floating dtype where None.

    Raises:
        EnergyShapeError: the energy is not a floating scalar of one event.
        EnergyDtypeError: `dtype`, or the energy's value, is not float32 or float64.
        NonDifferentiableEnergyError: the energy calls NumPy, or needs the value of its event in Python.
    """
    chosen: Any = np.dtype(jnp.result_type(float) if dtype is None else dtype)
    if chosen == np.float64:  # NumPy's default, which JAX has only where it is enabled
        chosen = np.dtype(jnp.result_type(float))
    if chosen not in (np.float32, np.float64):
        raise EnergyDtypeError(
            f"positions must be float32 or float64; got {chosen}: sums and accept ratios lose their digits in half "
            "precision. Cast the positions; the energy may compute in half precision inside."
        )
    if isinstance(energy, TracedEnergy):
        return energy
    if isinstance(energy, DataSumEnergy):
        parts = traced(energy.prior, chosen), traced(energy.term, chosen)
        return eqx.tree_at(lambda e: (e.prior, e.term), energy, parts)
    arrays, static = eqx.partition(energy, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    event = event_structure(energy.event_shape, chosen)
    event_leaves, event_treedef = jax.tree.flatten(event)
    condition = () if energy.condition_shape is None else (jax.ShapeDtypeStruct(energy.condition_shape, chosen),)
    ends = len(leaves), len(leaves) + len(event_leaves)

    def function(*flat: Array) -> Array:
        own = eqx.combine(jax.tree.unflatten(structure, flat[: ends[0]]), static)
        x = jax.tree.unflatten(event_treedef, flat[ends[0] : ends[1]])
        return evaluate(own, x, flat[ends[1]] if condition else None)

    arguments = (*leaves, *event_leaves, *condition)
    program, constants = _explained(energy, function, arguments, range(*ends))
    return TracedEnergy(
        program=program,
        arrays=(*constants, *leaves),
        dtype=np.dtype(chosen),
        name=label(energy),
        event_shape=energy.event_shape,
        support=energy.support,
        condition_shape=energy.condition_shape,
    )


def _explained(energy: AbstractEnergy, function: Any, arguments: tuple[Any, ...], differentiate: range) -> Any:
    """`trace_program`, with errors that name the energy and what to change."""
    name = label(energy)
    try:
        return trace_program(function, *arguments, differentiate=differentiate)
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
        shape = dict(energy.event_shape) if isinstance(energy.event_shape, Mapping) else energy.event_shape
        raise EnergyShapeError(
            f"`{name}` fails on one event of shape {shape}, its event_shape: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut at 200 characters."""
    line = str(error).strip().split("\n", maxsplit=1)[0]
    return line if len(line) <= 200 else line[:200] + "..."
