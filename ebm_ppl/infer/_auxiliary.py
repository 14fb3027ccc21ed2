"""Auxiliary data of the exchange algorithm: what an energy, at proposed parameters, would have generated."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ebm_ppl.distributions._energy_distribution import EnergyDistribution
from ebm_ppl.distributions._events import EventDensity, map_events
from ebm_ppl.energies._coordinates import Coordinates
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import with_step_size


class EnergySite(NamedTuple):
    """An observed energy whose log Z varies: its distribution, its data, and which events count (None: all)."""

    distribution: EnergyDistribution
    data: Array
    mask: Array | None

    def counted(self, values: Array, *, event_dim: int = 0) -> Array:
        """`values` of the events, 0 for those that are masked out: these may hold anything, NaN too."""
        if self.mask is None:
            return values
        batch = jnp.broadcast_to(self.mask, values.shape[: values.ndim - event_dim])
        return jnp.where(batch.reshape(batch.shape + (1,) * event_dim), values, jnp.zeros_like(values))

    def mean(self, values: Array) -> Array:
        """Mean of `values` over the events that count."""
        if self.mask is None:
            return jnp.mean(values)
        number = jnp.sum(jnp.broadcast_to(self.mask, values.shape), dtype=values.dtype)
        return jnp.sum(self.counted(values)) / number


class Auxiliary(NamedTuple):
    """What one proposal drew.

    Attributes:
        log_ratio: sum over events of log f_old(x) - log f_new(x), along the bridge where there is one.
        values: the draws before any bridging, by site; 0 for events that are masked out.
        acceptance_rate: of the inner transitions, mean over the events that count; NaN where draws are exact.
        nonfinite: whether an energy was NaN or infinite on the way.
    """

    log_ratio: Array
    values: dict[str, Array]
    acceptance_rate: Array
    nonfinite: Array


@dataclasses.dataclass(frozen=True)
class ExchangePotential:
    """The potential energy without log Z, and the means to make up for it.

    Args:
        potential_fn: unconstrained latent values -> negative log joint density, every log Z left out.
        sites: unconstrained latent values -> the energy sites that lack a log Z.
        inner_kernel: what moves the auxiliary data; None: they are drawn exactly by the distribution's sampler.
        num_inner_steps: inner transitions.
        num_bridges: intermediate energies on the way back from the proposed parameters to the old ones.
    """

    potential_fn: Callable[[Any], Array]
    sites: Callable[[Any], dict[str, EnergySite]]
    inner_kernel: AbstractKernel | None
    num_inner_steps: int
    num_bridges: int

    def __call__(self, z: Any) -> Array:
        """The potential without any log Z."""
        return self.potential_fn(z)

    def data(self, z: Any) -> dict[str, Array]:
        """The data that auxiliary data are compared with."""
        sites = self.sites(z).items()
        return {name: site.counted(site.data, event_dim=site.distribution.event_dim) for name, site in sites}

    def draw(self, key: Array, old: Any, new: Any, step_size: Array) -> Auxiliary:
        """Auxiliary data at the latent values `new`, and what they say of the ratio Z(new) / Z(old)."""
        before, after = self.sites(old), self.sites(new)
        total, values, rates, bad = jnp.zeros_like(step_size), {}, [], jnp.zeros((), bool)
        for index, (name, site) in enumerate(after.items()):

            def one(densities: tuple[EventDensity, ...], key: Array, x: Array) -> tuple[Array, ...]:
                return self._one_event(densities[0], densities[1], key, x, step_size)

            log_ratio, drawn, rate = map_events(
                one,
                (before[name].distribution, site.distribution),
                site.data,
                jax.random.fold_in(key, index),
                exact=self.inner_kernel is None,
            )
            log_ratio = site.counted(log_ratio)
            total += jnp.sum(log_ratio).astype(total.dtype)
            bad |= ~jnp.all(jnp.isfinite(log_ratio))
            values[name] = site.counted(drawn, event_dim=site.distribution.event_dim)
            rates.append(site.mean(rate).astype(total.dtype))
        return Auxiliary(total, values, jnp.mean(jnp.stack(rates)), bad)

    def _one_event(
        self, old: EventDensity, new: EventDensity, key: Array, x: Array, step_size: Array
    ) -> tuple[Array, Array, Array]:
        """Log ratio, auxiliary event and inner acceptance rate of ONE event x of the data."""
        draw_key, bridge_key = jax.random.split(key)
        if self.inner_kernel is None:
            drawn, rate = new.sample(draw_key).astype(x.dtype), jnp.full((), jnp.nan, x.dtype)
        else:
            drawn, rate = self._chain(new, draw_key, x, step_size, self.num_inner_steps)
        first = old(drawn) - new(drawn)
        if not self.num_bridges:
            return first, drawn, rate

        def cross(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, log_ratio = carry
            between = _Bridge(old, new, (i + 1).astype(x.dtype) / (self.num_bridges + 1))
            x, _ = self._chain(between, jax.random.fold_in(bridge_key, i), x, step_size, 1)
            return x, log_ratio + old(x) - new(x)

        _, log_ratio = jax.lax.fori_loop(0, self.num_bridges, cross, (drawn, first))
        return log_ratio / (self.num_bridges + 1), drawn, rate

    def _chain(self, density: Any, key: Array, x: Array, step_size: Array, num_steps: int) -> tuple[Array, Array]:
        """The event after `num_steps` inner transitions from x, and their mean acceptance rate (NaN where undefined).

        The chain moves in the real coordinates of the support, the Jacobian included.

        The step size is one for all: tuned chain by chain, it would depend on where a chain starts, which is at the
        data, and those that start far out would forget least.
        """
        if self.inner_kernel is None:
            raise ValueError("bridges need an `inner_kernel`.")
        kernel = with_step_size(self.inner_kernel, step_size.astype(x.dtype))
        coordinates = Coordinates(x.shape, density.support)

        def log_density(z: Array) -> Array:
            return coordinates.log_density(lambda event: -density(event), z)

        algorithm = kernel.build(log_density)

        def step(i: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
            state, total = carry
            state, info = algorithm.step(jax.random.fold_in(key, i), state)
            rate = kernel.stats(state, info).get("acceptance_rate", jnp.full_like(total, jnp.nan))
            return state, total + rate.astype(x.dtype)

        radius_key, init_key = jax.random.split(jax.random.fold_in(key, num_steps))
        start: Any = algorithm.init(coordinates.to_coordinates(x, radius_key), init_key)
        state, total = jax.lax.fori_loop(0, num_steps, step, (start, jnp.zeros((), x.dtype)))
        return coordinates.to_event(state.position), total / num_steps


class _Bridge:
    """The geometric mean of two densities: log f = (1 - weight) log f_new + weight log f_old."""

    def __init__(self, old: EventDensity, new: EventDensity, weight: Array) -> None:
        self.old, self.new, self.weight, self.support = old, new, weight, new.support

    def __call__(self, x: Array) -> Array:
        return (1 - self.weight) * self.new(x) + self.weight * self.old(x)
