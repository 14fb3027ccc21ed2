"""Many wells: exponentially many modes with known weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._base import AbstractReferenceEnergy
from ebm_ppl.energies._draws import draw_events
from ebm_ppl.energies._event import check_event
from ebm_ppl.energies._rejection import rejection_sample

_LOG_NORMALIZER_WELL = 9.374541173869217
"""log of ∫ exp(-x⁴ + 6x² + x/2) dx by the trapezoidal rule (it converges geometrically here)."""


class ManyWell(AbstractReferenceEnergy):
    r"""Copies of a lopsided double well times a normal: \(E(x) = \sum_j (a_j^4 - 6 a_j^2 - a_j/2 + b_j^2/2)\).

    The event is \((a_1, b_1, a_2, b_2, ...)\). Each pair has two modes, near a = -1.70 and a = 1.75, so the law has
    \(2^{d/2}\). \(\log Z = \tfrac d2 (9.37454... + \tfrac12 \log 2\pi)\), the first number by quadrature to the last
    digit. There are no parameters.

    Args:
        dim: d, even; 32 is the customary choice.

    Raises:
        ValueError: if `dim` is not an even positive integer.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.ManyWell(dim=4)
        >>> float(energy(jnp.array([1.0, 0.0, -1.0, 2.0])))
        -8.0

    References:
        Noé, Olsson, Köhler, Wu (2019). Boltzmann generators. Science 365(6457), eaaw1147. doi:10.1126/science.aaw1147
        Midgley, Stimper, Simm, Schölkopf, Hernández-Lobato (2023). Flow annealed importance sampling bootstrap. ICLR.
        arXiv:2208.01893
    """

    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, dim: int = 32) -> None:
        if not isinstance(dim, int) or dim < 2 or dim % 2:
            raise ValueError(f"`dim` must be an even positive integer; got {dim!r}.")
        self.event_shape = (dim,)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x) of one event, in nats."""
        dtype = check_event(self, x, condition)
        well, normal = x[0::2].astype(dtype), x[1::2].astype(dtype)
        return jnp.sum(well**4 - 6 * well**2 - well / 2 + normal**2 / 2)

    @property
    def log_normalizer(self) -> Scalar:
        r"""\(\log Z\), in nats."""
        pairs = self.event_shape[0] // 2
        return jnp.asarray(pairs * (_LOG_NORMALIZER_WELL + np.log(2 * np.pi) / 2), jnp.result_type(float))

    def draw(self, key: Array) -> Array:
        """One exact draw: the wells by rejection, the rest normal."""
        well_key, normal_key = jax.random.split(key)
        pairs = self.event_shape[0] // 2
        well = jax.vmap(_draw_well)(jax.random.split(well_key, pairs))
        normal = jax.random.normal(normal_key, (pairs,), jnp.result_type(float))
        return jnp.stack([well, normal], axis=1).reshape(self.event_shape)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact independent draws, shape `(*sample_shape, dim)`, in JAX's default float dtype."""
        return draw_events(self, key, sample_shape)


def _draw_well(key: Array) -> Array:
    """One draw of exp(-x⁴ + 6x² + x/2) by rejection from two normals.

    With y = |x|, side s = ±1 and m = √3, the exponent is 9 - (y - m)² (y + m)² + s y/2. As (y + m)² >= 3 for y >= 0,
    exp(9 - 3 (y - m)² + s y/2) is an envelope: per side a normal around m + s/12 of variance 1/6, with areas in the
    ratio exp(s m). The acceptance probability is exp(-(y - m)² ((y + m)² - 3)).
    """
    dtype, centre = jnp.result_type(float), float(np.sqrt(3))

    def propose(key: Array) -> tuple[Array, Array]:
        side_key, noise_key = jax.random.split(key)
        right = jax.random.bernoulli(side_key, float(1 / (1 + np.exp(-centre))))
        side = jnp.where(right, jnp.ones((), dtype), -jnp.ones((), dtype))
        y = centre + side / 12 + jax.random.normal(noise_key, (), dtype) / float(np.sqrt(6))
        log_acceptance = -((y - centre) ** 2) * ((y + centre) ** 2 - 3)
        return side * y, jnp.where(y >= 0, log_acceptance, -jnp.inf)

    return rejection_sample(key, propose)
