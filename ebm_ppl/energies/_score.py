"""The score of an energy."""

from typing import Any

import jax
import jax.numpy as jnp

from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import check_event, evaluate


def score(energy: AbstractEnergy, x: Any, condition: Any = None) -> Any:
    r"""The score of one event: \(\nabla_x \log p(x; y) = -\nabla_x E(x; y)\).

    Args:
        energy: E.
        x: one event, shape `energy.event_shape`. Batches: `jax.vmap(ebm.score, in_axes=(None, 0))(energy, xs)`.
        condition: one condition, shape `energy.condition_shape`, or None.

    Returns:
        The score, shape and dtype of `x`, in nats per unit of `x`.

    Raises:
        EnergyShapeError: if `x`, `condition` or the energy's value has the wrong shape.
        EnergyDtypeError: if `x` is not floating-point.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> ebm.score(energy, jnp.array([1.0, -2.0])).tolist()
        [-1.0, 2.0]

    References:
        Hyvärinen (2005). Estimation of non-normalized statistical models by score matching. Journal of Machine
        Learning Research 6, 695-709.
    """
    check_event(energy, x, condition)
    return jax.tree.map(jnp.negative, jax.grad(evaluate, argnums=1)(energy, x, condition))
