"""The twisted normal, or banana."""

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
from ebm_ppl.energies._parameters import as_parameter, as_positive


class Banana(AbstractReferenceEnergy):
    r"""A normal law bent along a parabola.

    \(E(x) = x_1^2 / (2 s^2) + \tfrac12 (x_2 + c\, x_1^2 - c\, s^2)^2 + \tfrac12 \sum_{i>2} x_i^2\), c = `curvature`,
    s = `scale`. The bend preserves volume, so \(\log Z = \tfrac d2 \log 2\pi + \log s\). Every mean is 0;
    \(\mathrm{Var}\, x_2 = 1 + 2 c^2 s^4\).

    Args:
        curvature: c, per unit of x; 0.03 is Haario's moderate twist, 0.1 his strong one.
        scale: s > 0, the standard deviation of x₁.
        dim: d >= 2.

    Raises:
        ValueError: if `scale` is not a positive scalar, `curvature` not a finite one, or `dim` < 2.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Banana(curvature=0.03, scale=10.0)
        >>> float(energy(jnp.array([0.0, 3.0])))
        0.0

    References:
        Haario, Saksman, Tamminen (1999). Adaptive proposal distribution for random walk Metropolis algorithm.
        Computational Statistics 14(3), 375-395. doi:10.1007/s001800050022
    """

    curvature: Float[Array, ""]
    scale: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, curvature: Any = 0.03, scale: Any = 10.0, dim: int = 2) -> None:
        self.curvature = as_parameter("curvature", curvature, 0)
        self.scale = as_positive("scale", scale, 0)
        self.event_shape = (check_count("dim", dim, 2),)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x) of one event, in nats."""
        dtype = check_event(self, x, condition)
        curvature, scale = self.curvature.astype(dtype), self.scale.astype(dtype)
        event = x.astype(dtype)
        straight = event[1] + curvature * (event[0] ** 2 - scale**2)
        return ((event[0] / scale) ** 2 + straight**2 + jnp.sum(event[2:] ** 2)) / 2

    @property
    def log_normalizer(self) -> Scalar:
        r"""\(\log Z = \tfrac d2 \log 2\pi + \log s\), in nats."""
        return jnp.log(self.scale) + self.event_shape[0] / 2 * float(np.log(2 * np.pi))

    def draw(self, key: Array) -> Array:
        """One exact draw: a normal one, bent."""
        dtype = self.scale.dtype
        noise = jax.random.normal(key, self.event_shape, dtype)
        first = self.scale * noise[0]
        second = noise[1] - self.curvature.astype(dtype) * (first**2 - self.scale**2)
        return jnp.concatenate([first[None], second[None], noise[2:]])

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact independent draws, shape `(*sample_shape, dim)`."""
        return draw_events(self, key, sample_shape)
