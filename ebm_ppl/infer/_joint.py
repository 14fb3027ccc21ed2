"""A NumPyro model as a joint distribution: draw latent values and data from it, condition it on data, measure both."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro  # noqa: F401  (before any of its submodules)
from jaxtyping import Array, Float
from numpyro.distributions import Unit
from numpyro.handlers import condition, seed, substitute, trace, uncondition
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import compute_log_probs

from ebm_ppl._types import PRNGKey
from ebm_ppl.infer._blackjax_kernel import BlackJAXKernel
from ebm_ppl.kernels._base import check_invariant

type Model = Callable[..., Any]
type Sites = dict[str, Array]
type Quantity = Callable[[Sites, Sites], Any]
"""`(latent and deterministic sites, data) -> number or array`."""

LOG_LIKELIHOOD = "log_likelihood"


@dataclasses.dataclass(frozen=True, eq=False)
class Joint:
    """The joint distribution of latent values and data, and what is measured of them.

    Args:
        model: the model that is inferred.
        simulator: the model that draws; the same one unless two programs are compared.
        model_args: arguments of both.
        model_kwargs: keyword arguments of both.
        latent: the latent sample sites.
        observed: the sites that are data.
        measured: the latent and deterministic sites that are measured.
        quantities: further functions of sites and data, by name.
    """

    model: Model
    simulator: Model
    model_args: tuple[Any, ...]
    model_kwargs: dict[str, Any]
    latent: tuple[str, ...]
    observed: tuple[str, ...]
    measured: tuple[str, ...]
    quantities: dict[str, Quantity]

    def draw(self, key: PRNGKey, prior: Sites | None = None) -> tuple[Sites, Sites]:
        """Sites (latent and deterministic) and data; given values of latent sites are kept."""
        model = seed(uncondition(self.simulator), key)
        sites = trace(substitute(model, data={**(prior or {})})).get_trace(*self.model_args, **self.model_kwargs)
        values = {name: jnp.asarray(site["value"]) for name, site in sites.items() if _is_valued(site)}
        data = {name: values.pop(name) for name in self.observed}
        return values, data

    def redraw(self, key: PRNGKey, sites: Sites) -> Sites:
        """New data, given the latent sites."""
        return self.draw(key, {name: sites[name] for name in self.latent})[1]

    def posterior(self, data: Sites) -> Model:
        """The model conditioned on data."""
        return condition(self.model, data={**data})

    @property
    def names(self) -> tuple[str, ...]:
        """What is measured, in order."""
        return (*self.measured, LOG_LIKELIHOOD, *self.quantities)

    def measure(self, sites: Sites, data: Sites) -> dict[str, Array]:
        """Every measured quantity by name, the joint log likelihood of the data (nats) among them."""
        given = {name: sites[name] for name in self.latent}
        log_probs = compute_log_probs(self.posterior(data), self.model_args, self.model_kwargs, given)[0]
        values = {name: jnp.asarray(sites[name]) for name in self.measured}
        values[LOG_LIKELIHOOD] = sum((log_probs[name] for name in self.observed), jnp.zeros(()))
        return values | {name: jnp.asarray(fn(sites, data)) for name, fn in self.quantities.items()}

    def vector(self, sites: Sites, data: Sites) -> Float[Array, " quantity"]:
        """`measure` as one vector, in the order of `names`."""
        values = self.measure(sites, data)
        return jnp.concatenate([jnp.ravel(values[name]).astype(jnp.result_type(float)) for name in self.names])

    def shapes(self, prior: Mapping[str, Any] | None = None) -> dict[str, tuple[int, ...]]:
        """The shape of every measured quantity; nothing is computed."""
        structs = {name: jax.ShapeDtypeStruct(value.shape[1:], value.dtype) for name, value in (prior or {}).items()}
        found = jax.eval_shape(lambda key, values: self.measure(*self.draw(key, values)), jax.random.key(0), structs)
        return {name: found[name].shape for name in self.names}  # JAX returns dictionaries sorted


def make_joint(
    model: Model,
    simulator: Model | None,
    model_args: tuple[Any, ...],
    model_kwargs: Mapping[str, Any] | None,
    observed: Sequence[str] | None,
    var_names: Sequence[str] | None,
    quantities: Mapping[str, Quantity] | None,
    prior: Mapping[str, Any] | None = None,
) -> Joint:
    """Trace the model once, abstractly, and check that it can be simulated."""
    kwargs = dict(model_kwargs or {})
    sites = _trace_sites(model, model_args, kwargs, prior)
    observed = tuple(name for name, site in sites.items() if site.observed) if observed is None else tuple(observed)
    _check_observed(observed, sites)
    latent = tuple(name for name, site in sites.items() if site.sampled and name not in observed and not site.factor)
    if not latent:
        raise ValueError(f"the model has no latent sites beside the observed {observed}: there is nothing to infer.")
    simulated = sites if simulator is None else _trace_sites(simulator, model_args, kwargs, prior)
    absent = [name for name in (*latent, *observed) if name not in simulated]
    if absent:
        raise ValueError(f"`simulator` must draw every site of `model`; it lacks {absent}.")
    factors = [name for name, site in simulated.items() if site.factor]
    if factors and set(latent) - set(prior or {}):
        raise ValueError(
            f"the sites {factors} are factors, and nothing can draw from a density with factors: give draws of all "
            "latent sites by `prior`, or use an ebm.EnergyDistribution with a sampler."
        )
    deterministic = [name for name, site in sites.items() if not site.sampled]
    unknown = [name for name in var_names or () if name not in (*latent, *deterministic)]
    if unknown:
        raise ValueError(f"`var_names` must be among {[*latent, *deterministic]}; got {unknown}.")
    measured = latent if var_names is None else tuple(var_names)
    clash = sorted(set(quantities or {}) & {*measured, LOG_LIKELIHOOD})
    if clash:
        raise ValueError(f"`quantities` must have names of their own; {clash} are taken.")
    simulator = model if simulator is None else simulator
    return Joint(model, simulator, tuple(model_args), kwargs, latent, observed, measured, dict(quantities or {}))


def bind(kernel: Any, model: Model) -> MCMCKernel:
    """A kernel for `model`, from an `MCMCKernel` bound to another one, or from a function of the model.

    Raises:
        TypeError: not a kernel of NumPyro.
        ValueError: ours around a kernel without a Metropolis correction: calibration would reject it, rightly.
    """
    bound = kernel.wrap_model(lambda _: model) if isinstance(kernel, MCMCKernel) else kernel(model)
    if not isinstance(bound, MCMCKernel):
        raise TypeError(
            "`kernel` must be a numpyro.infer.mcmc.MCMCKernel or a function model -> MCMCKernel, such as "
            f"numpyro.infer.NUTS or ebm.BlackJAXKernel; it gave {type(bound).__name__}."
        )
    if isinstance(bound, BlackJAXKernel):
        check_invariant("kernel", bound.transition)
    return bound


def labels(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """ArviZ' labels: `"w"`, `"x[0, 3]"`."""
    names = []
    for name, shape in shapes.items():
        indices = itertools.product(*map(range, shape))
        names += [f"{name}[{', '.join(map(str, index))}]" if shape else name for index in indices]
    return names


def unflatten(
    values: Float[np.ndarray, "simulation quantity"], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The columns of the quantities put back into arrays `(simulation, *shape)`."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]
    parts = np.split(values, ends, axis=1)
    return {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


@dataclasses.dataclass(frozen=True)
class _Site:
    sampled: bool
    observed: bool
    factor: bool


def _trace_sites(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], prior: Mapping[str, Any] | None
) -> dict[str, _Site]:
    found: dict[str, _Site] = {}
    given = {name: value[0] for name, value in (prior or {}).items()}

    def run(key: PRNGKey) -> None:
        for name, site in trace(substitute(seed(model, key), data=given)).get_trace(*args, **kwargs).items():
            if site["type"] == "plate" and site["args"][0] != site["value"].shape[0]:
                raise NotImplementedError(f"plate {name!r} subsamples: give it all rows to check the model.")
            if site["type"] == "param":
                raise NotImplementedError(f"{name!r} is a numpyro.param: only sampled sites have a posterior.")
            if _is_valued(site):
                sampled = site["type"] == "sample"
                factor = sampled and isinstance(site["fn"], Unit)
                found[name] = _Site(sampled, sampled and site["is_observed"] and not factor, factor)

    jax.eval_shape(run, jax.random.key(0))
    return found


def _is_valued(site: Mapping[str, Any]) -> bool:
    return site["type"] in ("sample", "deterministic")


def _check_observed(observed: tuple[str, ...], sites: Mapping[str, _Site]) -> None:
    unknown = [name for name in observed if name not in sites or not sites[name].sampled or sites[name].factor]
    if unknown:
        raise ValueError(f"`observed` must name sample sites of the model, {list(sites)}; got {unknown}.")
    if not observed:
        raise ValueError(
            "no site of the model is observed when it is called with these arguments: name the sites that are data, "
            'e.g. observed=("y",).'
        )
