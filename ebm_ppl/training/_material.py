"""What `fit` learns from: arrays in memory or batches to come, and what is held out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ebm_ppl._checks import check_count
from ebm_ppl.objectives import AbstractObjective, Batch
from ebm_ppl.training._inputs import check_batch, check_rows
from ebm_ppl.training._mesh import batch_sharding
from ebm_ppl.training._stream import Stream, batch_from, is_stream
from ebm_ppl.training._validation import Validation, split


class Material(NamedTuple):
    """Data for training, checked.

    Attributes:
        batch: all of it, or the first batch of the stream.
        stream: batches to come, or None.
        held_out: for validation, or None.
        batch_size: rows per step.
        sharding: how a batch lies on the devices of a mesh, or None.
    """

    batch: Batch
    stream: Stream | None
    held_out: Batch | None
    batch_size: int
    sharding: Any

    @property
    def num_rows(self) -> int:
        """Rows of `batch`."""
        return jax.tree.leaves(self.batch)[0].shape[0]


def gather(
    model: Any,
    objective: AbstractObjective,
    data: Any,
    condition: Any,
    *,
    validation: Any,
    batch_size: Any,
    mesh: Any,
    key: Array,
) -> Material:
    """Check and sort what the user gave; nothing is compiled before all of it has passed."""
    held_out = None
    if _is_data(validation):
        parts = validation if isinstance(validation, tuple) else (validation, None)
        held_out = check_rows(model, objective, *parts, prefix="validation ")
    if is_stream(data):
        return _gather_stream(model, objective, data, condition, validation, held_out, batch_size, mesh)
    batch = check_batch(model, objective, data, condition)
    if validation is not None and held_out is None:
        batch, held_out = split(batch, validation, key)
    num_rows = jax.tree.leaves(batch)[0].shape[0]
    batch_size = _default_size(num_rows, mesh) if batch_size is None else check_count("batch_size", batch_size)
    if batch_size > num_rows:
        raise ValueError(f"`batch_size` must be at most the number of data, {num_rows}; got {batch_size}.")
    return Material(batch, None, held_out, batch_size, batch_sharding(mesh, batch_size))


def _gather_stream(
    model: Any,
    objective: AbstractObjective,
    data: Any,
    condition: Any,
    validation: Any,
    held_out: Batch | None,
    batch_size: Any,
    mesh: Any,
) -> Material:
    if condition is not None:
        raise ValueError(
            "`condition` comes with every batch where `data` is an iterable of batches: (data, condition)."
        )
    if validation is not None and held_out is None:
        raise ValueError("no fraction of an iterable can be held out: give `validation` as data.")
    sharding = batch_sharding(mesh, None)

    def check(raw: Any) -> Batch:
        batch = batch_from(raw, lambda x, condition: check_rows(model, objective, x, condition))
        batch_sharding(mesh, jax.tree.leaves(batch)[0].shape[0])
        return batch

    def place(batch: Batch) -> Batch:
        return batch if sharding is None else jax.device_put(batch, sharding)

    stream = Stream(data, check, place)
    first = stream.peek()
    x, told = first if isinstance(first, tuple) else (first, None)
    check_batch(model, objective, x, told)
    rows = x.shape[0]
    if batch_size is not None and batch_size != rows:
        raise ValueError(f"`batch_size` is that of the iterable's batches, {rows}; got {batch_size!r}: leave it out.")
    return Material(first, stream, held_out, rows, sharding)


def make_validation(
    model: Any, judge: AbstractObjective, material: Material, every: int | None, patience: int | None, key: Array
) -> Validation | None:
    """What is evaluated, once an epoch unless told otherwise."""
    if material.held_out is None:
        return None
    if every is None and material.stream is not None:
        raise ValueError("an iterable of batches has no epochs: give `validate_every`, in steps.")
    every = max(1, material.num_rows // material.batch_size) if every is None else every
    init_key, key = jax.random.split(key)
    state = judge.init(model, material.held_out, key=init_key)
    limit = np.iinfo(np.int32).max if patience is None else patience
    counts = jnp.asarray(every, jnp.int32), jnp.asarray(limit, jnp.int32)
    return Validation(judge, material.held_out, state, key, *counts, material.batch_size)


def _is_data(validation: Any) -> bool:
    return validation is not None and (isinstance(validation, tuple) or np.ndim(validation) > 0)


def _default_size(num_rows: int, mesh: Any) -> int:
    """At most 256, and a multiple of the number of devices where there are several."""
    size = min(num_rows, 256)
    devices = getattr(getattr(mesh, "devices", None), "size", 1)
    return max(devices, size // devices * devices)
