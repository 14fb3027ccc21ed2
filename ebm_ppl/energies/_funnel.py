"""Neal's funnel."""

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


class Funnel(AbstractReferenceEnergy):
    r"""Neal's funnel: \(v \sim N(0, s^2)\), \(x_i \sim N(0, e^v)\) for i = 1, ..., d - 1; s = `scale`, d = `dim`.

    \(E(v, x) = v^2 / (2 s^2) + \tfrac{d-1}2 v + \tfrac12 e^{-v} \sum_i x_i^2\); the event is \((v, x_1, ...)\), and
    \(\log Z = \tfrac d2 \log 2\pi + \log s\).

    Some texts drop the middle term. That is another law (v is then N(s²(d-1)/2, s²), the funnel seen from its mouth)
    with \(\log Z\) larger by \(s^2 (d-1)^2 / 8\).

    Args:
        dim: d >= 2, v included.
        scale: s > 0, the standard deviation of v.

    Raises:
        ValueError: if `dim` < 2 or `scale` is not a positive scalar.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Funnel(dim=3, scale=2.0)
        >>> float(energy(jnp.array([0.0, 1.0, 1.0])))
        1.0

    References:
        Neal (2003). Slice sampling. Annals of Statistics 31(3), 705-767. doi:10.1214/aos/1056562461
    """

    scale: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, dim: int = 10, scale: Any = 3.0) -> None:
        self.event_shape = (check_count("dim", dim, 2),)
        self.scale = as_positive("scale", scale, 0)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x) of one event, in nats."""
        dtype = check_event(self, x, condition)
        v, rest = x[0].astype(dtype), x[1:].astype(dtype)
        standardised = rest * jnp.exp(-v / 2)  # squared afterwards: e^{-v} would overflow at twice the v
        return (v / self.scale.astype(dtype)) ** 2 / 2 + v * (rest.size / 2) + jnp.sum(standardised**2) / 2

    @property
    def log_normalizer(self) -> Scalar:
        r"""\(\log Z = \tfrac d2 \log 2\pi + \log s\), in nats."""
        return jnp.log(self.scale) + self.event_shape[0] / 2 * float(np.log(2 * np.pi))

    def draw(self, key: Array) -> Array:
        """One exact draw: v, then the rest given v."""
        noise = jax.random.normal(key, self.event_shape, self.scale.dtype)
        v = self.scale * noise[0]
        return jnp.concatenate([v[None], jnp.exp(v / 2) * noise[1:]])

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact independent draws, shape `(*sample_shape, dim)`."""
        return draw_events(self, key, sample_shape)
