"""One latent site of a NumPyro model for each named part of an energy's events."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float
from numpyro.distributions import ImproperUniform, Unit

from ebm_ppl._types import Scalar
from ebm_ppl.distributions._energy_distribution import EnergyDistribution
from ebm_ppl.distributions._factor import add_factor
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._coordinates import unpack
from ebm_ppl.energies._event import evaluate
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._support import resolve_support


class _PackedEnergy(AbstractEnergy):
    """An energy of named parts, as one of the vector of all of them."""

    energy: AbstractEnergy
    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, x: Float[Array, " size"], condition: Float[Array, "..."] | None = None) -> Scalar:
        return evaluate(self.energy, unpack(self.energy.event_shape, x), condition)


def energy_sites(
    name: str,
    energy: AbstractEnergy,
    condition: Any = None,
    *,
    log_normalizer: Any = None,
    constant_log_normalizer_in: Sequence[str] = (),
) -> dict[str, Array]:
    r"""Latent sites with the joint density \(p(x) \propto \exp(-E(x))\), one for each named part of the event x.

    The site of part `w` is called `name/w`, as in `numpyro.handlers.scope`; each lives on the support that the energy
    declares for it. Inside a NumPyro model only.

    Args:
        name: prefix of the sites, and name of the site that holds the density.
        energy: an energy whose `event_shape` is a dictionary.
        condition: one condition, for a conditional energy.
        log_normalizer: log Z in nats, needed where the energy depends on other latent variables, as in
            `EnergyDistribution`.
        constant_log_normalizer_in: names of latent sites that the energy depends on but log Z does not.

    Returns:
        The event: a dictionary of the values of the parts.

    Raises:
        TypeError: `energy` is not an energy with named parts.
        MissingLogNormalizerError: the energy depends on a latent variable, and `log_normalizer` is missing.
        NotImplementedError: on drawing from the prior (`Predictive`): draw with `ebm.sample(energy, key=...)`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> from numpyro.infer.util import log_density
        >>> energy = ebm.FunctionEnergy(lambda x: jnp.sum(x["w"] ** 2) / x["tau"] + x["tau"], {"w": (2,), "tau": ()},
        ...                             support={"tau": dist.constraints.positive})
        >>> def model(y):
        ...     x = ebm.energy_sites("prior", energy)
        ...     numpyro.sample("y", dist.Normal(x["w"].sum(), x["tau"]), obs=y)
        >>> values = {"prior/w": jnp.ones(2), "prior/tau": jnp.asarray(1.0)}
        >>> print(f"{log_density(model, (2.0,), {}, values)[0]:.4f}")                   # -3 + log N(2; 2, 1)
        -3.9189

    References:
        LeCun, Chopra, Hadsell, Ranzato, Huang (2006). A tutorial on energy-based learning.
        In: Predicting Structured Data, MIT Press. doi:10.7551/mitpress/7443.003.0014
    """
    check_energy_type("energy", energy)
    shapes = energy.event_shape
    if not isinstance(shapes, Mapping):
        raise TypeError(
            f"`energy` must have named parts; its event_shape is {shapes}: declare one site with "
            f"numpyro.sample({name!r}, ebm.EnergyDistribution(energy))."
        )
    size = sum(math.prod(shape) for shape in shapes.values())
    packed = _PackedEnergy(energy=energy, event_shape=(size,), condition_shape=energy.condition_shape)
    distribution = EnergyDistribution(
        packed,
        condition=condition,
        log_normalizer=log_normalizer,
        constant_log_normalizer_in=constant_log_normalizer_in,
    )
    supports = energy.support or {}
    event = {
        part: jnp.asarray(
            numpyro.sample(f"{name}/{part}", ImproperUniform(resolve_support(supports.get(part), shape), (), shape))
        )
        for part, shape in shapes.items()
    }
    vector = jnp.concatenate([jnp.ravel(event[part]) for part in shapes])
    add_factor(name, Unit(distribution.log_prob(vector)))
    return event
