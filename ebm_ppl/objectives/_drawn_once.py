"""Random numbers that are drawn once."""

import jax
from jaxtyping import Array


def drawn_once(values: Array) -> Array:
    """`values`, computed in full before they are used.

    XLA fuses cheap operations into every product that reads them, and takes drawing for cheap: noise that several
    products read would be drawn as many times. The numbers are the same.
    """
    return jax.lax.optimization_barrier(values)
