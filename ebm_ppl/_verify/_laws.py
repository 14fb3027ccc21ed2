"""What is known of a kernel: the law that many chains reach from one point, and its acceptance rate."""

import dataclasses
import itertools
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


def travel(kernel: AbstractKernel, energy: Any, start: Array, num_steps: int, key: Array) -> np.ndarray:
    """Where `NUM_CHAINS` independent chains are after `num_steps` transitions, `(chain, d)`."""
    algorithm = kernel.build(energies.log_density(energy))

    def one(key: Array) -> Array:
        init_key, step_key = jax.random.split(key)

        def step(state: Any, key: Array) -> tuple[Any, None]:
            return algorithm.step(key, state)[0], None

        state = algorithm.init(start, init_key)
        return jax.lax.scan(step, state, jax.random.split(step_key, num_steps))[0].position

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, NUM_CHAINS)), float)


@dataclasses.dataclass(frozen=True)
class Bent:
    """A kernel that leaves its target alone, and after how many transitions every chain has forgotten its start."""

    kernel: AbstractKernel
    num_steps: int

    def rows(self, what: str, key: Array) -> list[Row]:
        """x_1 ~ N(0, s^2), x_2 + c (x_1^2 - s^2) ~ N(0, 1): bent to one side, as no mirror image is."""
        energy = energies.Banana(CURVATURE, SCALE)
        x = travel(self.kernel, energy, jnp.asarray([1.5, -1.0], float), self.num_steps, key)
        values = np.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, np.cos(x[:, 1]), np.sin(x[:, 1])], axis=1)
        bend = 1j * CURVATURE * SCALE**2
        wave = np.exp(bend - 0.5) / np.sqrt(1 + 2 * bend)  # E exp(i x_2)
        truth = [0.0, 0.0, SCALE**2, wave.real, wave.imag]
        return mean_rows(what, ["E x1", "E x2", "E x1^2", "E cos x2", "E sin x2"], truth, values)


@dataclasses.dataclass(frozen=True)
class Biased:
    """An unadjusted kernel whose law on a quadratic energy, bias included, is normal with this mean and covariance."""

    kernel: AbstractKernel
    num_steps: int
    energy: Any
    mean: np.ndarray
    covariance: np.ndarray

    def rows(self, what: str, key: Array) -> list[Row]:
        """Means, variances and covariances."""
        dim = len(self.mean)
        x = travel(self.kernel, self.energy, jnp.zeros(dim), self.num_steps, key)
        centred = x - self.mean
        pairs = list(itertools.combinations_with_replacement(range(dim), 2))
        products = np.stack([centred[:, i] * centred[:, j] for i, j in pairs], axis=1)
        names = [f"E x{i + 1}" for i in range(dim)] + [f"Cov x{i + 1} x{j + 1}, biased" for i, j in pairs]
        truth = [*self.mean, *[self.covariance[i, j] for i, j in pairs]]
        return mean_rows(what, names, truth, np.concatenate([x, products], axis=1))


@dataclasses.dataclass(frozen=True)
class Spins:
    """A kernel on three coupled spins in a field, whose eight states can be counted."""

    kernel: AbstractKernel
    num_steps: int

    def rows(self, what: str, key: Array) -> list[Row]:
        """Means of the spins and of the product of all."""

        def energy(s: Any) -> Any:
            return -(s[0] * s[1] / 2 - 0.7 * s[1] * s[2] + 0.4 * s[0])

        states = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))
        weights = np.exp([-energy(state) for state in states])
        x = travel(self.kernel, energies.FunctionEnergy(energy, (3,)), jnp.ones(3), self.num_steps, key)

        def functions(s: np.ndarray) -> np.ndarray:
            return np.concatenate([s, s[:, :1] * s[:, 1:2], s[:, 1:2] * s[:, 2:]], axis=1)

        truth = weights @ functions(states) / weights.sum()
        return mean_rows(what, ["E s1", "E s2", "E s3", "E s1 s2", "E s2 s3"], truth, functions(x))


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """A kernel whose acceptance rate on N(0, I_d), started in equilibrium, is known."""

    kernel: AbstractKernel
    dim: int
    rate: float

    def rows(self, what: str, key: Array) -> list[Row]:
        """The rate."""
        energy = energies.Gaussian(jnp.zeros(self.dim), jnp.eye(self.dim))
        algorithm = self.kernel.build(energies.log_density(energy))

        def one(key: Array) -> Array:
            draw_key, init_key, step_key = jax.random.split(key, 3)
            state, info = algorithm.step(step_key, algorithm.init(energy.draw(draw_key), init_key))
            return self.kernel.stats(state, info)["acceptance_rate"]

        rates = jax.jit(jax.vmap(one))(jax.random.split(key, NUM_CHAINS))
        return mean_rows(what, [f"acceptance, d = {self.dim}"], [self.rate], np.asarray(rates)[:, None])


def langevin_rate(dim: int, step: float) -> float:
    """Mean acceptance of MALA on N(0, I_d): the log ratio is h (|x|^2 - |y|^2) / 4."""
    root = np.sqrt(step**4 + 8 * step)
    return float(2 * stats.f.sf((root + step**2) / (root - step**2), dim, dim))


def random_walk_rate(dim: int, step: float) -> float:
    """Mean acceptance of a normal random walk of standard deviation `step` on N(0, I_d)."""
    root = np.sqrt(step**4 + 4 * step**2)
    return float(2 * stats.f.sf((root + step**2) / (root - step**2), dim, dim))
