"""Chains spread over devices and hosts, with JAX's own runtime."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array


def check_mesh(mesh: Any, num_chains: int) -> Mesh | None:
    """`mesh` as it is; its devices must divide the chains.

    Raises:
        TypeError: not a `jax.sharding.Mesh`.
        ValueError: the number of devices does not divide `num_chains`.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"`mesh` must be a jax.sharding.Mesh, e.g. jax.make_mesh((8,), ('chains',)); got {type(mesh).__name__}."
        )
    devices = math.prod(mesh.devices.shape)
    if num_chains % devices:
        raise ValueError(f"`num_chains` must be a multiple of the mesh's {devices} devices; got {num_chains}.")
    return mesh


def chain_spec(mesh: Mesh) -> PartitionSpec:
    """Chains over all axes of the mesh."""
    return PartitionSpec(mesh.axis_names)


def place_chains(array: Array, mesh: Mesh | None) -> Array:
    """An array that leads with the chain axis, on the devices that hold its chains. Works across processes."""
    if mesh is None:
        return array
    sharding = NamedSharding(mesh, chain_spec(mesh))
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = place_chains(jax.random.key_data(array), mesh)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def agreed(count: int, stop: bool, mesh: Mesh | None) -> tuple[int, bool]:  # noqa: FBT001
    """The same number of steps on every process of a mesh, and whether any of them wants to stop.

    Each process times its own chunks and hears its own Ctrl-C; but all must run the same programs.
    """
    if mesh is None or len({device.process_index for device in mesh.devices.flat}) == 1:
        return count, stop
    told = multihost_utils.process_allgather(np.array([count, stop], np.int32))
    return int(told[:, 0].min()), bool(told[:, 1].any())


def to_host(array: Array) -> np.ndarray:
    """A whole array as NumPy, also where other processes hold parts of it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
