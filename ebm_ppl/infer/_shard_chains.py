"""`shard_chains`: NumPyro's chains over the devices of a mesh, on one host or several."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from ebm_ppl.sampling._mesh import chain_spec, check_mesh, place_chains, to_host


@dataclasses.dataclass(frozen=True)
class ChainMethod:
    """What `numpyro.infer.MCMC(chain_method=...)` calls; see `shard_chains`."""

    mesh: Mesh

    def __call__(self, one_chain: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`one_chain` for all chains; its arguments lead with the chain axis."""
        chains = chain_spec(self.mesh)
        mapped = jax.shard_map(jax.vmap(one_chain), mesh=self.mesh, in_specs=chains, out_specs=chains, check_vma=False)

        def all_chains(args: Any) -> Any:
            check_mesh(self.mesh, len(jax.tree.leaves(args)[0]))
            states, last_state = jax.jit(mapped)(jax.tree.map(self._place, args))
            if jax.tree.leaves(states)[0].is_fully_addressable:
                return states, last_state
            return jax.tree.map(to_host, states), last_state

        return all_chains

    def _place(self, array: Any) -> Any:
        whole = isinstance(array, jax.Array) and not array.is_fully_addressable
        return array if whole else place_chains(array, self.mesh)


def shard_chains(mesh: Mesh | Any = None) -> ChainMethod:
    """A `chain_method` for `numpyro.infer.MCMC` that spreads the chains over all devices of a mesh.

    Every device runs its chains in one program, vectorised; devices do not wait for each other. It serves every NumPyro
    kernel, `ebm.BlackJAXKernel` and NumPyro's own, and every number of chains that the devices divide. NumPyro's
    own `"parallel"` needs a device per chain and knows those of one host only.

    After `jax.distributed.initialize` the mesh spans all hosts: every process makes the same calls with the same key
    and data, and gets all draws, as NumPy arrays, so that `mcmc.get_samples()`, `mcmc.print_summary()` and
    `az.from_numpyro(mcmc)` work on each. A run goes on from `mcmc.post_warmup_state = mcmc.last_state` as usual.

    A chain's draws depend on its key only, up to rounding, not on the number of devices or hosts.

    Args:
        mesh: a `jax.sharding.Mesh`; by default all devices of all processes.

    Returns:
        The callable to give to `MCMC(..., chain_method=..., progress_bar=False)`.

    Raises:
        TypeError: not a `jax.sharding.Mesh`.
        ValueError: on `MCMC.run`, the number of devices does not divide `num_chains`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     numpyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)
        >>> mcmc = numpyro.infer.MCMC(
        ...     ebm.BlackJAXKernel(model), num_warmup=300, num_samples=300, num_chains=4,
        ...     chain_method=ebm.infer.shard_chains(), progress_bar=False,
        ... )
        >>> mcmc.run(jax.random.key(0), jnp.array([1.0, 2.0, 3.0]))
        >>> bool(jnp.abs(mcmc.get_samples()["mu"].mean() - 2.0) < 0.2)
        True

    References:
        Bradbury, Frostig, Hawkins et al. (2018). JAX: composable transformations of Python+NumPy programs.
        https://docs.jax.dev/en/latest/multi_process.html
    """
    mesh = jax.make_mesh((jax.device_count(),), ("chains",)) if mesh is None else mesh
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"`mesh` must be a jax.sharding.Mesh, e.g. jax.make_mesh((8,), ('chains',)); got {type(mesh).__name__}."
        )
    return ChainMethod(mesh)
