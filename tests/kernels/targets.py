"""Targets with known moments, and the one test that every kernel has to pass on them and every broken one to fail."""

import dataclasses
from collections.abc import Callable

import arviz_stats
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from scipy import integrate, stats

import ebm_ppl as ebm
from tests.statistics import StatisticalError, assert_mean_close

MAX_RHAT = 1.01


@dataclasses.dataclass(frozen=True)
class Target:
    """An energy, its exact first and second moments, and a Gaussian factor of it for elliptical slice sampling.

    `to_user` maps draws to the coordinates that the moments are of; `start` are starting positions, or None for the
    driver's own.
    """

    name: str
    energy: ebm.AbstractEnergy
    mean: np.ndarray
    second: np.ndarray
    base: ebm.energies.Gaussian
    cross: float | None = None
    to_user: Callable = lambda x: x
    start: np.ndarray | None = None

    def functions(self, positions):
        """(x, x^2) of every coordinate and, where known, x_1 x_2: `(chain, draw, function)`."""
        x = np.asarray(self.to_user(np.asarray(positions, float)))
        cross = [] if self.cross is None else [x[..., :1] * x[..., 1:2]]
        return np.concatenate([x, x**2, *cross], axis=-1)

    @property
    def truth(self):
        return np.concatenate([self.mean, self.second, [] if self.cross is None else [self.cross]])


def judge(target, positions, alpha):
    """Raise StatisticalError unless all moments agree at level `alpha` and all chains agree with each other."""
    values = target.functions(positions)
    if not np.isfinite(values).all():
        raise StatisticalError(f"{target.name}: {(~np.isfinite(values)).sum()} values are not finite")
    assert_mean_close(values, target.truth, alpha=alpha, what=target.name)
    rhat = arviz_stats.base.array_stats.rhat
    worst = max(float(rhat(values[..., i])) for i in range(values.shape[-1]))
    if not worst < MAX_RHAT:
        raise StatisticalError(f"{target.name}: R-hat {worst:.3f} (limit {MAX_RHAT})")
    return worst


def gaussian(dim, condition_number=100.0):
    """A normal law with eigenvalues from 1 to `condition_number` along random directions."""
    rng = np.random.default_rng(dim)
    directions, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    covariance = directions @ np.diag(np.geomspace(1.0, condition_number, dim)) @ directions.T
    covariance = (covariance + covariance.T) / 2
    mean = rng.normal(size=dim)
    wider = covariance + np.outer(covariance[0], covariance[0]) / covariance[0, 0]  # as a datum on x_1 would narrow it
    return Target(
        f"normal, d = {dim}",
        ebm.energies.Gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(covariance, jnp.float32)),
        mean,
        np.diagonal(covariance) + mean**2,
        ebm.energies.Gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(wider, jnp.float32)),
        cross=covariance[0, 1] + mean[0] * mean[1],
    )


def banana(curvature=0.1, scale=3.0):
    energy = ebm.energies.Banana(curvature=curvature, scale=scale)
    base = ebm.energies.Gaussian(jnp.zeros(2), jnp.diag(jnp.array([scale**2, 9.0])))
    return Target("banana", energy, np.zeros(2), np.array([scale**2, 1 + 2 * curvature**2 * scale**4]), base, cross=0.0)


class ReparametrisedFunnel(ebm.AbstractEnergy):
    """The funnel in the coordinates v / s, x / exp(v / 2): its energy there, with the Jacobian of the map."""

    funnel: ebm.energies.Funnel
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, z, condition=None):
        v = self.funnel.scale * z[0]
        x = jnp.concatenate([v[None], jnp.exp(v / 2) * z[1:]])
        return self.funnel(x) - v * (z.size - 1) / 2


def funnel(dim=3, scale=1.0):
    energy = ReparametrisedFunnel(ebm.energies.Funnel(dim, scale), (dim,))

    def to_user(z):
        return np.concatenate([scale * z[..., :1], np.exp(scale * z[..., :1] / 2) * z[..., 1:]], axis=-1)

    second = np.array([scale**2, *[np.exp(scale**2 / 2)] * (dim - 1)])
    base = ebm.energies.Gaussian(jnp.zeros(dim), 1.5 * jnp.eye(dim))
    return Target("funnel", energy, np.zeros(dim), second, base, cross=0.0, to_user=to_user)


def student_t(freedom=5.0):
    base = ebm.energies.Gaussian(jnp.ones(2), 4 * jnp.eye(2))
    second = np.full(2, freedom / (freedom - 2) + 1)
    return Target("Student t", ebm.energies.StudentT(freedom, jnp.ones(2)), np.ones(2), second, base, cross=1.0)


def double_well(barrier=2.0):
    def weight(x):
        return np.exp(-barrier * (x**2 - 1) ** 2)

    second = integrate.quad(lambda x: x**2 * weight(x), -4, 4)[0] / integrate.quad(weight, -4, 4)[0]
    base = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    return Target("double well", ebm.energies.DoubleWell(barrier, 2), np.zeros(2), np.full(2, second), base, cross=0.0)


def truncated_energy(x):
    """N(-2, 1) on x_1 < 1, NaN energy and gradient beyond; x_2 standard normal."""
    return (x[0] + 2.0) ** 2 / 2 + x[1] ** 2 / 2 + jnp.where(x[0] < 1, 0.0, jnp.nan)


def truncated():
    law = stats.truncnorm(-np.inf, 3, loc=-2)
    mean, second = np.array([law.mean(), 0.0]), np.array([law.var() + law.mean() ** 2, 1.0])
    base = ebm.energies.Gaussian(jnp.array([-2.0, 0.0]), 2 * jnp.eye(2))
    return Target("truncated", ebm.FunctionEnergy(truncated_energy, (2,)), mean, second, base, cross=0.0)


def log_gamma_energy(x):
    """exp(x_i) ~ Gamma(2), independent: asymmetric, so that a sign error shows."""
    return jnp.sum(jnp.exp(x) - 2.0 * x)


def log_gamma():
    mean, variance = 0.42278433509846714, 0.6449340668482264  # digamma(2), trigamma(2)
    base = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    energy = ebm.FunctionEnergy(log_gamma_energy, (2,))
    return Target("log gamma", energy, np.full(2, mean), np.full(2, variance + mean**2), base, cross=mean**2)
