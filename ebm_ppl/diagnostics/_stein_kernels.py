"""Stein kernels: what a kernel becomes when the Langevin-Stein operator acts on both of its arguments."""

import numpy as np
from jaxtyping import Float

KERNELS = ("imq", "gaussian")

type Points = Float[np.ndarray, "n dim"]


def stein_matrix(points: Points, scores: Points, *, kernel: str, bandwidth: float) -> Float[np.ndarray, "n n"]:
    r"""u(x_i, x_j) of every pair of points.

    With k = phi(q), q = |x - y|² and the score s,

        u = phi s(x).s(y) - 2 phi' (s(x) - s(y)).(x - y) - 2 d phi' - 4 q phi''

    where phi(q) = exp(-q / 2l²) ("gaussian") or (1 + q/l²)^(-1/2) ("imq", inverse multiquadric), l = `bandwidth`.
    """
    dim = points.shape[1]
    centred = points - points.mean(axis=0)  # distances are differences: less cancellation
    squares = np.einsum("id,id->i", centred, centred)
    distance = np.maximum(squares[:, None] + squares[None, :] - 2 * centred @ centred.T, 0.0)
    np.fill_diagonal(distance, 0.0)
    value, first, second = _radial(distance, kernel, bandwidth)
    products = scores @ centred.T
    own = np.einsum("id,id->i", scores, centred)
    cross = own[:, None] + own[None, :] - products - products.T
    return value * (scores @ scores.T) - 2 * first * cross - 2 * dim * first - 4 * distance * second


def random_features(
    points: Points,
    scores: Points,
    *,
    frequencies: Float[np.ndarray, "feature dim"],
    phases: Float[np.ndarray, " feature"],
) -> Float[np.ndarray, "n feature*dim"]:
    r"""Features psi with E psi(x).psi(y) = u(x, y) for the Gaussian kernel, over random frequencies and phases.

    psi_k = sqrt(2/K) (s cos(w_k.x + b_k) - w_k sin(w_k.x + b_k)),   w ~ N(0, I/l²),  b ~ U(0, 2 pi)
    """
    angles = points @ frequencies.T + phases
    values = np.cos(angles)[:, :, None] * scores[:, None, :] - np.sin(angles)[:, :, None] * frequencies[None, :, :]
    return np.sqrt(2 / len(phases)) * values.reshape(len(points), -1)


def _radial(
    squared_distance: Float[np.ndarray, "n n"], kernel: str, bandwidth: float
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """phi, phi' and phi'' as functions of the squared distance."""
    inverse = 1.0 / bandwidth**2
    if kernel == "gaussian":
        value = np.exp(-0.5 * inverse * squared_distance)
        return value, -0.5 * inverse * value, 0.25 * inverse**2 * value
    base = 1.0 + inverse * squared_distance
    value = base**-0.5
    return value, -0.5 * inverse * value / base, 0.75 * inverse**2 * value / base**2
