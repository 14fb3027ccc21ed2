"""Shared array types. Single axes carry a leading space, as jaxtyping asks of named dimensions."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, Key, PyTree, UInt32

type PRNGKey = Key[Array, ""] | UInt32[Array, "2"]
"""One JAX key: typed (`jax.random.key`) or legacy (`jax.random.PRNGKey`)."""

type Scalar = Float[Array, ""]
"""A floating-point scalar, in nats where it is an energy or a log density."""

type LogDensityFn = Callable[[Any], Scalar]
"""What BlackJAX is handed: position -> log density."""

type Params = PyTree[Any]
"""Any pytree of parameters."""
