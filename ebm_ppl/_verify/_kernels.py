"""Kernels: with which settings each is compared with what is known of it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ebm_ppl import energies
from ebm_ppl._verify._laws import Acceptance, Bent, Biased, Spins, langevin_rate, random_walk_rate
from ebm_ppl._verify._row import Row

MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[2.0, 0.6], [0.6, 1.0]])
DATA = np.array([-1.0, 0.5, 0.7, 1.1, 2.0, 2.5])
BATCH_SIZE = 3

type Known = Acceptance | Bent | Biased | Spins


def check_kernel(what: str, settings: list[Known], key: Array) -> list[Row]:
    """All that is known of a kernel."""
    return [row for setting in settings for row in setting.rows(what, key)]


def _langevin(kernel: Any, num_steps: int) -> Biased:
    """Without a correction the covariance on a normal law is C (I - h C^-1 / 2)^-1."""
    energy = energies.Gaussian(jnp.asarray(MEAN, float), jnp.asarray(COVARIANCE, float))
    step = float(np.asarray(kernel.step_size))
    biased = COVARIANCE @ np.linalg.inv(np.eye(2) - step * np.linalg.inv(COVARIANCE) / 2)
    return Biased(kernel, num_steps, energy, MEAN, biased)


def _posterior() -> tuple[energies.DataSumEnergy, float, float, float]:
    """Energy, mean and precision of a normal posterior, and the variance of its gradient by a few data."""
    prior = energies.Gaussian(jnp.zeros(1), jnp.eye(1))
    term = energies.FunctionEnergy(_half_squared_distance, (1,), condition_shape=(1,))
    posterior = energies.DataSumEnergy(prior, term, jnp.asarray(DATA, float)[:, None])
    precision = 1 + len(DATA)
    noise = len(DATA) ** 2 * float(np.var(DATA)) / BATCH_SIZE
    return posterior, float(np.sum(DATA)) / precision, float(precision), noise


def _half_squared_distance(x: Array, y: Array) -> Array:
    return jnp.sum((x - y) ** 2) / 2


def _noisy_langevin(cls: Any) -> Biased:
    """The variance is (1 / p) (1 + h V / 2) / (1 - h p / 2)."""
    posterior, mean, precision, noise = _posterior()
    step = 0.05
    variance = (1 + step * noise / 2) / (1 - step * precision / 2) / precision
    return Biased(cls(step, batch_size=BATCH_SIZE), 60, posterior, np.array([mean]), np.array([[variance]]))


def _noisy_trajectory(cls: Any) -> Biased:
    """Position and velocity are linear in where they began, in the batch's fault and in the noise of every step."""
    posterior, mean, precision, noise = _posterior()
    step, friction, length = 0.05, 2.0, 8
    turn = np.array([[1.0, step], [-step * precision, 1 - friction * step]])
    power = [np.linalg.matrix_power(turn, i) for i in range(length + 1)]
    from_batch = -step * sum(power[i][0, 1] for i in range(length))
    from_noise = 2 * friction * step * sum(power[i][0, 1] ** 2 for i in range(length))
    spread = power[length][0, 1] ** 2 + noise * from_batch**2 + from_noise
    variance = spread / (1 - power[length][0, 0] ** 2)
    kernel = cls(step, friction, num_integration_steps=length, batch_size=BATCH_SIZE)
    return Biased(kernel, 80, posterior, np.array([mean]), np.array([[variance]]))


def _base() -> energies.Gaussian:
    return energies.Gaussian(jnp.zeros(2), jnp.diag(jnp.asarray([2.0, 4.0], float)))


KERNELS: dict[str, Callable[[Any], list[Known]]] = {
    "ULA": lambda cls: [_langevin(cls(0.5), 100)],
    "MALA": lambda cls: [Bent(cls(0.4), 200), Acceptance(cls(0.5), 10, langevin_rate(10, 0.5))],
    "Barker": lambda cls: [Bent(cls(1.0), 200)],
    "RandomWalk": lambda cls: [Bent(cls(1.5), 300), Acceptance(cls(1.0), 10, random_walk_rate(10, 1.0))],
    "HMC": lambda cls: [Bent(cls(0.5, 4), 60), Acceptance(cls(1.0, 1), 10, langevin_rate(10, 0.5))],
    "NUTS": lambda cls: [Bent(cls(0.5), 30)],
    "MCLMC": lambda cls: [Bent(cls(0.2), 300)],  # its bias at this step is far below the error of the comparison
    "AdjustedMCLMC": lambda cls: [Bent(cls(0.6, 4), 60)],
    "GeneralizedHMC": lambda cls: [Bent(cls(0.4), 300)],
    "EllipticalSlice": lambda cls: [Bent(cls(_base()), 60)],
    "AnnealedLangevin": lambda cls: [_langevin(cls([0.25, 1.0], 0.5, over="inverse_temperature", num_steps=20), 120)],
    "SGLD": lambda cls: [_noisy_langevin(cls)],
    "SGHMC": lambda cls: [_noisy_trajectory(cls)],
    "BinaryGibbs": lambda cls: [Spins(cls(), 40)],
}
