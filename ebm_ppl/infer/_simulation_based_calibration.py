"""`simulation_based_calibration`: does inference recover what the model itself draws?"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from scipy import stats

from ebm_ppl._checks import check_count, check_key
from ebm_ppl._progress import Progress
from ebm_ppl._types import PRNGKey
from ebm_ppl.diagnostics import to_datatree
from ebm_ppl.errors import Problem
from ebm_ppl.infer._blackjax_kernel import BlackJAXKernel
from ebm_ppl.infer._calibration import Calibration
from ebm_ppl.infer._joint import Joint, bind, labels, make_joint, unflatten
from ebm_ppl.infer._uniformity import holm, uniformity_p_value

GROUP = "prior_sbc"
MAX_SHARE = 0.1  # of the simulations may fall short; more is a problem, and automatic thinning is set by it
MIN_DRAWS = 19  # ranks among fewer draws say little
R_HAT_MAX = 1.1  # looser than for one analysis: the ranks judge the draws, R-hat only names the cause
BATCH_BYTES = 2**26  # of draws on the device at once, by default


def simulation_based_calibration(
    model: Callable[..., Any],
    kernel: Any = BlackJAXKernel,
    *,
    key: Array | Any,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    observed: Sequence[str] | None = None,
    num_simulations: int | Any = 200,
    num_chains: int | Any = 2,
    num_warmup: int | Any = 500,
    num_samples: int | Any = 500,
    thinning: int | Any = None,
    simulator: Callable[..., Any] | None = None,
    prior: Mapping[str, Any] | None = None,
    var_names: Sequence[str] | None = None,
    quantities: Mapping[str, Callable[..., Any]] | None = None,
    batch_size: int | Any = None,
    level: float = 0.01,
    progress_bar: bool = True,
) -> Calibration:
    r"""Draw parameters and data from a NumPyro model, infer the parameters, and rank the true values among the draws.

        theta* ~ prior,   y ~ p(y | theta*),   theta_1, ..., theta_L ~ p(theta | y) by MCMC
        rank = #{ l : f(theta_l, y) < f(theta*, y) }   is uniform on 0, ..., L

    for every f, if and only if (over all f) model, log Z and sampler belong together. An energy whose log Z is wrong
    is found here and nowhere else: its chains mix as well as those of the right one.

    The quantities f are all scalars of the latent sites, the joint log likelihood of the data (which sees a posterior
    that ignores the data, as ranks of parameters alone cannot) and what `quantities` adds. Draws are thinned until
    they are nearly independent. Each p-value is exact for independent draws (simultaneous in all parts of the
    distribution); Holm's adjustment holds the family-wise level.

    Warm-up and sampling of all simulations are one compiled program. Model arguments are constants of it.

    Args:
        model: the NumPyro model. Data must enter as `obs` of sample sites and nowhere else.
        kernel: how to sample: a function of the model such as `ebm.BlackJAXKernel` or `numpyro.infer.NUTS`, or an
            `MCMCKernel`, whose own model is replaced.
        key: one JAX key.
        model_args: arguments of the model. Values of the data in them are ignored.
        model_kwargs: keyword arguments of the model.
        observed: names of the sites that are data; by default those observed when the model is called as given.
        num_simulations: data sets to draw and to analyse, at least 20.
        num_chains: chains for each.
        num_warmup: transitions of warm-up of each chain.
        num_samples: transitions of each chain afterwards, at least 8.
        thinning: keep one draw of so many; by default so many that in nine of ten simulations the draws kept are no
            more than the effective draws of the worst quantity.
        simulator: the model that draws, where it is another program than the one that is inferred.
        prior: draws of latent sites `(num_simulations, *event)`, nearly independent, for sites that cannot be drawn by
            the model (an energy without sampler): from `ebm.parallel_tempering`, for instance.
        var_names: latent and deterministic sites to rank; by default all latent ones.
        quantities: further functions `f(sites, data) -> number or array`, by name.
        batch_size: simulations at once; by default as many as fit into 64 MiB of draws.
        level: family-wise error: how often a right model is rejected by any quantity.
        progress_bar: show progress over batches.

    Returns:
        A `Calibration`: `ok`, `p_value`, `table`, `ranks`, and `datatree`, whose PIT values `az.plot_ecdf_pit` shows.
        Problems: `NONFINITE_SIMULATION NONFINITE_DRAW R_HAT ESS_BULK TOO_SHORT`.

    Raises:
        ValueError: a count or name is out of range; nothing is observed; the model has factors and `prior` is missing.
        TypeError: `kernel` does not give an `MCMCKernel`.
        NotImplementedError: an energy without sampler; subsampling; `numpyro.param`.
        MissingLogNormalizerError: a log Z is missing.

    Example:
        >>> import functools, jax, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> def model(y=None):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> kernel = functools.partial(ebm.BlackJAXKernel, kernel=ebm.RandomWalk(2.0), precondition="none")
        >>> result = ebm.diagnostics.simulation_based_calibration(
        ...     model, kernel, key=jax.random.key(0), observed=["y"], num_simulations=40, num_warmup=0
        ... )
        >>> result.ok
        True

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman (2018). Validating Bayesian inference algorithms with
        simulation-based calibration. arXiv:1804.06788
        Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman, Vehtari (2023). Simulation-based calibration checking
        for Bayesian computation: the choice of test quantities shapes sensitivity. Bayesian Analysis.
        doi:10.1214/23-BA1404
        Säilynoja, Bürkner, Vehtari (2022). Graphical test for discrete uniformity and its applications in goodness-of-
        fit evaluation and multiple sample comparison. Statistics and Computing 32, 32. doi:10.1007/s11222-022-10090-6
    """
    counts = [
        check_count("num_chains", num_chains),
        check_count("num_warmup", num_warmup, 0),
        check_count("num_samples", num_samples, 8),
    ]
    number, key = check_count("num_simulations", num_simulations, 20), check_key(key)
    thinning = None if thinning is None else check_count("thinning", thinning)
    if thinning is not None and thinning > counts[2]:
        raise ValueError(f"`thinning` must not exceed `num_samples` {counts[2]}; got {thinning}.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1; got {level!r}.")
    prior = _check_prior(prior, number)
    joint = make_joint(model, simulator, model_args, model_kwargs, observed, var_names, quantities, prior)
    shapes = joint.shapes(prior)
    size = 8 * counts[0] * counts[2] * sum(int(np.prod(shape)) for shape in shapes.values())
    batch = max(1, min(number, BATCH_BYTES // size)) if batch_size is None else check_count("batch_size", batch_size)
    simulation_key, rank_key = jax.random.split(key)
    study = _Study(joint, kernel, *counts)
    parts = _run(study, jax.random.split(simulation_key, number), prior, min(batch, number), show=progress_bar)
    return _judge(study, parts, shapes, thinning, level, rank_key)


@dataclasses.dataclass(frozen=True, eq=False)
class _Study:
    """One simulation and its analysis: the function that is vectorised."""

    joint: Joint
    kernel: Any
    num_chains: int
    num_warmup: int
    num_samples: int

    def __call__(self, key: PRNGKey, prior: dict[str, Array]) -> tuple[Array, Array, Array]:
        """The quantities at the truth `(quantity,)` and at the draws `(chain, draw, quantity)`; divergences."""
        draw_key, chain_key = jax.random.split(key)
        truth, data = self.joint.draw(draw_key, prior)
        chain = jax.vmap(lambda one: self._chain(one, data))
        draws, diverging = chain(jax.random.split(chain_key, self.num_chains))
        return self.joint.vector(truth, data), draws, diverging

    def _chain(self, key: PRNGKey, data: dict[str, Array]) -> tuple[Array, Array]:
        args, kwargs = self.joint.model_args, self.joint.model_kwargs
        kernel = bind(self.kernel, self.joint.posterior(data))
        state = kernel.init(key, self.num_warmup, None, args, kwargs)
        constrain = kernel.postprocess_fn(args, kwargs)

        def collected(state: Any) -> tuple[Any, Array]:
            diverging = getattr(state, "diverging", jnp.nan)  # not every kernel reports it
            return getattr(state, kernel.sample_field), jnp.asarray(diverging, jnp.result_type(float))

        def step(index: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            # One body for warm-up and sampling, so that the kernel is compiled once; warm-up is overwritten.
            state, store = carry
            state = kernel.sample(state, args, kwargs)
            at = jnp.maximum(index - self.num_warmup, 0)
            return state, jax.tree.map(lambda rows, row: rows.at[at].set(row), store, collected(state))

        store = jax.tree.map(lambda row: jnp.zeros((self.num_samples, *row.shape), row.dtype), collected(state))
        _, (positions, diverging) = jax.lax.fori_loop(0, self.num_warmup + self.num_samples, step, (state, store))
        draws = jax.lax.map(lambda position: self.joint.vector(constrain(position), data), positions)
        return draws, diverging


class _Parts(NamedTuple):
    """What is kept of each simulation: where each draw lies, not the draw."""

    sides: Int[np.ndarray, "simulation chain draw quantity"]  # -1 below the truth, 0 equal, 1 above
    finite_truth: Bool[np.ndarray, " simulation"]
    finite_draws: Bool[np.ndarray, " simulation"]
    ess: Float[np.ndarray, "simulation quantity"]
    r_hat: Float[np.ndarray, "simulation quantity"]
    diverging: Float[np.ndarray, " simulation"]


def _run(study: _Study, keys: Array, prior: dict[str, np.ndarray], batch_size: int, *, show: bool) -> _Parts:
    number = len(keys)
    program = jax.jit(jax.vmap(study))
    progress = Progress(number, "calibrate", unit="simulation", enabled=show)
    parts = []
    for first in range(0, number, batch_size):
        # The last batch is filled up with simulations that are thrown away: one shape, one compilation.
        rows = np.minimum(np.arange(first, first + batch_size), number - 1)
        results = program(keys[rows], {name: values[rows] for name, values in prior.items()})
        kept = min(batch_size, number - first)
        parts.append(_reduce(*(np.asarray(result)[:kept] for result in results)))
        progress.update(kept)
    progress.close()
    return _Parts(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _reduce(truth: np.ndarray, draws: np.ndarray, diverging: np.ndarray) -> _Parts:
    middle = truth[:, None, None, :]
    sides = (draws > middle).astype(np.int8) - (draws < middle)  # non-finite ones are reported, and never ranked
    finite_truth, finite_draws = np.isfinite(truth).all(-1), np.isfinite(draws).all((1, 2, 3))
    ess, r_hat = mixing_of_many(draws)
    return _Parts(sides, finite_truth, finite_draws, ess, r_hat, diverging.mean((1, 2)))


def mixing_of_many(
    draws: Float[np.ndarray, "simulation chain draw quantity"],
) -> tuple[Float[np.ndarray, "simulation quantity"], Float[np.ndarray, "simulation quantity"]]:
    """Bulk effective sample size (0 where a chain is frozen or not finite) and rank R-hat, all simulations at once."""
    simulations, _, length, quantities = draws.shape
    halves = np.moveaxis(draws, 0, 2).astype(np.float64)[:, : 2 * (length // 2)]
    halves = np.concatenate(np.split(halves, 2, axis=1)).reshape(-1, length // 2, simulations * quantities)
    valid = np.isfinite(halves).all((0, 1)) & (np.ptp(halves, axis=1) > 0).all(0)
    ess, r_hat = np.zeros(halves.shape[-1]), np.full(halves.shape[-1], np.nan)
    if valid.any():
        halves = halves[..., valid]
        folded = np.abs(halves - np.median(halves, axis=(0, 1)))
        scores = _normal_scores(halves)
        ess[valid] = effective_sample_size(scores)
        r_hat[valid] = np.maximum(gelman_rubin(scores), gelman_rubin(_normal_scores(folded)))
    return ess.reshape(simulations, quantities), r_hat.reshape(simulations, quantities)


def _normal_scores(values: Float[np.ndarray, "chain draw column"]) -> Float[np.ndarray, "chain draw column"]:
    flat = values.reshape(-1, values.shape[-1])
    ranks = stats.rankdata(flat, axis=0)
    return stats.norm.ppf((ranks - 0.375) / (len(flat) + 0.25)).reshape(values.shape)


def _judge(
    study: _Study,
    parts: _Parts,
    shapes: dict[str, tuple[int, ...]],
    thinning: int | None,
    level: float,
    key: PRNGKey,
) -> Calibration:
    # What never differs from the truth is constant: the corner of a Cholesky factor, the diagonal of a correlation.
    varies = (parts.sides != 0).any((0, 1, 2)) | ~(parts.finite_truth & parts.finite_draws).all()
    if not varies.any():
        raise ValueError("every quantity has one and the same value always: there is nothing to rank.")
    ess, r_hat = parts.ess[:, varies], parts.r_hat[:, varies]
    worst = ess.min(axis=1)
    if thinning is None:
        effective = max(float(np.quantile(worst, MAX_SHARE)), 1.0)
        thinning = min(int(np.ceil(study.num_chains * study.num_samples / effective)), study.num_samples)
    kept = parts.sides[:, :, thinning - 1 :: thinning]
    num_draws = kept.shape[1] * kept.shape[2]
    below, equal = (kept < 0).sum((1, 2)), (kept == 0).sum((1, 2))
    random = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    ranks = below + random.integers(0, equal, endpoint=True)
    pit = (ranks + random.random(ranks.shape)) / (num_draws + 1)
    tested = [uniformity_p_value(column, num_draws) for column in ranks.T]
    single = np.where(varies, np.array([p for p, _ in tested]), np.nan)
    usable = parts.finite_truth & parts.finite_draws
    if not usable.all():
        single, pit = np.zeros_like(single), np.where(usable[:, None], pit, np.nan)
    adjusted = single.copy()
    adjusted[varies] = holm(single[varies])
    columns = {
        "p_value": single,
        "p_value_adjusted": adjusted,
        "ecdf_difference": np.array([difference for _, difference in tested]),
        "mean_pit": pit.mean(axis=0),
        "sd_pit": pit.std(axis=0),
        "median_ess": np.median(parts.ess, axis=0),
        "median_r_hat": np.median(parts.r_hat, axis=0),
    }
    table = xr.Dataset({name: ("quantity", values) for name, values in columns.items()}, {"quantity": labels(shapes)})
    sites = {name: values[None] for name, values in unflatten(pit, shapes).items()}
    return Calibration(
        datatree=to_datatree(sites, group=GROUP),
        table=table,
        ranks=ranks,
        num_draws=num_draws,
        thinning=thinning,
        level=level,
        problems=_problems(parts, r_hat, worst, num_draws),
        diverging=float(parts.diverging.mean()),
    )


def _problems(
    parts: _Parts,
    r_hat: Float[np.ndarray, "simulation quantity"],
    worst: Float[np.ndarray, " simulation"],
    num_draws: int,
) -> tuple[Problem, ...]:
    number, found = len(worst), []
    lost = int(np.count_nonzero(~parts.finite_truth))
    if lost:
        advice = f"{lost} of {number} simulations are not finite: the prior reaches where the model overflows."
        found.append(Problem("NONFINITE_SIMULATION", advice, value=lost))
    lost = int(np.count_nonzero(~parts.finite_draws & parts.finite_truth))
    if lost:
        advice = f"in {lost} of {number} simulations a draw or its log likelihood is not finite."
        found.append(Problem("NONFINITE_DRAW", advice, value=lost))
    share = float(np.mean(~(r_hat <= R_HAT_MAX).all(axis=1)))
    if share > MAX_SHARE:
        advice = f"in {share:.0%} of the simulations R-hat exceeds {R_HAT_MAX} or a chain is frozen: warm up longer."
        found.append(Problem("R_HAT", advice, value=share))
    share = float(np.mean(worst < num_draws / 2))
    if share > MAX_SHARE:
        advice = (
            f"in {share:.0%} of the simulations fewer than half of the {num_draws} draws kept are effective: ranks of "
            "such draws are not uniform even if all is right. Raise `thinning`, or leave it out."
        )
        found.append(Problem("ESS_BULK", advice, value=share))
    if num_draws < MIN_DRAWS:
        advice = f"only {num_draws} nearly independent draws for each rank, {MIN_DRAWS} are needed: run longer."
        found.append(Problem("TOO_SHORT", advice, value=num_draws))
    return tuple(found)


def _check_prior(prior: Mapping[str, Any] | None, number: int) -> dict[str, np.ndarray]:
    values = {name: np.asarray(jnp.asarray(value)) for name, value in (prior or {}).items()}
    for name, value in values.items():
        if value.ndim < 1 or len(value) != number:
            raise ValueError(f"`prior[{name!r}]` must lead with num_simulations {number}; got shape {value.shape}.")
        if not np.isfinite(value).all():
            raise ValueError(f"`prior[{name!r}]` has non-finite values.")
    return values
