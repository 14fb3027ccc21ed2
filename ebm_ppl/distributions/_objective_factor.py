"""A training objective in the place of a likelihood: generalised Bayes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax.core import Tracer
from jaxtyping import Array, Float
from numpyro.primitives import _PYRO_STACK

from ebm_ppl._checks import check_count, check_finite, check_floating, check_key, check_positive
from ebm_ppl.distributions._factor import ObjectiveFactor, add_factor
from ebm_ppl.distributions._guard import varying_sites
from ebm_ppl.distributions._provenance import dependencies
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import KeyArgumentError
from ebm_ppl.objectives import AbstractMeanObjective, Batch, HutchinsonScoreMatching


def objective_factor(
    name: str,
    energy: AbstractEnergy | Any,
    data: Any,
    objective: AbstractMeanObjective | Any,
    *,
    temperature: Any = 1.0,
    key: Any = None,
    condition: Any = None,
    num_draws: int | Any = 1,
) -> None:
    r"""In a NumPyro model: learn the parameters of an energy from data by an objective that needs no log Z.

        log joint  <-  log joint - sum over data of loss_i / temperature,   mean of loss_i = objective

    The posterior is that of generalised Bayes: it contracts about the minimiser of the objective as an ordinary one
    does about that of the negative log likelihood. Its width is set by `temperature`, and for most objectives 1 means
    nothing: the scale of a score-matching loss is that of 1/x^2. `ebm.calibrate_temperature` finds the temperature at
    which the width is the sampling error.

    Which objective:

    - score matching (`ExactScoreMatching`, or Hutchinson's, sliced, finite differences, denoising): quadratic in the
      parameters of an exponential family, so that with a Gaussian prior the posterior is Gaussian.
    - `NoiseContrastive`: log Z is one more latent variable, `ebm.ShiftedEnergy(energy, log_normalizer)`, with a
      flat or wide prior. This is a likelihood, that of telling data from noise: at temperature 1 the posterior of all
      *other* parameters has the right width where the model is right; that of log Z is too wide.
    - `RankingNoiseContrastive`: a likelihood too, without log Z: temperature 1 is right where the model is.
    - `ConditionalNoiseContrastive`, `MinimumProbabilityFlow`, `EnergyDiscrepancy`: without log Z, to be calibrated.
    - `MaximumLikelihood`: the ordinary posterior at temperature 1; one that is robust to a wrong model when calibrated.

    The noise or the probes of an objective are drawn once, from `key`: the density must be a function of the latent
    variables alone, or no sampler is right. More `num_draws` of them per datum lower the variance that they add.

    Like `energy_factor` it is not taken for data: it does not appear in `Predictive` (the prior predictive does not
    see it), in `log_likelihood` or in ArviZ's `observed_data`. There is no log likelihood: models cannot be compared
    by `az.loo`. Rows are data: inside `numpyro.plate("n", len(data))` or, where no other site is enumerated, outside
    of any plate. `temperature` is a number that you set: as a latent variable it would have a density without a
    normaliser, and run away.

    Args:
        name: name of the site; unique.
        energy: the energy, made of latent variables; `ebm.ShiftedEnergy` for `NoiseContrastive`.
        data: `(n, *energy.event_shape)`.
        objective: a mean over data, of `ebm.objectives`.
        temperature: > 0, one number, in the units of the objective.
        key: one JAX key; the same for every evaluation and every chain. Needed where the objective draws something.
        condition: for a conditional energy, `(n, *condition_shape)`.
        num_draws: draws of the objective's randomness per datum, averaged.

    Raises:
        TypeError: `objective` has no value whose minimum is the estimate (contrastive divergence, minimax games).
        NotImplementedError: `HutchinsonScoreMatching` with a sketch, whose derivative is not that of its value.
        KeyArgumentError: the objective draws noise or probes, and `key` is missing.
        EnergyShapeError: `data` or `condition` does not fit the energy.
        InvalidDataError: data are not finite, or lie where the noise has no density.
        ValueError: `temperature` or `num_draws` is out of range; `temperature` depends on a latent variable; a plate
            other than that of the data would count every datum several times.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> from numpyro.infer.util import log_density
        >>> def half_square(precision, x):
        ...     return precision * x**2 / 2
        >>> def model(y, temperature=1.0):
        ...     precision = numpyro.sample("precision", dist.Normal(0.0, 1.0))
        ...     energy = ebm.FunctionEnergy(half_square, (), precision)                     # log Z is missing
        ...     ebm.objective_factor("y", energy, y, ebm.objectives.ExactScoreMatching(), temperature=temperature)
        >>> log_joint, _ = log_density(model, (jnp.ones(10), 2.0), {}, {"precision": jnp.array(1.0)})
        >>> print(f"{log_joint:.4f}")                       # log N(1) - 10 (1/2 - 1) / 2
        1.0811

    References:
        Bissiri, Holmes, Walker (2016). A general framework for updating belief distributions. Journal of the Royal
        Statistical Society B 78(5), 1103-1130. doi:10.1111/rssb.12158
        Matsubara, Knoblauch, Briol, Oates (2022). Robust generalised Bayesian inference for intractable likelihoods.
        Journal of the Royal Statistical Society B 84(3), 997-1022. doi:10.1111/rssb.12500
        Gutmann, Hyvärinen (2012). Noise-contrastive estimation of unnormalized statistical models. Journal of Machine
        Learning Research 13, 307-361. https://jmlr.org/papers/v13/gutmann12a.html
    """
    _check_objective(objective)
    _check_temperature(temperature)
    _check_plates(name)
    num_draws = check_count("num_draws", num_draws)
    batch = _batch(data, condition)
    if key is None and _is_random(objective, energy, batch):
        raise KeyArgumentError(
            f"`{type(objective).__name__}` draws noise or probes: pass `key=jax.random.key(0)`, one for all chains. "
            "They are drawn once; were they drawn anew, the density would not be a function of the parameters."
        )
    key = jax.random.key(0) if key is None else check_key(key)
    with jax.ensure_compile_time_eval():  # the checks look at the data: known even where a model is being traced
        objective.init(energy, batch, key=key)
    if num_draws == 1:
        losses = _losses(objective, energy, batch, key)
    else:
        keys = jax.random.split(key, num_draws)
        losses = jnp.mean(jax.lax.map(lambda key: _losses(objective, energy, batch, key), keys), 0)
    add_factor(name, ObjectiveFactor(losses, jnp.asarray(temperature, losses.dtype)))


def _losses(objective: AbstractMeanObjective, energy: Any, batch: Batch, key: Array) -> Float[Array, " n"]:
    return objective.evaluate(energy, batch, key=key)[0]


def _check_objective(objective: Any) -> None:
    name = type(objective).__name__
    if not isinstance(objective, AbstractMeanObjective) or not objective.comparable:
        raise TypeError(
            f"`objective` must be a mean over data whose minimum is the estimate; `{name}` is not. Chains and "
            "minimax games have gradients, but no value: use ebm.ExchangeKernel, or an objective such as "
            "ebm.objectives.ExactScoreMatching()."
        )
    if isinstance(objective, HutchinsonScoreMatching) and objective.sketch_size:
        raise NotImplementedError(
            "`sketch_size` must be 0 in a posterior: the sketch is not differentiated, right for the mean over "
            "sketches and wrong for the one drawn here, in the gradient and in the Hessian. Take more `num_probes`."
        )


def _check_temperature(temperature: Any) -> None:
    check_positive("temperature", temperature)
    if jnp.ndim(temperature) != 0:
        raise ValueError(f"`temperature` must be one number; got shape {jnp.shape(temperature)}.")
    names = varying_sites(temperature)
    if names:
        raise ValueError(
            f"`temperature` must not depend on latent variables; it does on {', '.join(map(repr, names))}: "
            "exp(-loss / temperature) has no normaliser, and the temperature would run away. "
            "ebm.calibrate_temperature finds it."
        )


def _check_plates(name: str) -> None:
    """Rows lie along the last axis: a plate further left repeats them."""
    for plate in _PYRO_STACK:
        if isinstance(plate, numpyro.plate) and plate.dim != -1 and plate.subsample_size > 1:
            raise ValueError(
                f"the plate {plate.name!r} at dim={plate.dim} would count every datum of the factor {name!r} "
                f"{plate.subsample_size} times: data are rows, their plate is at dim=-1, and no other holds the factor."
            )


def _batch(data: Any, condition: Any) -> Batch:
    arrays = {"data": check_floating("data", data)}
    if condition is not None:
        arrays["condition"] = check_floating("condition", condition)
    for name, array in arrays.items():
        if not isinstance(array, Tracer):
            check_finite(name, array)
    return arrays["data"] if condition is None else (arrays["data"], arrays["condition"])


def _is_random(objective: AbstractMeanObjective, energy: Any, batch: Batch) -> bool:
    """Whether the losses depend on the key: read off the program, nothing is computed."""
    found = dependencies(lambda key: {"losses": _losses(objective, energy, batch, key)}, {"key": jax.random.key(0)})
    return bool(found["losses"])
