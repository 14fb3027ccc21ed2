"""Rejection sampling: exact draws under a proven envelope."""

from collections.abc import Callable

import jax
from jaxtyping import Array


def rejection_sample(key: Array, propose: Callable[[Array], tuple[Array, Array]]) -> Array:
    """The first accepted candidate.

    Args:
        key: JAX key.
        propose: key -> (candidate, log of its acceptance probability); the latter must be <= 0: the envelope's proof.
            A NaN is accepted, so that NaN parameters give NaN draws instead of an endless loop.
    """

    def attempt(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        next_key, candidate_key, accept_key = jax.random.split(carry[0], 3)
        candidate, log_acceptance = propose(candidate_key)
        log_uniform = -jax.random.exponential(accept_key, dtype=log_acceptance.dtype)
        return next_key, candidate, ~(log_uniform >= log_acceptance)

    first = attempt((key, key, key))
    return jax.lax.while_loop(lambda carry: ~carry[2], attempt, first)[1]
