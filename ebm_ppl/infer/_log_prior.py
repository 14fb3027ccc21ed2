"""The log prior of draws, site by site: what `az.psense` reads, and neither NumPyro nor ArviZ computes."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import numpyro  # noqa: F401  (before any of its submodules)
from jaxtyping import Array
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import init_to_sample
from numpyro.util import soft_vmap

from ebm_ppl._checks import check_count
from ebm_ppl.distributions._check_model import find_missing
from ebm_ppl.distributions._guard import is_unknown, ways_out
from ebm_ppl.errors import MissingLogNormalizerError


def log_prior(
    model: Callable[..., Any],
    posterior_samples: Mapping[str, Any],
    *args: Any,
    parallel: bool = False,
    batch_ndims: int | Any = 1,
    **kwargs: Any,
) -> dict[str, Array]:
    r"""Log prior density of every latent site at draws of them, as `numpyro.infer.log_likelihood` is for data.

        log p(theta_s | theta of the sites before s)        in nats, one array per latent site s

    For `az.psense` and `az.psense_summary`, which scale the prior by a power and reweight the draws:

        tree["log_prior"] = ebm.to_datatree(log_prior(...), group="log_prior")["log_prior"]

    An energy with fixed parameters needs no log Z here: a constant cancels in the weights. One whose parameters are
    latent, and whose log Z is missing, is refused: its log prior is not known, not even up to a constant. Factors
    (`numpyro.factor`, `energy_factor`) are not sites of their own: what they say of the prior is left out.

    Args:
        model: the NumPyro model.
        posterior_samples: draws of all latent sites, the batch axes in front; those of `numpyro.param` sites too, which
            else have their initial values; deterministic sites are ignored.
        *args: arguments of the model.
        parallel: evaluate all draws at once, instead of one after the other in little memory.
        batch_ndims: 1 for draws `(draw, ...)`, 2 for `(chain, draw, ...)`.
        **kwargs: keyword arguments of the model.

    Returns:
        By site, arrays `(*batch, *batch_shape of the site)`.

    Raises:
        MissingLogNormalizerError: log Z of a latent energy varies with other latent sites and is missing.
        ValueError: draws of a latent site are missing, or the draws' batch axes disagree.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> def model(y=None):
        ...     x = numpyro.sample("x", ebm.EnergyDistribution(ebm.FunctionEnergy(lambda x: x**2 / 2 + 7, ())))
        ...     numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> ebm.infer.log_prior(model, {"x": jnp.array([0.0, 2.0])}, y=1.0)["x"].tolist()
        [-7.0, -9.0]

    References:
        Kallioinen, Paananen, Bürkner, Vehtari (2024). Detecting and diagnosing prior and likelihood sensitivity with
        power-scaling. Statistics and Computing 34, 57. doi:10.1007/s11222-023-10366-5
    """
    batch_ndims = check_count("batch_ndims", batch_ndims, 0)
    latent, params = _unknown_sites(model, args, kwargs)
    absent = [name for name in latent if name not in posterior_samples]
    if absent:
        raise ValueError(f"`posterior_samples` must hold draws of all latent sites; {absent} are missing.")
    samples = {name: posterior_samples[name] for name in [*latent, *params] if name in posterior_samples}
    leaves = jax.tree_util.tree_leaves_with_path(samples)
    shapes = {jax.tree_util.keystr(path): np.shape(values)[:batch_ndims] for path, values in leaves}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"all draws must have the same leading {batch_ndims} axes; got {shapes}.")
    _refuse_unknown(model, args, kwargs, latent, params=any(name in samples for name in params))

    def one(values: dict[str, Array]) -> dict[str, Array]:
        sites = trace(substitute(seed(model, 0), data=values)).get_trace(*args, **kwargs)
        return {name: _log_prob(sites[name]) for name in latent}

    number = int(np.prod(next(iter(shapes.values()))))
    return soft_vmap(one, samples, batch_ndims, number if parallel else 1)


def _log_prob(site: dict[str, Any]) -> Array:
    value = site["fn"].log_prob(site["value"])
    return value if site["scale"] is None else site["scale"] * value


def _unknown_sites(model: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The latent and the `numpyro.param` sites."""
    types: dict[str, str] = {}

    def look() -> None:
        seeded = substitute(seed(model, 0), substitute_fn=init_to_sample)
        sites = trace(seeded).get_trace(*args, **kwargs)
        types.update({name: site["type"] for name, site in sites.items() if is_unknown(site)})

    jax.eval_shape(look)
    latent, params = ([name for name, found in types.items() if found == kind] for kind in ("sample", "param"))
    if not latent:
        raise ValueError("the model has no latent sites: there is no prior.")
    return latent, params


def _refuse_unknown(
    model: Callable[..., Any], args: tuple, kwargs: dict[str, Any], latent: list[str], *, params: bool
) -> None:
    """The energies among the latent sites whose log Z is missing and varies; an observed one is no prior."""
    for name, (energy, sites) in find_missing(model, args, kwargs, params=params).items():
        if name in latent:
            raise MissingLogNormalizerError(
                f"the log prior of the energy site {name!r} ({energy}) depends on its log Z, which varies with "
                f"{', '.join(map(repr, sites))} and is missing. {ways_out(sites)}"
            )
