"""The symmetric double well."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._base import AbstractReferenceEnergy
from ebm_ppl.energies._draws import draw_events
from ebm_ppl.energies._event import check_event
from ebm_ppl.energies._parameters import as_positive
from ebm_ppl.energies._rejection import rejection_sample


class DoubleWell(AbstractReferenceEnergy):
    r"""Independent double wells: \(E(x) = b \sum_i (x_i^2 - 1)^2\), b = `barrier`.

    Minima at ±1 in each coordinate, barrier of height b at 0. Per coordinate
    \(Z = \tfrac\pi2 e^{-b/2} [I_{-1/4}(b/2) + I_{1/4}(b/2)]\), computed by Gauss-Legendre quadrature to the precision
    of the dtype (JAX lacks Bessel functions of fractional order); it may be differentiated in b.

    Args:
        barrier: b > 0, in nats.
        dim: number of coordinates.

    Raises:
        ValueError: if `barrier` is not a positive scalar or `dim` not a positive integer.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.DoubleWell(barrier=2.0)
        >>> float(energy(jnp.array([0.5])))
        1.125
        >>> print(f"{energy.log_normalizer:.5f}")
        0.34424

    References:
        Kramers (1940). Brownian motion in a field of force and the diffusion model of chemical reactions. Physica 7(4),
        284-304. doi:10.1016/S0031-8914(40)90098-2
    """

    barrier: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, barrier: Any = 2.0, dim: int = 1) -> None:
        self.barrier = as_positive("barrier", barrier, 0)
        self.event_shape = (check_count("dim", dim),)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x) of one event, in nats."""
        dtype = check_event(self, x, condition)
        return self.barrier.astype(dtype) * jnp.sum((x.astype(dtype) ** 2 - 1) ** 2)

    @property
    def log_normalizer(self) -> Scalar:
        r"""\(\log Z\) of all coordinates together, in nats.

        The integrand is below e⁻⁴⁰ outside the nodes' interval; the interval follows b but is not differentiated,
        because the integral does not depend on it.
        """
        barrier = self.barrier
        nodes, weights = (jnp.asarray(values, barrier.dtype) for values in _gauss_legendre())
        reach = jax.lax.stop_gradient(jnp.sqrt(40 / barrier))
        lower, upper = jnp.sqrt(jnp.maximum(1 - reach, 0)), jnp.sqrt(1 + reach)
        x = lower + (upper - lower) * nodes
        half = jax.nn.logsumexp(-barrier * (x**2 - 1) ** 2, b=weights) + jnp.log(upper - lower)
        return self.event_shape[0] * (half + float(np.log(2)))

    def draw(self, key: Array) -> Array:
        """One exact draw by rejection, each coordinate by itself; at least half of the proposals are accepted."""
        return jax.vmap(self._draw_coordinate)(jax.random.split(key, *self.event_shape))

    def _draw_coordinate(self, key: Array) -> Array:
        """Rejection from the better of two normal envelopes, with u = x² and y = |x|.

        High barriers: (u - 1)² = (y - 1)² (y + 1)² >= (y - 1)² for y >= 0: a normal around ±1.
        Low ones: (u - 1)² >= 2c (u - 1) - c² for any c: a normal around 0; c minimises its area.
        """
        barrier = self.barrier
        c = (jnp.sqrt(1 + 1 / barrier) - 1) / 2
        low = barrier < 0.6

        def propose(key: Array) -> tuple[Array, Array]:
            noise_key, sign_key = jax.random.split(key)
            noise = jax.random.normal(noise_key, (), barrier.dtype)
            sign = jax.random.rademacher(sign_key, (), barrier.dtype)
            y = jnp.where(low, noise / jnp.sqrt(4 * barrier * c), 1 + noise / jnp.sqrt(2 * barrier))
            around_one = jnp.where(y >= 0, -barrier * (y - 1) ** 2 * y * (y + 2), -jnp.inf)
            return sign * y, jnp.where(low, -barrier * (y**2 - 1 - c) ** 2, around_one)

        return rejection_sample(key, propose)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact independent draws, shape `(*sample_shape, dim)`."""
        return draw_events(self, key, sample_shape)


@functools.cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(96)
    return (nodes + 1) / 2, weights / 2
