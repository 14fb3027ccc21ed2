"""The outcome of calibrating a temperature, and draws that are right in every direction."""

import dataclasses
import html
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from numpyro.infer.util import transform_fn

from ebm_ppl._checks import check_positive
from ebm_ppl.errors import Problem, warn_problems

SD_FACTOR = 1.25  # by so much a 90 % interval covers 81 % or 96 %
PRIOR_FACTOR = 1.5  # between the spread of draws and what the data alone would give


@dataclasses.dataclass(frozen=True, eq=False)
class TemperatureCalibration:
    """Outcome of `calibrate_temperature`. All numbers but `minimizer` refer to NumPyro's unconstrained parameters.

    Args:
        temperature: what to give to `objective_factor`.
        temperatures: the temperatures that would be right in single directions, ascending; all equal where the
            objective is proportional to a right log likelihood.
        sd_ratio: by site, the posterior's standard deviation at `temperature` over the sampling one (the prior left
            out); NumPyro's unconstrained shapes. 1 is right, below it intervals are too short.
        standard_errors: by site, the sampling standard deviation of the minimiser.
        minimizer: by site, the parameters that minimise the objective, constrained.
        num_data: rows that were used.
        sites: the latent sites whose spread was matched.
        rule: how.
        problems: reasons not to trust the temperature, or not for all parameters.
        geometry: for `adjust_draws`.
    """

    temperature: float
    temperatures: Float[np.ndarray, " dim"]
    sd_ratio: dict[str, np.ndarray]
    standard_errors: dict[str, np.ndarray]
    minimizer: dict[str, np.ndarray]
    num_data: int
    sites: tuple[str, ...]
    rule: str
    problems: tuple[Problem, ...]
    geometry: "Geometry" = dataclasses.field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether one temperature serves all parameters, and was found."""
        return not self.problems

    def __repr__(self) -> str:
        """The temperature, its range over directions, the worst ratios, problems."""
        low, high = self.temperatures[0], self.temperatures[-1]
        head = (
            f"calibrate_temperature: {self.temperature:.4g} by {self.rule} from {self.num_data} data (single "
            f"directions {low:.4g} to {high:.4g}): {'ok' if self.ok else 'NOT ok'}"
        )
        rows = [
            f"  {name}: posterior sd / sampling sd {_range(self.sd_ratio[name])}, standard error "
            f"{_range(self.standard_errors[name])}"
            for name in self.sd_ratio
        ]
        return "\n".join([head, *rows, *(f"  {problem}" for problem in self.problems)])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """H, J and n at the minimum, and how the latent sites become one vector.

    Args:
        hessian: of the mean loss.
        covariance: of the gradients of single losses.
        num_data: rows.
        shapes: unconstrained shapes of the sites, in their order in the vector.
        transforms: unconstrained -> constrained, of every latent site; None where they depend on each other.
    """

    hessian: Float[np.ndarray, "dim dim"]
    covariance: Float[np.ndarray, "dim dim"]
    num_data: int
    shapes: dict[str, tuple[int, ...]]
    transforms: Mapping[str, Any] | None

    def eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """`(values, vectors)` of J v = value H v, with vectors' H vectors = 1."""
        root = np.linalg.cholesky(self.hessian)
        half = np.linalg.solve(root, np.linalg.solve(root, self.covariance).T)
        values, vectors = np.linalg.eigh((half + half.T) / 2)
        return np.maximum(values, 0), np.linalg.solve(root.T, vectors)  # rounding alone makes a value negative

    def split(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The last axis of `vector` by site."""
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        parts = np.split(vector, np.cumsum(sizes)[:-1], axis=-1)
        return {
            name: part.reshape(vector.shape[:-1] + shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


def adjust_draws(
    calibration: TemperatureCalibration, samples: Mapping[str, Any], *, temperature: Any = None
) -> dict[str, Any]:
    r"""Draws of a generalised posterior, stretched so that their spread is the sampling error in *every* direction.

        z  <-  mean(z) + sum_i sqrt(t_i / temperature) v_i (v_i' H (z - mean(z))),    J v_i = t_i H v_i,  v_i' H v_i = 1

    One temperature cannot do that when `calibration.temperatures` t_i differ. This is the open-faced sandwich
    adjustment, with the square root that moves the draws least in the metric of H; z are the unconstrained
    parameters. It stretches the prior's part as well: for posteriors that the data dominate.

    Args:
        calibration: from `calibrate_temperature`.
        samples: constrained draws by site, e.g. `mcmc.get_samples()`; any number of leading axes.
        temperature: the temperature that they were drawn at; by default the calibrated one.

    Returns:
        The latent sites, adjusted; those that the objective does not depend on as they were. Deterministic sites are
        left out, since they would no longer fit: `numpyro.infer.Predictive(model, posterior_samples=...)` gives them.
        Warns `NOT_ASYMPTOTIC` where the draws' own spread is not that of a posterior dominated by the data.

    Raises:
        ValueError: a site is missing; `temperature` is not positive.
        NotImplementedError: the support of a latent variable depends on another one.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> def model(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 100.0))
        ...     energy = ebm.FunctionEnergy(lambda mean, x: (x - mean)**2 / 8, (), mean)              # variance 4
        ...     ebm.objective_factor("y", energy, y, ebm.objectives.ExactScoreMatching())
        >>> y = jnp.array([-2.0, 2.0] * 50)
        >>> calibration = ebm.calibrate_temperature(model, key=jax.random.key(0), model_args=(y,))
        >>> draws = {"mean": 0.4 * jax.random.normal(jax.random.key(1), (4, 500))}     # the posterior at temperature 1
        >>> adjusted = ebm.infer.adjust_draws(calibration, draws, temperature=1.0)
        >>> print(f"{adjusted['mean'].std():.1f}")                                     # 2 / sqrt(100)
        0.2

    References:
        Shaby (2014). The open-faced sandwich adjustment for MCMC using estimating functions. Journal of Computational
        and Graphical Statistics 23(3), 853-876. doi:10.1080/10618600.2013.842174
        Ribatet, Cooley, Davison (2012). Bayesian inference from composite likelihoods, with an application to spatial
        extremes. Statistica Sinica 22, 813-845. doi:10.5705/ss.2009.248
    """
    geometry = calibration.geometry
    temperature = calibration.temperature if temperature is None else temperature
    check_positive("temperature", temperature)
    if geometry.transforms is None:
        raise NotImplementedError("the support of a latent variable depends on another: adjust by hand, unconstrained.")
    missing = set(geometry.transforms) - set(samples)
    if missing:
        raise ValueError(f"`samples` must hold every latent site; {', '.join(map(repr, sorted(missing)))} missing.")
    kept = {name: samples[name] for name in geometry.transforms}
    unconstrained = transform_fn(geometry.transforms, kept, invert=True)
    lead = np.shape(next(iter(unconstrained.values())))
    lead = lead[: len(lead) - len(geometry.shapes.get(next(iter(unconstrained)), ()))]
    z = np.concatenate([np.asarray(unconstrained[name], float).reshape(*lead, -1) for name in geometry.shapes], axis=-1)
    centre = z.mean(tuple(range(z.ndim - 1)))
    _warn_of_the_prior(geometry, z, float(temperature))
    values, vectors = geometry.eigen()
    stretch = vectors @ np.diag(np.sqrt(values / float(temperature))) @ vectors.T @ geometry.hessian
    moved = geometry.split(centre + (z - centre) @ stretch.T)
    dtype = {name: np.asarray(kept[name]).dtype for name in moved}
    changed = {name: moved[name].astype(dtype[name]) for name in moved}
    return kept | transform_fn({name: geometry.transforms[name] for name in changed}, changed)


def _warn_of_the_prior(geometry: Geometry, z: np.ndarray, temperature: float) -> None:
    found = z.reshape(-1, z.shape[-1]).std(0)
    expected = np.sqrt(temperature * np.diagonal(np.linalg.inv(geometry.hessian)) / geometry.num_data)
    ratio = found / expected
    worst = int(np.argmax(np.abs(np.log(ratio))))
    if not 1 / PRIOR_FACTOR < ratio[worst] < PRIOR_FACTOR:
        advice = (
            f"the draws of parameter {worst} spread {ratio[worst]:.2g} times as much as the data alone would let them "
            "at this temperature: the prior or too few data shape the posterior, and adjusted draws mean little. Were "
            "they drawn at this `temperature`?"
        )
        warn_problems([Problem("NOT_ASYMPTOTIC", advice, None, float(ratio[worst]))], stacklevel=4)


def _range(values: np.ndarray) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.3g}" if np.size(values) == 1 else f"{low:.3g} to {high:.3g}"
