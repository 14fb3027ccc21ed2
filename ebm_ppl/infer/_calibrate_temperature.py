"""`calibrate_temperature`: how wide a generalised posterior must be."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.handlers as handlers
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from numpyro.infer import init_to_uniform
from numpyro.infer.util import _transforms_from_trace, constrain_fn, initialize_model

from ebm_ppl._checks import check_key
from ebm_ppl._types import PRNGKey
from ebm_ppl.distributions._factor import ObjectiveFactor
from ebm_ppl.distributions._guard import base_distribution, is_unknown
from ebm_ppl.distributions._provenance import dependencies
from ebm_ppl.errors import Problem, warn_problems
from ebm_ppl.infer._minimum import Minimum, find_minimum
from ebm_ppl.infer._temperature_calibration import SD_FACTOR, Geometry, TemperatureCalibration

type Rule = Literal["magnitude", "information"]

MAX_PARAMETERS = 2000
MIN_DATA_PER_PARAMETER = 10
MIN_EIGENVALUE = 32  # of the scaled Hessian, in units of rounding: below, its inverse is off by some percent and more
MAX_DISTANCE = 0.1  # standard errors that the minimiser may be away from the minimum


def calibrate_temperature(
    model: Callable[..., Any],
    *,
    key: PRNGKey | Any,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    sites: Sequence[str] | None = None,
    rule: Rule | Any = "magnitude",
    init_strategy: Callable[..., Any] = init_to_uniform,
) -> TemperatureCalibration:
    r"""The temperature of `objective_factor` at which the posterior's spread is the sampling error of its centre.

        H = mean Hessian of the losses,  J = covariance of their gradients,  both at the minimiser theta
        posterior covariance ~ temperature H^-1 / n,     Cov(theta) ~ H^-1 J H^-1 / n  (the sandwich)

        "magnitude":    temperature = tr(H^-1 J) / dim
        "information":  temperature = tr(H) / tr(H J^-1 H)

    Both are exact where one temperature can be: J proportional to H, so always with one parameter. Elsewhere
    "magnitude" (Pauli, Racugno, Ventura; Ribatet, Cooley, Davison) is the temperature at which the posterior is nearest
    to the sandwich in Kullback-Leibler divergence; it is the same whatever the units or the parametrisation.
    "information" (Lyddon, Holmes, Walker; used by Matsubara et al.) matches the traces of the two precisions, in which
    parameters with large precisions count most. What is left over is reported: `sd_ratio`, `temperatures`, and the
    problem `UNEVEN_TEMPERATURES`; `ebm.infer.adjust_draws` corrects the draws in every direction.

    With `sites` only these parameters' marginal covariances are compared, H^-1 and H^-1 J H^-1 restricted to them; all
    the others remain free. Take this for `NoiseContrastive`, whose log Z is a nuisance.

    Everything refers to NumPyro's unconstrained parameters and to the losses alone: prior and further likelihoods of
    the model have no part in it, nor has the temperature that the model is called with. It is an asymptotic result
    for independent rows, n large against the number of parameters.

    Args:
        model: a NumPyro model with one or more `objective_factor`s (all at one temperature), in no subsampled plate.
        key: one JAX key, for the start of the minimisation.
        model_args: arguments of the model.
        model_kwargs: keyword arguments of the model.
        sites: latent sites whose spread to match; by default all that the losses depend on.
        rule: "magnitude" or "information".
        init_strategy: where to start, as in `numpyro.infer.NUTS`; `init_to_value(values=...)` to start at a given
            place, e.g. where the losses have several minima.

    Returns:
        A `TemperatureCalibration`: `temperature`, `temperatures`, `sd_ratio`, `standard_errors`, `minimizer`,
        `problems`: `NOT_AT_MINIMUM FEW_DATA UNEVEN_TEMPERATURES` (some `sd_ratio` of `sites` beyond a factor 1.25, by
        which a 90 % interval covers 81 % or 96 %).

    Raises:
        ValueError: no factor, or factors of several temperatures; `sites` or `rule` unknown; no minimum was found, or
            some direction is not identified there.
        NotImplementedError: the factor is scaled (`handlers.scale`, subsampling), or inside `scan`; a latent site is
            discrete.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> def model(y, temperature=1.0):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 100.0))
        ...     energy = ebm.FunctionEnergy(lambda mean, x: (x - mean)**2 / 8, (), mean)              # variance 4
        ...     ebm.objective_factor("y", energy, y, ebm.objectives.ExactScoreMatching(), temperature=temperature)
        >>> y = jnp.array([-2.0, 2.0] * 50)
        >>> calibration = ebm.calibrate_temperature(model, key=jax.random.key(0), model_args=(y,))
        >>> print(f"{calibration.temperature:.3f}")         # 1/4: losses are (x - mean)^2 / 32
        0.250
        >>> print(f"{calibration.standard_errors['mean']:.3f}")                                      # 2 / sqrt(100)
        0.200

    References:
        Lyddon, Holmes, Walker (2019). General Bayesian updating and the loss-likelihood bootstrap. Biometrika 106(2),
        465-478. doi:10.1093/biomet/asz006
        Ribatet, Cooley, Davison (2012). Bayesian inference from composite likelihoods, with an application to spatial
        extremes. Statistica Sinica 22, 813-845. doi:10.5705/ss.2009.248
        Pauli, Racugno, Ventura (2011). Bayesian composite marginal likelihoods. Statistica Sinica 21, 149-164.
        Matsubara, Knoblauch, Briol, Oates (2022). Robust generalised Bayesian inference for intractable likelihoods.
        Journal of the Royal Statistical Society B 84(3), 997-1022. doi:10.1111/rssb.12500
    """
    if rule not in get_args(Rule.__value__):
        raise ValueError(f"`rule` must be one of {', '.join(get_args(Rule.__value__))}; got {rule!r}.")
    kwargs = dict(model_kwargs or {})
    info = initialize_model(
        check_key(key), model, init_strategy=init_strategy, model_args=model_args, model_kwargs=kwargs
    )
    z = info.param_info.z
    for name, site in info.model_trace.items():
        if site["type"] == "sample" and is_unknown(site) and site["fn"].has_enumerate_support:
            raise NotImplementedError(f"the latent site {name!r} is discrete: a model without it can be calibrated.")
    names = _check_factors(model, model_args, kwargs, z)
    if not names:
        raise ValueError("no `objective_factor` of the model depends on its latent variables: nothing to calibrate.")
    chosen = names if sites is None else tuple(sites)
    unknown = set(chosen) - set(names)
    if unknown or not chosen:
        raise ValueError(f"`sites` must be some of {names}, on which the losses depend; got {sites!r}.")
    start, unravel = ravel_pytree({name: z[name] for name in names})
    if start.size > MAX_PARAMETERS:
        raise ValueError(f"H and J would be {start.size} x {start.size} matrices; the limit is {MAX_PARAMETERS}.")

    def losses(theta: Array) -> dict[str, Array]:
        return losses_of(model, model_args, kwargs, z | unravel(theta))

    num_data = sum(len(rows) for rows in jax.eval_shape(losses, start).values())
    traced_once = jax.jit(losses)  # and not at every derivative that the search asks for
    minimum = jax.device_get(jax.jit(partial(find_minimum, traced_once))(start))
    found = unravel(jnp.asarray(minimum.theta))
    constrained = jax.device_get(constrain_fn(model, model_args, kwargs, z | found))
    transforms = _transforms_from_trace(info.model_trace, raise_warnings=False)
    geometry = Geometry(
        _checked_hessian(minimum),
        np.asarray(minimum.covariance, float),
        num_data,
        {name: np.shape(found[name]) for name in sorted(names)},
        None if transforms.dynamic_support else transforms.inv_transforms,
    )
    result = summarize(geometry, minimum, chosen, rule, {name: constrained[name] for name in names})
    warn_problems(result.problems)
    return result


def losses_of(model: Callable[..., Any], args: tuple, kwargs: dict[str, Any], z: Any) -> dict[str, Array]:
    """The losses of every datum at unconstrained latent values, by factor, whatever the temperature."""
    found = _factors(model, args, kwargs, z)
    return {name: temperature * rows for name, (rows, temperature) in found.items()}


def _factors(model: Callable[..., Any], args: tuple, kwargs: dict[str, Any], z: Any) -> dict[str, tuple[Array, Array]]:
    """`(loss / temperature of every datum, temperature)` of every objective factor."""
    values = constrain_fn(model, args, kwargs, z)
    bound = handlers.substitute(handlers.seed(model, 0), data=values)
    result = {}
    for name, site in handlers.trace(bound).get_trace(*args, **kwargs).items():
        factor = base_distribution(site["fn"]) if site["type"] == "sample" else None
        if isinstance(factor, ObjectiveFactor):
            if site["scale"] is not None:
                raise NotImplementedError(
                    f"the factor {name!r} is scaled (handlers.scale or subsampling): calibrate on all data, unscaled."
                )
            if jnp.ndim(factor.temperature):
                raise NotImplementedError(f"the factor {name!r} is inside a loop: give it all data at once.")
            rows = -site["fn"].log_prob(site["value"])
            rows = jnp.sum(rows.reshape(-1, rows.shape[-1]), 0)  # a plate outside of that of the data repeats them
            result[name] = rows, jnp.asarray(factor.temperature, rows.dtype)
    return result


def _check_factors(model: Callable[..., Any], args: tuple, kwargs: dict[str, Any], z: Any) -> tuple[str, ...]:
    """See that there are factors at one temperature; the latent sites that they depend on."""
    found = _factors(model, args, kwargs, z)
    if not found:
        raise ValueError("the model has no `objective_factor`: there is no temperature to calibrate.")
    temperatures = {name: float(temperature) for name, (_, temperature) in found.items()}
    if len(set(temperatures.values())) > 1:
        raise ValueError(f"all factors must have one temperature, which is to be found; got {temperatures}.")

    def total(**z: Any) -> dict[str, Array]:
        return {"losses": jnp.concatenate(list(losses_of(model, args, kwargs, z).values()))}

    return tuple(sorted(dependencies(total, z)["losses"]))


def _checked_hessian(minimum: Minimum) -> np.ndarray:
    """H, which must be positive definite beyond rounding, whatever the units of the parameters."""
    hessian = np.asarray(minimum.hessian, float)
    hessian = (hessian + hessian.T) / 2
    if not np.all(np.isfinite(hessian)) or not np.all(np.isfinite(minimum.covariance)):
        raise ValueError("the losses or their derivatives are not finite where the search for the minimum ended.")
    diagonal = np.diagonal(hessian)
    floor = max(MIN_EIGENVALUE, len(hessian)) * np.finfo(minimum.hessian.dtype).eps
    definite = bool(np.all(diagonal > 0))
    if definite:
        scale = 1 / np.sqrt(diagonal)
        definite = float(np.linalg.eigvalsh(scale[:, None] * hessian * scale)[0]) > floor
    if not definite:
        raise ValueError(
            "the Hessian of the mean loss is not positive definite where the search for the minimum ended: some "
            "direction of the parameters is not identified by the objective, or there is no minimum (the parameters "
            "run away), or float32 cannot tell. Centred parametrisations, fewer parameters, another `init_strategy` or "
            "float64 help."
        )
    return hessian


def summarize(
    geometry: Geometry, minimum: Minimum, chosen: tuple[str, ...], rule: str, minimizer: dict[str, np.ndarray]
) -> TemperatureCalibration:
    """Temperature, ratios and problems from H and J."""
    inverse = np.linalg.inv(geometry.hessian)
    sandwich = inverse @ geometry.covariance @ inverse
    members = geometry.split(np.arange(len(inverse)))
    index = np.concatenate([members[name].ravel() for name in geometry.shapes if name in chosen])
    block = np.ix_(index, index)
    flat, true = np.linalg.inv(inverse[block]), sandwich[block]
    part = Geometry(flat, flat @ true @ flat, geometry.num_data, {}, None)
    temperatures = part.eigen()[0]
    if rule == "magnitude":
        temperature = float(np.mean(temperatures))
    else:
        temperature = float(np.trace(flat) / np.trace(np.linalg.pinv(true)))
    if not np.all(np.diagonal(sandwich) > 0):
        raise ValueError("gradients in some parameter do not vary from datum to datum: no sampling error to match.")
    errors = np.sqrt(np.diagonal(sandwich) / geometry.num_data)
    ratio = np.sqrt(temperature * np.diagonal(inverse) / geometry.num_data) / errors
    distance = float(np.max(np.abs(inverse @ np.asarray(minimum.gradient, float)) / errors))
    problems = _problems(geometry, distance, ratio, index)
    ratios, errors = geometry.split(ratio), geometry.split(errors)
    return TemperatureCalibration(
        temperature, temperatures, ratios, errors, minimizer, geometry.num_data, chosen, rule, problems, geometry
    )


def _problems(geometry: Geometry, distance: float, ratio: np.ndarray, index: np.ndarray) -> tuple[Problem, ...]:
    problems = []
    if not distance < MAX_DISTANCE:
        advice = (
            f"the search ended {distance:.2g} standard errors away from the minimum; start nearer to it by "
            "`init_strategy=numpyro.infer.init_to_value(values=...)`, or enable float64."
        )
        problems.append(Problem("NOT_AT_MINIMUM", advice, None, distance))
    if geometry.num_data < MIN_DATA_PER_PARAMETER * len(ratio):
        advice = (
            f"{geometry.num_data} data for {len(ratio)} parameters do not tell how gradients vary; the temperature is "
            f"asymptotic, and wants {MIN_DATA_PER_PARAMETER} data for each parameter at the least."
        )
        problems.append(Problem("FEW_DATA", advice, None, geometry.num_data))
    names = [name for name, shape in geometry.shapes.items() for _ in range(int(np.prod(shape)))]
    worst = index[int(np.argmax(np.abs(np.log(ratio[index]))))]
    if not 1 / SD_FACTOR <= ratio[worst] <= SD_FACTOR:
        advice = (
            f"at this temperature the posterior of {names[worst]!r} is {ratio[worst]:.2g} times as wide as the "
            "sampling error; no single temperature suits all parameters. Name the `sites` that matter, or correct the "
            "draws with ebm.infer.adjust_draws."
        )
        problems.append(Problem("UNEVEN_TEMPERATURES", advice, None, float(ratio[worst])))
    return tuple(problems)
