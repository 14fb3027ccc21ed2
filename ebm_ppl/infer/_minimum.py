"""The minimum of a sum of losses, and how it varies from sample to sample."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ebm_ppl._types import Scalar

type Losses = Callable[[Array], dict[str, Array]]
"""Parameters -> one loss per datum, by data set."""

MAX_DESCENTS, MAX_NEWTON = 500, 8


class Minimum(NamedTuple):
    """Parameters at the minimum of the mean loss, and what the sandwich formula needs.

    Attributes:
        theta: the parameters.
        hessian: H, of the mean loss.
        covariance: J, of the gradients of single losses, each data set about its own mean.
        gradient: of the mean loss; what is left of it.
    """

    theta: Float[Array, " dim"]
    hessian: Float[Array, "dim dim"]
    covariance: Float[Array, "dim dim"]
    gradient: Float[Array, " dim"]


def find_minimum(losses: Losses, start: Float[Array, " dim"]) -> Minimum:
    """L-BFGS from `start`, then Newton steps: rounding ends the first long before the second."""

    def mean_loss(theta: Array) -> Scalar:
        return jnp.mean(jnp.concatenate(list(losses(theta).values())))

    gradient, hessian_of = jax.grad(mean_loss), jax.jacfwd(jax.grad(mean_loss))

    def newton(_: Any, theta: Array) -> Array:
        moved = theta - jnp.linalg.solve(hessian_of(theta), gradient(theta))
        before, after = mean_loss(theta), mean_loss(moved)
        slack = 8 * jnp.finfo(before.dtype).eps * jnp.abs(before)
        return jnp.where(after <= before + slack, moved, theta)  # no step where there is no number

    theta = jax.lax.fori_loop(0, MAX_NEWTON, newton, _descend(mean_loss, start))
    rows = jax.jacfwd(losses)(theta)
    centred = jnp.concatenate([row - jnp.mean(row, 0, keepdims=True) for row in rows.values()])
    return Minimum(theta, hessian_of(theta), centred.T @ centred / len(centred), gradient(theta))


def _descend(mean_loss: Callable[[Array], Scalar], start: Array) -> Array:
    optimizer = optax.lbfgs()
    evaluate = optax.value_and_grad_from_state(mean_loss)
    tolerance = jnp.sqrt(jnp.finfo(start.dtype).eps)

    def step(carry: tuple[Array, Any, Array, Array]) -> tuple[Array, Any, Array, Array]:
        theta, state, count, _ = carry
        value, gradient = evaluate(theta, state=state)
        updates, state = optimizer.update(gradient, state, theta, value=value, grad=gradient, value_fn=mean_loss)
        moved: Any = optax.apply_updates(theta, updates)
        is_moving = jnp.max(jnp.abs(moved - theta)) > tolerance * (1 + jnp.max(jnp.abs(theta)))
        return moved, state, count + 1, is_moving

    def going(carry: tuple[Array, Any, Array, Array]) -> Array:
        return carry[3] & (carry[2] < MAX_DESCENTS)

    carry = (start, optimizer.init(start), jnp.zeros((), jnp.int32), jnp.ones((), bool))
    return jax.lax.while_loop(going, step, carry)[0]
