"""Objectives whose gradient is not that of a value: contrastive divergence and the minimax game."""

from collections.abc import Callable

import numpy as np

from ebm_ppl._verify._oracles import expectation, log_normal, slopes, softplus


def langevin_moments(theta: np.ndarray, step: float, num_steps: int) -> tuple[float, float]:
    """E x and E x^2 of unadjusted Langevin chains on a x^2 / 2 + b x that start at data from N(1, 1)."""
    a, b = theta
    mean, variance = 1.0, 1.0
    for _ in range(num_steps):
        mean = (1 - step * a) * mean - step * b
        variance = (1 - step * a) ** 2 * variance + 2 * step
    return mean, variance + mean**2


def contrast_slope(step: float, num_steps: int) -> Callable[[np.ndarray], np.ndarray]:
    """Gradient of mean E(data) - mean E(negatives), the negatives being constants."""

    def slope(theta: np.ndarray) -> np.ndarray:
        mean, square = langevin_moments(theta, step, num_steps)
        return np.array([(2 - square) / 2, 1 - mean])

    return slope


def contrast_value(step: float, num_steps: int) -> Callable[[np.ndarray], float]:
    """Mean E(data) - mean E(negatives)."""

    def value(theta: np.ndarray) -> float:
        return float(theta @ contrast_slope(step, num_steps)(theta))

    return value


def game_value(theta: np.ndarray) -> float:
    """Data N(1, 1), E = a x^2 / 2 + b x + c, flow N(location, softplus(raw)^2), one draw per datum."""
    a, b, c, location, raw = theta
    scale = float(softplus(raw))

    def log_odds(x: np.ndarray) -> np.ndarray:
        return -(a * x**2 / 2 + b * x + c) - log_normal(x, location, scale)

    of_data = expectation(lambda x: softplus(-log_odds(x)), (1.0, 1.0))
    return of_data + expectation(lambda x: softplus(log_odds(x)), (location, scale))


def game_slope(theta: np.ndarray) -> np.ndarray:
    """The energy's descent and the flow's ascent."""
    return slopes(game_value, theta) * np.array([1, 1, 1, -1, -1])
