"""NumPyro and its friends promote ranks and dtypes freely: their code runs under JAX's standard rules."""

import contextlib

import jax


@contextlib.contextmanager
def standard_promotion():
    """JAX's defaults, in place of the strict rules that this package is tested under."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
