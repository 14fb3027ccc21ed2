"""Expectations under normal laws by Gauss-Hermite quadrature in NumPy, and slopes of what they give."""

from collections.abc import Callable

import numpy as np


def normal_grid(*laws: tuple[float, float], points: int = 100) -> tuple[np.ndarray, ...]:
    """Nodes of independent normal variables, each `(mean, standard deviation)`, and at last their weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    weights = weights / weights.sum()
    axes = np.meshgrid(*[mean + deviation * nodes for mean, deviation in laws], indexing="ij")
    weight = np.meshgrid(*[weights] * len(laws), indexing="ij")
    return (*(axis.ravel() for axis in axes), np.prod([part.ravel() for part in weight], axis=0))


def softplus(x: np.ndarray | float) -> np.ndarray:
    """log(1 + exp(x))."""
    return np.asarray(np.logaddexp(0.0, x))


def log_normal(x: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    """Log density of a normal law."""
    return -(((x - mean) / deviation) ** 2) / 2 - np.log(deviation * np.sqrt(2 * np.pi))


def slopes(function: Callable[[np.ndarray], float], at: np.ndarray, spacing: float = 1e-4) -> np.ndarray:
    """Central differences of order 4: exact to about 1e-11 for the smooth functions here."""
    shifts = np.eye(len(at)) * spacing
    return np.array(
        [
            (8 * (function(at + s) - function(at - s)) - (function(at + 2 * s) - function(at - 2 * s))) / (12 * spacing)
            for s in shifts
        ]
    )


def expectation(function: Callable[..., np.ndarray], *laws: tuple[float, float], points: int = 100) -> float:
    """E function(x_1, ..., x_k) for independent normal x_i."""
    *nodes, weights = normal_grid(*laws, points=points)
    return float(np.sum(weights * function(*nodes)))
