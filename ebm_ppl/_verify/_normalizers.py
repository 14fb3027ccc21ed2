"""Normalisers: log Z of a bent normal law, which is known, within the standard error that each reports."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ebm_ppl import energies
from ebm_ppl._verify._row import Row

CURVATURE, SCALE = 0.4, 1.2
LOG_NORMALIZER = float(np.log(2 * np.pi * SCALE))
LOG_LIKELIHOOD = -1 - LOG_NORMALIZER  # E E(x) = d / 2
HELD_OUT = "held_out_log_likelihood"

type Estimator = Callable[[Any, Any, Array], Any]
"""`estimator(function, energy, key)`: what the normaliser returns for this energy."""


def check_normalizer(what: str, estimator: Estimator, function: Any, key: Array) -> list[Row]:
    """One estimate and its own standard error."""
    estimate = estimator(function, energies.Banana(CURVATURE, SCALE), key)
    quantity, truth = ("log Z", LOG_NORMALIZER) if what.rpartition(".")[2] != HELD_OUT else ("E log p", LOG_LIKELIHOOD)
    return [Row(what, quantity, truth, float(estimate.value), float(estimate.standard_error))]


def _wide() -> energies.Gaussian:
    return energies.Gaussian(jnp.zeros(2), jnp.diag(jnp.asarray([2.0, 4.0], float)))


def _draws(energy: Any, key: Array) -> Array:
    return energy.sample(jax.random.fold_in(key, 1), (4, 1000))


NORMALIZERS: dict[str, Estimator] = {
    # Gaussian tails would be too light for the bend.
    "importance": lambda function, energy, key: function(
        energy, energies.StudentT(4.0, jnp.zeros(2), jnp.asarray([1.5, 2.5], float)), key=key
    ),
    "annealed_importance": lambda function, energy, key: function(
        energy, _wide(), key=key, num_temperatures=32, num_samples=256
    ),
    "sequential_monte_carlo": lambda function, energy, key: function(
        energy, _wide(), key=key, num_particles=128, num_runs=40
    ),
    "bridge": lambda function, energy, key: function(energy, _draws(energy, key), key=key, progress_bar=False),
    "thermodynamic_integration": lambda function, energy, key: function(
        energy, _wide(), key=key, inverse_temperatures=8, num_warmup=100, num_samples=600, progress_bar=False
    ),
    "quadrature": lambda function, energy, key: function(energy, key=key),
    "log_normalizer": lambda function, energy, key: function(
        energy,
        _wide(),
        key=key,
        options={"sequential_monte_carlo": {"num_particles": 128, "num_runs": 40}},
        progress_bar=False,
    ),
    HELD_OUT: lambda function, energy, key: function(energy, _draws(energy, key).reshape(-1, 2), LOG_NORMALIZER),
}
