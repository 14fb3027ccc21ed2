"""Kernels: the law that many chains reach from one point, and exact acceptance rates."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy import stats

from ebm_ppl import energies
from ebm_ppl._verify._row import Row, mean_rows
from ebm_ppl.kernels import AbstractKernel

NUM_CHAINS = 4096
CURVATURE, SCALE = 0.4, 1.2
MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[2.0, 0.6], [0.6, 1.0]])


@dataclasses.dataclass(frozen=True)
class Journey:
    """A kernel and the number of transitions after which every chain has forgotten where it began."""

    kernel: AbstractKernel
    num_steps: int


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """A kernel whose acceptance rate on N(0, I_d), started in equilibrium, is known."""

    kernel: AbstractKernel
    dim: int
    rate: float


def check_kernel(what: str, settings: list[Journey | Acceptance], key: Array) -> list[Row]:
    """Moments of an asymmetric target, of its biased law for `ULA`; acceptance rates where they are known."""
    rows = []
    for setting in settings:
        if isinstance(setting, Acceptance):
            rows += _check_acceptance(what, setting, key)
        elif setting.kernel.adjusted or what.endswith(".MCLMC"):
            rows += _check_banana(what, setting, key)
        else:
            rows += _check_langevin(what, setting, key)
    return rows


def _travel(kernel: AbstractKernel, energy: Any, start: Array, num_steps: int, key: Array) -> np.ndarray:
    """Where `NUM_CHAINS` independent chains are after `num_steps` transitions, `(chain, d)`."""
    algorithm = kernel.build(energies.log_density(energy))

    def one(key: Array) -> Array:
        init_key, step_key = jax.random.split(key)

        def step(state: Any, key: Array) -> tuple[Any, None]:
            return algorithm.step(key, state)[0], None

        state = algorithm.init(start, init_key)
        return jax.lax.scan(step, state, jax.random.split(step_key, num_steps))[0].position

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, NUM_CHAINS)), float)


def _check_banana(what: str, setting: Journey, key: Array) -> list[Row]:
    """x_1 ~ N(0, s^2), x_2 + c (x_1^2 - s^2) ~ N(0, 1): bent to one side, as no mirror image is."""
    energy = energies.Banana(CURVATURE, SCALE)
    start = jnp.asarray([1.5, -1.0], float)
    x = _travel(setting.kernel, energy, start, setting.num_steps, key)
    values = np.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, np.cos(x[:, 1]), np.sin(x[:, 1])], axis=1)
    bend = 1j * CURVATURE * SCALE**2
    wave = np.exp(bend - 0.5) / np.sqrt(1 + 2 * bend)  # E exp(i x_2)
    truth = [0.0, 0.0, SCALE**2, wave.real, wave.imag]
    return mean_rows(what, ["E x1", "E x2", "E x1^2", "E cos x2", "E sin x2"], truth, values)


def _check_langevin(what: str, setting: Journey, key: Array) -> list[Row]:
    """Without a correction the covariance on a normal law is C (I - h C^-1 / 2)^-1."""
    energy = energies.Gaussian(jnp.asarray(MEAN, float), jnp.asarray(COVARIANCE, float))
    x = _travel(setting.kernel, energy, jnp.zeros(2), setting.num_steps, key)
    step = float(np.asarray(setting.kernel.step_size))
    biased = COVARIANCE @ np.linalg.inv(np.eye(2) - step * np.linalg.inv(COVARIANCE) / 2)
    centred = x - MEAN
    products = centred[:, [0, 0, 1]] * centred[:, [0, 1, 1]]
    truth = [*MEAN, *biased[[0, 0, 1], [0, 1, 1]]]
    names = ["E x1", "E x2", "Var x1, biased", "Cov x1 x2, biased", "Var x2, biased"]
    return mean_rows(what, names, truth, np.concatenate([x, products], axis=1))


def _check_acceptance(what: str, setting: Acceptance, key: Array) -> list[Row]:
    energy = energies.Gaussian(jnp.zeros(setting.dim), jnp.eye(setting.dim))
    algorithm = setting.kernel.build(energies.log_density(energy))

    def one(key: Array) -> Array:
        draw_key, init_key, step_key = jax.random.split(key, 3)
        state, info = algorithm.step(step_key, algorithm.init(energy.draw(draw_key), init_key))
        return setting.kernel.stats(state, info)["acceptance_rate"]

    rates = jax.jit(jax.vmap(one))(jax.random.split(key, NUM_CHAINS))
    return mean_rows(what, [f"acceptance, d = {setting.dim}"], [setting.rate], np.asarray(rates)[:, None])


def langevin_rate(dim: int, step: float) -> float:
    """Mean acceptance of MALA on N(0, I_d): the log ratio is h (|x|^2 - |y|^2) / 4."""
    root = np.sqrt(step**4 + 8 * step)
    return float(2 * stats.f.sf((root + step**2) / (root - step**2), dim, dim))


def random_walk_rate(dim: int, step: float) -> float:
    """Mean acceptance of a normal random walk of standard deviation `step` on N(0, I_d)."""
    root = np.sqrt(step**4 + 4 * step**2)
    return float(2 * stats.f.sf((root + step**2) / (root - step**2), dim, dim))


def _base() -> energies.Gaussian:
    return energies.Gaussian(jnp.zeros(2), jnp.diag(jnp.asarray([2.0, 4.0], float)))


KERNELS: dict[str, Callable[[Any], list[Journey | Acceptance]]] = {
    "ULA": lambda cls: [Journey(cls(0.5), 100)],
    "MALA": lambda cls: [Journey(cls(0.4), 200), Acceptance(cls(0.5), 10, langevin_rate(10, 0.5))],
    "Barker": lambda cls: [Journey(cls(1.0), 200)],
    "RandomWalk": lambda cls: [Journey(cls(1.5), 300), Acceptance(cls(1.0), 10, random_walk_rate(10, 1.0))],
    "HMC": lambda cls: [Journey(cls(0.5, 4), 60), Acceptance(cls(1.0, 1), 10, langevin_rate(10, 0.5))],
    "NUTS": lambda cls: [Journey(cls(0.5), 30)],
    "MCLMC": lambda cls: [Journey(cls(0.2), 300)],
    "AdjustedMCLMC": lambda cls: [Journey(cls(0.6, 4), 60)],
    "GeneralizedHMC": lambda cls: [Journey(cls(0.4), 300)],
    "EllipticalSlice": lambda cls: [Journey(cls(_base()), 60)],
}
