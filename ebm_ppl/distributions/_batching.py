"""Batch dimensions: leading axes that line up from the right, each of full size or of size one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def lead(leaf: Array, core_ndim: int) -> tuple[int, ...]:
    """The batch part of a leaf's shape: all axes before the last `core_ndim`."""
    return leaf.shape[: leaf.ndim - core_ndim]


def pad_lead(leaf: Array, core_ndim: int, batch_ndim: int) -> Array:
    """`leaf` with size-one axes in front, so that it has `batch_ndim` batch axes.

    A later stacking (NumPyro's `scan` stacks every array of a distribution) then puts the new axis at the same
    place in all of them.
    """
    missing = batch_ndim - (leaf.ndim - core_ndim)
    return leaf.reshape((1,) * missing + leaf.shape)


def map_batch(
    function: Callable[..., Any],
    batch_shape: tuple[int, ...],
    operands: tuple[Any, ...],
    core_ndims: tuple[int, ...],
    *,
    out_axis: int = 0,
) -> Any:
    """`function(*operands of one event)` for every index of `batch_shape`: vmapped, never summed.

    Args:
        function: what to do for one event.
        batch_shape: the shape to map over.
        operands: pytrees; the batch axes of each leaf line up with the end of `batch_shape`.
        core_ndims: for every leaf of `operands`, in order, how many axes belong to one event.
        out_axis: where the batch axes go in the result.
    """
    leaves, treedef = jax.tree.flatten(operands)
    leads = [lead(leaf, core) for leaf, core in zip(leaves, core_ndims, strict=True)]

    def one(*leaves: Array) -> Any:
        return function(*jax.tree.unflatten(treedef, leaves))

    mapped = one
    for i, size in enumerate(reversed(batch_shape)):
        axes = tuple(0 if i < len(dims) and dims[-1 - i] != 1 else None for dims in leads)
        mapped = jax.vmap(mapped, in_axes=axes, out_axes=out_axis, axis_size=size)
    # Axes of size one are not mapped but shared: an enumerated site has many of them.
    squeezed = [
        leaf.reshape(tuple(size for size in dims if size != 1) + leaf.shape[len(dims) :])
        for leaf, dims in zip(leaves, leads, strict=True)
    ]
    return mapped(*squeezed)


def total_shape(batch_shape: tuple[int, ...], leaves: list[Array], core_ndims: tuple[int, ...]) -> tuple[int, ...]:
    """`batch_shape` together with the batch axes that the leaves have by now."""
    leads = [lead(leaf, core) for leaf, core in zip(leaves, core_ndims, strict=True)]
    return jnp.broadcast_shapes(batch_shape, *leads)
