"""The Rosenbrock law."""

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


class Rosenbrock(AbstractReferenceEnergy):
    r"""Rosenbrock's valley as a density: \(E(x) = a (x_1 - 1)^2 + b \sum_{i<d} (x_{i+1} - x_i^2)^2\).

    Given \(x_i\), the next coordinate is \(N(x_i^2, 1/(2b))\): hence exact draws and
    \(\log Z = \tfrac12 \log(\pi/a) + \tfrac{d-1}2 \log(\pi/b)\). In two dimensions this is Rosenbrock's function
    (a = 1, b = 100); in more it is the "hybrid" chain of Pagani et al., *not* the optimisation benchmark, which
    repeats the first term in each coordinate and whose Z is unknown. The tails grow doubly exponentially along the
    chain: beyond about five coordinates float32 overflows.

    Args:
        a: a > 0.
        b: b > 0.
        dim: d >= 2.

    Raises:
        ValueError: if `a` or `b` is not a positive scalar, or `dim` < 2.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Rosenbrock(1.0, 100.0)
        >>> print(f"{energy(jnp.array([-1.2, 1.0])):.3f}")
        24.200

    References:
        Rosenbrock (1960). An automatic method for finding the greatest or least value of a function. The Computer
        Journal 3(3), 175-184. doi:10.1093/comjnl/3.3.175
        Pagani, Wiegand, Nadarajah (2022). An n-dimensional Rosenbrock distribution for Markov chain Monte Carlo
        testing. Scandinavian Journal of Statistics 49(2), 657-680. doi:10.1111/sjos.12532
    """

    a: Float[Array, ""]
    b: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, a: Any = 1 / 20, b: Any = 5.0, dim: int = 2) -> None:
        self.a = as_positive("a", a, 0)
        self.b = as_positive("b", b, 0)
        self.event_shape = (check_count("dim", dim, 2),)

    def __call__(self, x: Float[Array, "..."], condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x) of one event, in nats."""
        dtype = check_event(self, x, condition)
        event = x.astype(dtype)
        chain = jnp.sum((event[1:] - event[:-1] ** 2) ** 2)
        return self.a.astype(dtype) * (event[0] - 1) ** 2 + self.b.astype(dtype) * chain

    @property
    def log_normalizer(self) -> Scalar:
        r"""\(\log Z = \tfrac12 \log(\pi/a) + \tfrac{d-1}2 \log(\pi/b)\), in nats."""
        others = self.event_shape[0] - 1
        return (
            float((1 + others) * np.log(np.pi)) - jnp.log(self.a) - others * jnp.log(self.b).astype(self.a.dtype)
        ) / 2

    def draw(self, key: Array) -> Array:
        """One exact draw: each coordinate given the one before."""
        dtype = self.a.dtype
        noise = jax.random.normal(key, self.event_shape, dtype)
        first = 1 + noise[0] / jnp.sqrt(2 * self.a)
        width = 1 / jnp.sqrt(2 * self.b.astype(dtype))

        def step(previous: Array, xi: Array) -> tuple[Array, Array]:
            following = previous**2 + width * xi
            return following, following

        return jnp.concatenate([first[None], jax.lax.scan(step, first, noise[1:])[1]])

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact independent draws, shape `(*sample_shape, dim)`."""
        return draw_events(self, key, sample_shape)
