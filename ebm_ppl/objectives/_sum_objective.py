"""A weighted sum of objectives."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._parameters import as_parameter
from ebm_ppl.objectives._base import AbstractObjective, Batch, Metrics


class SumObjective(AbstractObjective[tuple[Any, ...]]):
    r"""A weighted sum of objectives: the one way by which regularisers come in.

        J = sum_i weights_i * J_i

    Args:
        objectives: at least one. All must treat the noise scale of the condition alike (`noise_conditioned`).
        weights: one finite number per objective; 1 each by default. An array field: new values compile nothing.

    Returns:
        `loss(model, batch, *, key)`. Metrics: those of every term, and every term's own value, before its weight, under
        its name in small letters (`gradient_penalty`); a name that comes up again is numbered (`gradient_penalty_2`).
        `comparable` is True where it is for every term.

    Raises:
        ValueError: if there is no objective, or not one weight for each.
        TypeError: if a term is not an objective.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))
        >>> matching, penalty = ebm.objectives.ExactScoreMatching(), ebm.objectives.GradientPenalty()
        >>> objective = ebm.objectives.SumObjective(matching, penalty, weights=[1.0, 0.5])
        >>> float(objective.loss(energy, jnp.ones((5, 2)), key=jax.random.key(0)))             # -1 + 0.5 * 2
        0.0

    References:
        Tikhonov (1963). Solution of incorrectly formulated problems and the regularization method. Soviet Mathematics
        Doklady 4, 1035-1038. See Goodfellow, Bengio, Courville (2016). Deep Learning, chapter 7. ISBN 978-0-262-03561-3
    """

    objectives: tuple[AbstractObjective, ...]
    weights: Float[Array, " term"]

    def __init__(self, *objectives: AbstractObjective | Any, weights: Any = None) -> None:
        if not objectives:
            raise ValueError("`objectives` must have at least one member; got none.")
        for index, objective in enumerate(objectives):
            if not isinstance(objective, AbstractObjective):
                raise TypeError(f"`objectives[{index}]` must be an objective; got {type(objective).__name__}.")
            if objective.noise_conditioned != objectives[0].noise_conditioned:
                raise ValueError(
                    f"`objectives[{index}]`, {type(objective).__name__}, and {type(objectives[0]).__name__} do not "
                    "agree whether the condition holds the noise scale: they cannot share one energy."
                )
        self.objectives = objectives
        self.weights = as_parameter("weights", [1.0] * len(objectives) if weights is None else weights, 1)
        if self.weights.shape != (len(objectives),):
            raise ValueError(f"`weights` must be {len(objectives)} numbers; got shape {self.weights.shape}.")

    @property
    def comparable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every term's value may be compared between steps."""
        return all(objective.comparable for objective in self.objectives)

    @property
    def noise_conditioned(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the terms put the noise scale into the energy's condition."""
        return self.objectives[0].noise_conditioned

    def init(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Any, ...]:
        """The states of the terms."""
        keys = jax.random.split(key, len(self.objectives))
        return tuple(term.init(model, batch, key=key) for term, key in zip(self.objectives, keys, strict=True))

    def __call__(
        self, model: Any, state: tuple[Any, ...], batch: Batch, *, key: PRNGKey
    ) -> tuple[Scalar, tuple[tuple[Any, ...], Metrics]]:
        """The weighted sum of the terms' losses, each with a key of its own."""
        keys = jax.random.split(key, len(self.objectives))
        losses, states, metrics = [], [], {}
        for term, term_state, term_key in zip(self.objectives, state, keys, strict=True):
            loss, (new_state, found) = term(model, term_state, batch, key=term_key)
            losses.append(loss)
            states.append(new_state)
            for name, value in (found | {_snake_case(type(term).__name__): loss}).items():
                metrics[_unused(name, metrics)] = value
        total = jnp.dot(self.weights.astype(losses[0].dtype), jnp.stack(losses))
        return total, (tuple(states), metrics)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _unused(name: str, taken: Metrics) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
