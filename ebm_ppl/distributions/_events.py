"""The events of an `EnergyDistribution` one by one, each with its own energy: what auxiliary chains run on."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro  # noqa: F401  (before any of its submodules)
from jaxtyping import Array
from numpyro.distributions import Distribution
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution

from ebm_ppl._types import Scalar
from ebm_ppl.distributions._batching import lead, map_batch
from ebm_ppl.distributions._energy_distribution import EnergyDistribution
from ebm_ppl.distributions._evaluation import evaluate_one
from ebm_ppl.distributions._support import move_inside, support_mask
from ebm_ppl.energies import AbstractEnergy


class EventDensity(eqx.Module):
    """x -> -E(x; condition) of one event, -inf outside the support: the log density without log Z."""

    arrays: Any
    condition: Array | None
    static: AbstractEnergy = eqx.field(static=True)
    support: Constraint = eqx.field(static=True)
    sampler: Callable[..., Any] | None = eqx.field(static=True)

    def __call__(self, x: Array) -> Scalar:
        """Log density up to the constant log Z."""
        inside = support_mask(self.support, x)
        safe = x if inside is None else move_inside(self.support, inside, x)
        value = -evaluate_one(self.static, self.arrays, self.condition, safe)
        return value if inside is None else jnp.where(inside, value, -jnp.inf)

    def sample(self, key: Array) -> Array:
        """An exact draw, from the distribution's own sampler."""
        if self.sampler is None:
            raise ValueError("this density was made without a sampler.")
        return self.sampler(eqx.combine(self.arrays, self.static), key, self.condition)


def unwrap(distribution: Distribution) -> tuple[EnergyDistribution, Any]:
    """The energy inside `expand`, `to_event` and `mask`, and the mask of its events (None: all count).

    Raises:
        NotImplementedError: it is wrapped in something else, or its support has bounds that are arrays.
    """
    mask = None
    while isinstance(distribution, ExpandedDistribution | Independent | MaskedDistribution):
        if isinstance(distribution, Independent) and mask is not None:
            mask = mask.reshape(mask.shape + (1,) * distribution.reinterpreted_batch_ndims)
        if isinstance(distribution, MaskedDistribution):
            own = jnp.asarray(distribution._mask)
            mask = own if mask is None else mask & own
        distribution = distribution.base_dist
    if not isinstance(distribution, EnergyDistribution):
        raise NotImplementedError(
            f"an energy inside {type(distribution).__name__}: only expand, to_event and mask are known here."
        )
    if distribution._static_support is None:
        raise NotImplementedError("an energy whose support has arrays as bounds: give the bounds as numbers.")
    return distribution, mask


def map_events(
    function: Callable[..., Any],
    distributions: tuple[EnergyDistribution, ...],
    value: Array,
    key: Array,
    *,
    exact: bool,
) -> Any:
    """`function(densities, key, x)` for every event x of `value`, with the densities of that event.

    Args:
        function: what to do for one event.
        distributions: of one and the same structure, e.g. under two values of the latent variables.
        value: `(*batch, *event)`.
        key: a key, split over the events.
        exact: whether the densities bring their sampler.

    Returns:
        What `function` returns, every leaf with the batch axes in front.
    """
    first = distributions[0]
    shape = jnp.broadcast_shapes(first._total_shape(), lead(value, first.event_dim))
    value = jnp.broadcast_to(value, shape + first.event_shape)
    keys = jax.random.split(key, shape) if shape else key
    operands = [distribution._operands() for distribution in distributions]
    samplers = [distribution._draw_one(()) if exact else None for distribution in distributions]

    def one(leaves: list[list[Array]], key: Array, x: Array) -> Any:
        densities = []
        for own, (_, treedef), distribution, sampler in zip(leaves, operands, distributions, samplers, strict=True):
            arrays, condition = jax.tree.unflatten(treedef, own)
            support: Any = distribution._static_support
            densities.append(EventDensity(arrays, condition, distribution._static, support, sampler))
        return function(tuple(densities), key, x)

    cores = (*(core for distribution in distributions for core in distribution._core_ndims), 0, first.event_dim)
    return map_batch(one, shape, ([leaves for leaves, _ in operands], keys, value), cores)
