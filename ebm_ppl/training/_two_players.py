"""One optimiser for a game of two: a learning rate each, and rest for who has nothing to learn."""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def two_player_optimizer(
    energy: optax.GradientTransformation, flow: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Optimiser of a pair `(energy, flow)`: each by its own, which stands still where all of its gradient is zero.

    For `FlowContrastive`: two learning rates, simultaneous or in turn. While a player rests its gradient is exactly
    zero; Adam alone would go on from momentum and forget its scales meanwhile. Here parameters and optimiser state
    stay as they are.

    Args:
        energy: optax transformation for the first part of the model, e.g. `optax.adam(1e-3)`.
        flow: the same for the second part.

    Returns:
        An optax transformation for models that are pairs. Build it once: `fit` compiles anew for every new one.

    Example:
        >>> import jax.numpy as jnp, optax, ebm_ppl as ebm
        >>> optimizer = ebm.training.two_player_optimizer(optax.sgd(0.1), optax.sgd(0.01))
        >>> params = (jnp.ones(1), jnp.ones(1))
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> [round(float(update[0]), 3) for update in updates]
        [-0.1, -0.01]
    """
    rules: dict[Hashable, optax.GradientTransformation] = {"energy": _resting(energy), "flow": _resting(flow)}
    return optax.with_extra_args_support(optax.partition(rules, ("energy", "flow")))


def _resting(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner`, untouched by steps whose gradient is zero everywhere."""
    inner = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        # A player of whom nothing is trained has no leaves.
        learns = jnp.any(jnp.stack([jnp.zeros((), bool), *(jnp.any(leaf != 0) for leaf in jax.tree.leaves(updates))]))
        moved, new_state = inner.update(updates, state, params, **extra)
        moved = jax.tree.map(lambda leaf: jnp.where(learns, leaf, jnp.zeros_like(leaf)), moved)
        return moved, jax.tree.map(lambda new, old: jnp.where(learns, new, old), new_state, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)
