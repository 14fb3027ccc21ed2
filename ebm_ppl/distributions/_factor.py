"""Factors of a model's density that are not taken for data."""

from typing import Any

import jax.numpy as jnp
import numpyro
from jax.typing import ArrayLike
from numpyro.distributions import Unit
from numpyro.handlers import condition as condition_handler
from numpyro.handlers import mask, replay, seed, substitute
from numpyro.infer import init_to_sample
from numpyro.primitives import _PYRO_STACK

from ebm_ppl.distributions._likelihoods import asks_for_likelihood


class ObjectiveFactor(Unit):
    """A factor exp(-loss / temperature) for every datum; whoever calibrates finds losses and temperature in it."""

    pytree_data_fields = ("temperature",)

    def __init__(self, losses: ArrayLike, temperature: ArrayLike) -> None:
        self.temperature = temperature
        super().__init__(-jnp.asarray(losses) / temperature)


def add_factor(name: str, factor: Unit) -> None:
    """Like `numpyro.factor`, but `Predictive`, `log_likelihood` and ArviZ's `observed_data` do not see it."""
    if any(_ignores_densities(handler) for handler in _PYRO_STACK):
        return
    # An unobserved site counts in the log density, and `log_likelihood` leaves it out. The handlers alone do not show
    # who is asking where there is a loop, or a key, in between.
    obs = None if _evaluates_given_values() or asks_for_likelihood() else factor.sample(None)
    numpyro.sample(name, factor, obs=obs, infer={"is_auxiliary": True})


def _ignores_densities(handler: Any) -> bool:
    """`Predictive` masks all densities; `init_to_sample` runs a model for its structure and its values only."""
    if isinstance(handler, mask):
        return handler.mask is False
    strategy = getattr(handler, "substitute_fn", None)
    return isinstance(handler, substitute) and getattr(strategy, "func", strategy) is init_to_sample


def _evaluates_given_values() -> bool:
    """`log_density` and `log_likelihood`: values are put in, none is drawn, transformed or replayed."""
    given = [handler for handler in _PYRO_STACK if isinstance(handler, substitute | condition_handler)]
    plain = all(getattr(handler, "substitute_fn", None) is None for handler in given)
    return bool(given) and plain and not any(isinstance(handler, seed | replay) for handler in _PYRO_STACK)
