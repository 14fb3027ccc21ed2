"""An energy as a factor of a model's density."""

from collections.abc import Mapping
from typing import Any

import numpyro  # noqa: F401  (before any of its submodules)
from numpyro.distributions import Unit

from ebm_ppl.distributions._energy_distribution import EnergyDistribution
from ebm_ppl.distributions._factor import add_factor
from ebm_ppl.energies import AbstractEnergy, log_density


def energy_factor(name: str, energy: AbstractEnergy, x: Any, condition: Any = None) -> None:
    r"""Multiply the density of the model by \(\exp(-E(x))\), x being any function of latent variables.

        log joint  <-  log joint - sum over events of energy(x, condition)

    Like `numpyro.factor`, but it is not taken for data: it does not appear in `Predictive`, in `log_likelihood` (so
    `az.loo` works) or in ArviZ's `observed_data`. The product is a density of the latent variables whatever Z is: no
    log Z is asked for. If you mean p(x | parameters) instead, use `EnergyDistribution`.

    Args:
        name: name of the site; unique.
        energy: the energy of one event.
        x: `(*batch, *energy.event_shape)`; for an energy with named parts a dictionary of one event.
        condition: for a conditional energy, `(*batch, *energy.condition_shape)`.

    Raises:
        EnergyShapeError: `x` or `condition` does not fit the energy.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> from numpyro.infer.util import log_density
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ...     ebm.energy_factor("smooth", ebm.FunctionEnergy(lambda u: 3 * jnp.sum(u**2), (1,)), jnp.diff(x))
        >>> log_joint, _ = log_density(model, (), {}, {"x": jnp.array([0.0, 1.0])})
        >>> print(f"{log_joint:.4f}")                       # log N(0) + log N(1) - 3
        -5.3379

    References:
        LeCun, Chopra, Hadsell, Ranzato, Huang (2006). A tutorial on energy-based learning.
        In: Predicting Structured Data, MIT Press. doi:10.7551/mitpress/7443.003.0014
    """
    if isinstance(energy.event_shape, Mapping):
        log_factor = log_density(energy, condition)(x)
        add_factor(name, Unit(log_factor))
        return
    # The density alone is wanted: any log Z will do, and none must be asked for.
    log_factor = EnergyDistribution(energy, condition=condition, log_normalizer=0.0).log_prob(x)
    add_factor(name, Unit(log_factor))
