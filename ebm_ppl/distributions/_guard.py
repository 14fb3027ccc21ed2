"""The automatic guard: inside any NumPyro inference by gradients, a varying energy without log Z is refused.

A gradient method runs the model on tracers of a derivative. What the energy is made of carries the same derivative
exactly when it depends on the latent variables or parameters; model arguments, data and learnt weights do not. The
guard is silent where no derivative is taken (`Predictive`), and it cannot see through the control
flow of JAX (an energy built inside `scan`): there `check_model` can, which `_start_guard` calls.
"""

from typing import Any

import jax
import numpyro
from jax.core import Tracer
from numpyro.distributions.distribution import (
    COERCIONS,
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    TransformedDistribution,
)
from numpyro.distributions.mixtures import MixtureGeneral, MixtureSameFamily
from numpyro.primitives import _PYRO_STACK

from ebm_ppl.errors import MissingLogNormalizerError

WAYS_OUT = (
    "Without log Z the posterior is wrong, and nothing else would say so. Three ways out: (1) give `log_normalizer`, "
    "log Z as a function of these variables; (2) if log Z does not depend on them (a location, say), declare "
    "`constant_log_normalizer_in={names}`; (3) sample them with ebm.ExchangeKernel, which needs no log Z, or replace "
    "the likelihood by ebm.objective_factor."
)


def ways_out(names: tuple[str, ...]) -> str:
    """What the user can do about a missing log Z that varies with these sites."""
    return WAYS_OUT.format(names=repr(names))


def base_distribution(distribution: Distribution) -> Distribution:
    """What is inside `expand`, `to_event`, `mask` and `TransformedDistribution`."""
    wrappers = (ExpandedDistribution, Independent, MaskedDistribution, TransformedDistribution)
    while isinstance(distribution, wrappers):
        distribution = distribution.base_dist
    return distribution


def refuse_varying_energy(energy_name: str, ingredients: Any) -> None:
    """Raise if some of `ingredients` carries the derivative with respect to a latent or `param` site being traced."""
    names = varying_sites(ingredients)
    if names:
        which = f"latent site {names[0]!r}" if len(names) == 1 else f"at least one of the sites {names}"
        raise MissingLogNormalizerError(
            f"the energy {energy_name} of an EnergyDistribution depends on {which} and has no `log_normalizer`. "
            f"{ways_out(names)} `ebm.check_model(model, ...)` names the energy's own site."
        )


def varying_sites(ingredients: Any) -> tuple[str, ...]:
    """The latent and `param` sites whose derivative is being traced, and is carried by some of `ingredients` too."""
    varying = _derivatives(ingredients)
    if not varying:
        return ()
    return tuple(
        name
        for handler in _PYRO_STACK
        if isinstance(handler, numpyro.handlers.trace)
        for name, site in handler.trace.items()
        if is_unknown(site) and _derivatives(site["value"]) & varying
    )


def is_unknown(site: dict[str, Any]) -> bool:
    """Whether inference is about this site: a latent variable or a parameter."""
    return site["type"] == "param" or (site["type"] == "sample" and not site["is_observed"])


def _derivatives(tree: Any) -> set[int]:
    """Identities of the innermost derivative each leaf belongs to, seen through `vmap`; empty for plain values."""
    return {id(trace) for trace in map(_derivative, jax.tree.leaves(tree)) if trace is not None}


def _derivative(leaf: Any) -> Any:
    while isinstance(leaf, Tracer):
        if hasattr(leaf, "tangent"):  # forward mode and linearisation alike
            return leaf._trace
        leaf = getattr(leaf, "val", None)  # one level of `vmap`
    return None


def refuse_unnormalized_mixture(cls: type, args: tuple, kwargs: dict[str, Any]) -> None:
    """A mixture weighs normalised densities: components without log Z would get arbitrary weights."""
    if cls not in (MixtureGeneral, MixtureSameFamily):
        return
    components = jax.tree.leaves((args, kwargs), is_leaf=lambda node: isinstance(node, Distribution))
    for component in components:
        base = base_distribution(component) if isinstance(component, Distribution) else None
        if base is not None and getattr(base, "log_normalizer", 0.0) is None:
            raise MissingLogNormalizerError(
                f"{cls.__name__} needs normalised components, and {base!r} has no `log_normalizer`: its weight "
                "would be off by the unknown factor Z. Give every component its `log_normalizer`."
            )


COERCIONS.insert(0, refuse_unnormalized_mixture)  # NumPyro calls these before it builds any distribution
