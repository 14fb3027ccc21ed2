"""Batches spread over devices, parameters on each of them."""

from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def batch_sharding(mesh: Any, batch_size: int | None) -> NamedSharding | None:
    """Rows over all axes of the mesh.

    Raises:
        TypeError: not a `jax.sharding.Mesh`.
        ValueError: the number of devices does not divide `batch_size`.
        NotImplementedError: the mesh spans several processes.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"`mesh` must be a jax.sharding.Mesh, e.g. jax.make_mesh((8,), ('batch',)); got {type(mesh).__name__}."
        )
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise NotImplementedError(
            "`fit` spreads over the devices of one process: make the mesh of jax.local_devices()."
        )
    if batch_size is not None and batch_size % mesh.devices.size:
        raise ValueError(
            f"`batch_size` must be a multiple of the mesh's {mesh.devices.size} devices; got {batch_size}."
        )
    automatic = Mesh(mesh.devices, mesh.axis_names)  # the compiler, not the objective's code, places what comes between
    return NamedSharding(automatic, PartitionSpec(mesh.axis_names))


def replicate(tree: Any, sharding: NamedSharding | None) -> Any:
    """The same arrays on every device of the mesh."""
    if sharding is None:
        return tree
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, NamedSharding(sharding.mesh, PartitionSpec())), rest)


def spread(batch: Any, sharding: NamedSharding | None) -> Any:
    """Inside a compiled program: rows over the devices."""
    return batch if sharding is None else jax.lax.with_sharding_constraint(batch, sharding)


def hold(params: Any, sharding: NamedSharding | None) -> Any:
    """Inside a compiled program: parameters whole on every device."""
    if sharding is None:
        return params
    return jax.lax.with_sharding_constraint(params, NamedSharding(sharding.mesh, PartitionSpec()))
