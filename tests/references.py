"""Independent references of the contract table: written-out NumPy and SciPy, BlackJAX's own kernels, quadrature."""

from collections.abc import Callable
from typing import Any

import blackjax
import jax
import numpy as np
from blackjax.sgmcmc.gradients import grad_estimator
from scipy import integrate, signal, stats

from tests.contract import DATA, STEP, TARGET, skewed, square_distance

COVARIANCE = np.array([[1.0, 0.3], [0.3, 0.5]])
NORMAL = stats.multivariate_normal([1.0, -0.5], COVARIANCE)
LOG_2PI = np.log(2 * np.pi)


def _silu(z: Any) -> Any:
    return z / (1 + np.exp(-z))


def mlp(energy: Any, x: Any, y: Any) -> Any:
    hidden = np.concatenate([x.ravel(), [] if y is None else y.ravel()])
    *layers, head = energy.mlp.layers
    for layer in layers:
        hidden = _silu(np.asarray(layer.weight) @ hidden + np.asarray(layer.bias))
    return np.asarray(head.weight)[0] @ hidden


def convolutional(energy: Any, x: Any, y: Any) -> Any:
    hidden = x.reshape((-1, *x.shape[-2:]))
    for layer, projection in zip(energy.convolutions, energy.projections, strict=True):
        maps = [
            sum(
                signal.correlate2d(plane, kernel, "same")[::2, ::2]
                for plane, kernel in zip(hidden, kernels, strict=True)
            )
            for kernels in np.asarray(layer.weight)
        ]
        shift = np.asarray(projection.weight) @ y
        hidden = _silu(np.stack(maps) + np.asarray(layer.bias) + shift[:, None, None])
    return np.asarray(energy.head.weight)[0] @ hidden.sum((1, 2))


def many_well(energy: Any, x: Any, y: Any) -> Any:
    a, b = x[::2], x[1::2]
    return np.sum(a**4 - 6 * a**2 - a / 2 + b**2 / 2)


def funnel(energy: Any, x: Any, y: Any) -> Any:
    law = stats.norm.logpdf(x[0], 0, 3) + stats.norm.logpdf(x[1:], 0, np.exp(x[0] / 2)).sum()
    return -law - np.log(2 * np.pi) * 2 - np.log(3)


def gaussian_formula(energy: Any, x: Any, y: Any) -> Any:
    return -NORMAL.logpdf(x) - LOG_2PI - np.linalg.slogdet(COVARIANCE)[1] / 2


def from_blackjax(build: Callable[..., Any], needs_key: bool = False, **settings: Any) -> Callable[..., dict[str, Any]]:
    def transition(key: Any, x: Any) -> dict[str, Any]:
        with jax.numpy_dtype_promotion("standard"):  # BlackJAX mixes booleans and floats
            algorithm = build(TARGET, **settings)
            state, info = algorithm.step(key, algorithm.init(x, key) if needs_key else algorithm.init(x))
        found = {"position": state.position, "logdensity": state.logdensity}
        return found | ({"acceptance_rate": info.acceptance_rate} if hasattr(info, "acceptance_rate") else {})

    return transition


def after_a_split(transition: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The same transition with the second half of the key; the first half drew the length of the trajectory."""
    return lambda key, x: transition(jax.random.split(key)[1], x)


def langevin(key: Any, x: Any) -> dict[str, Any]:
    noise = np.asarray(jax.random.normal(key, x.shape, x.dtype))
    x = np.asarray(x)
    return {"position": x - STEP * (1 - np.exp(-x)) + np.sqrt(2 * STEP) * noise}


def _estimator() -> Any:
    """BlackJAX's own estimate of the gradient of a sum over data."""
    return grad_estimator(lambda x: -skewed(x), lambda x, y: -square_distance(x, y), len(DATA))


def _batch(key: Any) -> Any:
    return DATA[np.asarray(jax.random.randint(key, (2,), 0, len(DATA)))]


def stochastic_langevin(key: Any, x: Any) -> dict[str, Any]:
    move_key, _ = jax.random.split(key)
    return {"position": blackjax.sgld(_estimator()).step(move_key, x, _batch(key), STEP)}


def stochastic_hamiltonian(key: Any, x: Any) -> dict[str, Any]:
    move_key, batch_key, _ = jax.random.split(key, 3)
    theirs = blackjax.sghmc(_estimator(), num_integration_steps=3, alpha=0.5)
    return {"position": theirs.step(move_key, x, _batch(batch_key), STEP)}


def annealed_langevin(key: Any, x: Any) -> dict[str, Any]:
    """The first of two inverse temperatures, 0.5 and 1: twice the step, half the gradient."""
    noise = np.asarray(jax.random.normal(key, x.shape, x.dtype))
    x = np.asarray(x)
    return {"position": x - STEP * (1 - np.exp(-x)) + np.sqrt(4 * STEP) * noise}


def elliptical_slice(key: Any, x: Any) -> dict[str, Any]:
    """The textbook loop with base N(0, I), so that log L(x) = -sum(x + exp(-x)) + |x|^2 / 2."""
    base_key, height_key, bracket_key, angle_key = jax.random.split(key, 4)
    x, other = np.asarray(x), np.asarray(jax.random.normal(base_key, x.shape))

    def log_likelihood(x: Any) -> Any:
        return np.sum(-x - np.exp(-x) + x**2 / 2)

    height = log_likelihood(x) + np.log1p(-float(jax.random.uniform(height_key)))
    upper = 2 * np.pi * float(jax.random.uniform(bracket_key))
    lower = upper - 2 * np.pi
    for trial in range(100):
        angle = lower + (upper - lower) * float(jax.random.uniform(jax.random.fold_in(angle_key, trial)))
        proposal = x * np.cos(angle) + other * np.sin(angle)
        if log_likelihood(proposal) >= height:
            return {"position": proposal}
        lower, upper = (angle, upper) if angle < 0 else (lower, angle)
    raise AssertionError("the bracket did not shrink to the current point")


def binary_gibbs(key: Any, x: Any) -> dict[str, Any]:
    """Coordinate after coordinate, -1 or 1 with the odds of the density of `contract.skewed`."""
    uniform, x = np.asarray(jax.random.uniform(key, x.shape)), np.array(x)
    for i, u in enumerate(uniform):
        odds = np.exp(-(1 + np.exp(-1.0)) + (-1 + np.exp(1.0)))
        x[i] = 1.0 if u < odds / (1 + odds) else -1.0
    return {"position": x}


def nce_loss() -> float:
    """E softplus(-G) + 2 E softplus(G), data N(0, 1), noise N(0, 2), noise_ratio 2, by quadrature."""

    def integrand(x: float) -> float:
        data, noise = stats.norm.pdf(x), 2 * stats.norm.pdf(x, 0, np.sqrt(2))
        return data * np.log1p(noise / data) + noise * np.log1p(data / noise)

    return integrate.quad(integrand, -12, 12)[0]


def normal_pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes x, y and weights: expectations over two independent standard normals (Gauss-Hermite)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    weights = weights / weights.sum()
    return nodes[:, None], nodes[None, :], np.outer(weights, weights)


def ranking_loss() -> float:
    """-E log(w(x) / (w(x) + w(y))), x ~ N(0, 1), y ~ N(0, 2), w(u) = exp(u^2/4 - u^2/2)."""
    x, y, weights = normal_pairs()
    return float(np.sum(weights * np.logaddexp(0, (x**2 - 2 * y**2) / 4)))


def neighbor_loss(scale: float) -> float:
    """E softplus((x^2 - y^2) / 2), x ~ N(0, 1), y = x + scale * e."""
    x, e, weights = normal_pairs()
    return float(np.sum(weights * np.logaddexp(0, (x**2 - (x + scale * e) ** 2) / 2)))
