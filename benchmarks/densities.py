"""Densities in the plane on which generative models are compared, each exact: `sample`, and E = -log p.

25 Gaussians as in Schröder et al. (2023), eight as in Grathwohl et al. (2019). The pinwheel turns by an angle that
grows with the distance from the centre, which leaves areas as they are, so that its density is known; the common
one turns by the distance along the arm, nearly the same. The checkerboard is uniform on every other of 4 x 4 squares.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import ebm_ppl as ebm
from ebm_ppl.energies import GaussianMixture


class Pinwheel(ebm.AbstractReferenceEnergy):
    """Five arms: N((2, 0), diag(.6, .2)^2), turned by 2 pi k / 5 + exp(|x| / 2) / 4."""

    arms: int = eqx.field(static=True, default=5)
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,))
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, x, condition=None):
        angle = self._angles(x)
        along = jnp.cos(angle) * x[0] + jnp.sin(angle) * x[1]
        across = -jnp.sin(angle) * x[0] + jnp.cos(angle) * x[1]
        arms = -(((along - 2) / 0.6) ** 2 + (across / 0.2) ** 2) / 2
        return -jax.nn.logsumexp(arms) + math.log(self.arms * 2 * math.pi * 0.6 * 0.2)

    @property
    def log_normalizer(self):
        return jnp.zeros(())

    def sample(self, key, sample_shape=()):
        arm_key, noise_key = jax.random.split(key)
        arm = jax.random.randint(arm_key, sample_shape, 0, self.arms).astype(float)
        along, across = jnp.moveaxis(jax.random.normal(noise_key, (*sample_shape, 2)), -1, 0)
        along, across = 2 + 0.6 * along, 0.2 * across
        turn = jnp.exp(jnp.sqrt(along**2 + across**2) / 2) / 4 + 2 * math.pi / self.arms * arm
        return jnp.stack(
            [jnp.cos(turn) * along - jnp.sin(turn) * across, jnp.sin(turn) * along + jnp.cos(turn) * across], -1
        )

    def _angles(self, x):
        return jnp.exp(jnp.sqrt(jnp.sum(x**2)) / 2) / 4 + 2 * math.pi * jnp.arange(self.arms, dtype=float) / self.arms


class Checkerboard(ebm.AbstractReferenceEnergy):
    """Uniform on the squares (i, j) of side 2 in [-4, 4]^2 with i + j even."""

    event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,))
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, x, condition=None):
        square = jnp.floor(x / 2)
        inside = jnp.all(jnp.abs(x) <= 4) & (jnp.sum(square) % 2 == 0)
        return jnp.where(inside, math.log(32), jnp.inf)

    @property
    def log_normalizer(self):
        return jnp.zeros(())

    def sample(self, key, sample_shape=()):
        row_key, column_key, place_key = jax.random.split(key, 3)
        row = jax.random.randint(row_key, sample_shape, -2, 2)
        column = 2 * jax.random.randint(column_key, sample_shape, -1, 1) + row % 2
        return 2 * jnp.stack([row, column], -1).astype(float) + 2 * jax.random.uniform(place_key, (*sample_shape, 2))


def _mixture(means: Any, deviation: float) -> GaussianMixture:
    return GaussianMixture(
        jnp.full(len(means), 1 / len(means)), means, jnp.tile(deviation**2 * jnp.eye(2), (len(means), 1, 1))
    )


def grid_of_gaussians():
    """5 x 5, spacing 2 / 1.414, standard deviation .2 / 1.414."""
    line = jnp.arange(-2.0, 3.0)
    return _mixture(2 / 1.414 * jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2), 0.2 / 1.414)


def ring_of_gaussians():
    """Eight, on the circle of radius 4 / 1.414, standard deviation .5 / 1.414."""
    angle = jnp.arange(8.0) * math.pi / 4
    return _mixture(4 / 1.414 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1), 0.5 / 1.414)


DENSITIES = {
    "25 Gaussians": grid_of_gaussians,
    "eight Gaussians": ring_of_gaussians,
    "pinwheel": Pinwheel,
    "checkerboard": Checkerboard,
}
