"""Parameters of energies: floating arrays, validated where they are concrete, cast to the dtype of the event."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ebm_ppl._checks import check_floating


def as_parameter(name: str, value: Any, ndim: int | None = None) -> Array:
    """`value` as a finite floating array with `ndim` axes; integers become floats; tracers pass unharmed."""
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
    if jnp.issubdtype(value.dtype, jnp.integer):
        value = value.astype(jnp.result_type(float))
    array = check_floating(name, value)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} axes; got shape {array.shape}.")
    host = concrete(array)
    if host is not None and not np.all(np.isfinite(host)):
        raise ValueError(f"`{name}` must be finite; got {value!r}.")
    return array


def as_positive(name: str, value: Any, ndim: int | None = None) -> Array:
    """`as_parameter`, and every concrete entry positive."""
    array = as_parameter(name, value, ndim)
    host = concrete(array)
    if host is not None and not np.all(host > 0):
        raise ValueError(f"`{name}` must be positive; got {value!r}.")
    return array


def concrete(array: Array) -> np.ndarray | None:
    """The values in float64 on the host, or None while tracing."""
    return None if isinstance(array, Tracer) else np.asarray(array, np.float64)


def cast_floating(tree: Any, dtype: np.dtype) -> Any:
    """Every floating array leaf of `tree` in `dtype`; everything else untouched."""

    def cast(leaf: Any) -> Any:
        floating = isinstance(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if floating else leaf

    return jax.tree.map(cast, tree)


def check_covariance(name: str, covariance: Array, size: int) -> None:
    """One `(size, size)` symmetric positive-definite matrix; values are looked at only where concrete."""
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"`{name}` must be a square matrix; got shape {covariance.shape}.")
    if covariance.shape[0] != size:
        raise ValueError(f"`{name}` must have shape ({size}, {size}) to match the mean; got {covariance.shape}.")
    matrix = concrete(covariance)
    if matrix is None:
        return
    eps = float(jnp.finfo(covariance.dtype).eps)
    asymmetry = np.max(np.abs(matrix - matrix.T))
    if asymmetry > 8 * eps * np.max(np.abs(matrix)):
        raise ValueError(f"`{name}` must be symmetric; got an asymmetry of {asymmetry:.3g}.")
    eigenvalues = np.linalg.eigvalsh(matrix)
    if eigenvalues[0] <= size * eps * abs(eigenvalues[-1]):
        raise ValueError(
            f"`{name}` must be positive definite; got eigenvalues from {eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g} "
            f"(singular in {covariance.dtype})."
        )


def whitening_matrix(covariance: Float[Array, "dim dim"]) -> Float[Array, "dim dim"]:
    """Lower-triangular W with W'W = covariance⁻¹: the inverse of the covariance's Cholesky factor."""
    factor = jnp.linalg.cholesky(covariance)
    identity = jnp.eye(covariance.shape[0], dtype=covariance.dtype)
    return jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
