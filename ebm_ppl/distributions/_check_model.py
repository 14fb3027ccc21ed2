"""Does a model need a log Z that it does not have? Found by provenance, before anything is run."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from numpyro.infer import init_to_sample

from ebm_ppl.distributions._energy_distribution import EnergyDistribution
from ebm_ppl.distributions._guard import base_distribution, is_unknown, ways_out
from ebm_ppl.distributions._provenance import dependencies
from ebm_ppl.distributions._start_guard import checked
from ebm_ppl.errors import MissingLogNormalizerError


def check_model(model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    r"""Raise if an energy in `model` depends on latent variables or parameters while its log Z is missing.

        p(theta, x) = p(theta) exp(-E(x; theta)) / Z(theta)

    Without \(Z(\theta)\) the posterior of theta is a different, usually meaningless distribution, and no sampler can
    tell. Dependence is read off the traced model, through deterministic sites, plates, `scan`, `cond`, subsampling,
    `eqx_module` and `random_eqx_module`; nothing is computed. `BlackJAXKernel` does this by itself, and so does every
    other inference of NumPyro (`NUTS`, `HMC`, `SVI`, `SteinVI`, `DiscreteHMCGibbs`, ...) when it is initialised;
    for MCMC, where a `numpyro.param` is a constant, only latent sites count.

    Args:
        model: the NumPyro model.
        *args: its arguments; arrays.
        **kwargs: its keyword arguments.

    Raises:
        MissingLogNormalizerError: naming each energy site, the sites it depends on, and the three ways out.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> def half_square(precision, x):
        ...     return precision * jnp.sum(x**2) / 2
        >>> def model(y):
        ...     w = numpyro.sample("w", dist.Gamma(2.0, 2.0))
        ...     numpyro.sample("y", ebm.EnergyDistribution(ebm.FunctionEnergy(half_square, (3,), w)), obs=y)
        >>> ebm.check_model(model, jnp.ones(3))
        Traceback (most recent call last):
            ...
        ebm_ppl.errors.MissingLogNormalizerError: energy site 'y' (FunctionEnergy) depends on 'w'...

    References:
        Moller, Pettitt, Reeves, Berthelsen (2006). An efficient Markov chain Monte Carlo method for distributions
        with intractable normalising constants. Biometrika 93(2), 451-458. doi:10.1093/biomet/93.2.451
        Wingate, Goodman, Stuhlmueller, Siskind (2011). Nonstandard interpretations of probabilistic programs for
        efficient inference. NeurIPS 24.
    """
    refuse_missing(find_missing(model, args, kwargs))


def refuse_missing(found: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    """Raise for the energy sites of `find_missing`, if there are any."""
    if not found:
        return
    sites = "; ".join(
        f"energy site {name!r} ({energy}) depends on {', '.join(map(repr, names))} and has no `log_normalizer`"
        for name, (energy, names) in found.items()
    )
    every = tuple(sorted({name for _, names in found.values() for name in names}))
    raise MissingLogNormalizerError(f"{sites}. {ways_out(every)}")


def energy_dependencies(model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The energy sites whose log Z is missing and varies: `{site: (energy class, names of the sites it varies with)}`.

    Left out are energies that carry a `log_normalizer`, those that depend on no latent or param site, and the
    dependencies declared harmless in `constant_log_normalizer_in`.
    """
    return find_missing(model, args, kwargs)


def find_missing(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, params: bool = True
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What `energy_dependencies` says; without `params`, `numpyro.param` sites are constants, as they are to MCMC."""
    energies: dict[str, tuple[str, tuple[str, ...]]] = {}  # class and declaration; no arrays: they would be tracers
    statics: dict[str, Any] = {}

    def run(values: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
        values = values and {name: eqx.combine(value, statics[name]) for name, value in values.items()}
        seeded = numpyro.handlers.substitute(numpyro.handlers.seed(model, 0), substitute_fn=init_to_sample)
        seeded = numpyro.handlers.substitute(seeded, data=values) if values else seeded
        with checked():
            return numpyro.handlers.trace(seeded).get_trace(*args, **kwargs)

    def unknowns() -> dict[str, Any]:
        found = {}
        for name, site in run(None).items():
            if is_unknown(site) and (params or site["type"] != "param"):
                found[name], statics[name] = eqx.partition(site["value"], eqx.is_array_like)
        return found

    def potentials(**values: Any) -> dict[str, Any]:
        found = {}
        for name, site in run(values).items():
            fn = base_distribution(site["fn"]) if site["type"] == "sample" else None
            if isinstance(fn, EnergyDistribution) and fn.log_normalizer is None:
                energies[name] = fn.energy_name, fn.constant_log_normalizer_in
                # At a constant event: only what the energy is made of counts, not where it is evaluated.
                event = jnp.zeros(fn.shape())
                found[name] = fn.potential_energy(event), jax.tree.leaves(fn.support)
        return found

    found = dependencies(potentials, jax.eval_shape(unknowns))
    result = {}
    for name, (energy_name, constant_in) in energies.items():
        varying = tuple(sorted(found[name] - set(constant_in)))
        if varying:
            result[name] = energy_name, varying
    return result
