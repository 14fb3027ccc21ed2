"""`geweke_joint_test`: two simulators of the joint distribution of parameters and data that must agree."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpyro.infer import HMC
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import unconstrain_fn
from scipy import stats

from ebm_ppl._checks import check_count, check_key
from ebm_ppl._types import PRNGKey
from ebm_ppl.diagnostics import Verdict
from ebm_ppl.errors import Problem
from ebm_ppl.infer._blackjax_kernel import BlackJAXKernel
from ebm_ppl.infer._chain import BlackJAXState
from ebm_ppl.infer._joint import Joint, Sites, bind, labels, make_joint
from ebm_ppl.infer._uniformity import holm

DATA = "_ebm_ppl_data"  # the keyword by which data reach the kernel's model: they change at every transition
MIN_CHAINS = 20  # the error comes from the spread of the chains' means, which needs no estimate of autocorrelation
FUNCTIONS = ("location", "spread")


def geweke_joint_test(
    model: Callable[..., Any],
    kernel: Any = BlackJAXKernel,
    *,
    key: Array | Any,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    observed: Sequence[str] | None = None,
    num_chains: int | Any = 100,
    num_warmup: int | Any = 200,
    num_samples: int | Any = 200,
    simulator: Callable[..., Any] | None = None,
    var_names: Sequence[str] | None = None,
    quantities: Mapping[str, Callable[..., Any]] | None = None,
    level: float = 0.01,
) -> Verdict:
    r"""Geweke's joint distribution test of model and transition kernel ("getting it right").

        marginal-conditional:     theta ~ prior,               y ~ p(y | theta)       independent draws
        successive-conditional:   y ~ p(y | theta),   theta ~ kernel(theta | y), ...  a chain

    Both draw from p(theta, y) if and only if the kernel leaves p(theta | y) invariant. Every chain starts in a draw of
    the joint distribution, with a kernel that was tuned on other data and then frozen: with a right kernel it is
    stationary from the first transition, and no burn-in, convergence or effective sample size is to be judged.
    (Kernels other than `ebm.BlackJAXKernel` and NumPyro's HMC and NUTS start where their warm-up ends: it must be long
    enough.)

    For every quantity f (all scalars of the latent sites, the joint log likelihood of the data, `quantities`) two
    bounded functions are compared, u - 1/2 and (u - 1/2)^2, with u(f) the distribution function of f under the prior,
    from a sample of its own; so that heavy tails do no harm. z is the difference of the means over its standard
    error, which for the chains is that of the mean of `num_chains` independent chain means: whatever their
    autocorrelation, it is right.

    Args:
        model: the NumPyro model. Data must enter as `obs` of sample sites and nowhere else.
        kernel: how to sample: a function of the model such as `ebm.BlackJAXKernel` or `numpyro.infer.NUTS`, or an
            `MCMCKernel`, whose own model is replaced. It must have `refresh`, as kernels for `numpyro.infer.Gibbs`.
        key: one JAX key.
        model_args: arguments of the model. Values of the data in them are ignored.
        model_kwargs: keyword arguments of the model.
        observed: names of the sites that are data; by default those observed when the model is called as given.
        num_chains: successive-conditional chains, at least 20.
        num_warmup: transitions of warm-up of each chain, on a simulated data set of its own.
        num_samples: transitions of each chain, with new data before each.
        simulator: the model that draws, where it is another program than the one that is inferred.
        var_names: latent and deterministic sites to compare; by default all latent ones.
        quantities: further functions `f(sites, data) -> number or array`, by name.
        level: family-wise error: how often a right kernel is rejected by any quantity.

    Returns:
        A `Verdict`: `ok`, `p_value` (Holm over all quantities and functions), `statistic` (the largest |z|), `table`
        over `identity` with `estimate` (difference of means), `standard_error`, `z`, `p_value`, `p_value_adjusted`
        (NaN for what is constant, as the corner of a Cholesky factor is: it is not judged).
        Problem: `NONFINITE_DRAW`.

    Raises:
        ValueError: a count or name is out of range; nothing is observed; the model has factors.
        TypeError: `kernel` does not give an `MCMCKernel`.
        NotImplementedError: the kernel has no `refresh`; an energy without sampler; subsampling; `numpyro.param`.

    Example:
        >>> import functools, jax, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> def model(y=None):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> kernel = functools.partial(ebm.BlackJAXKernel, kernel=ebm.RandomWalk(2.0), precondition="none")
        >>> verdict = ebm.diagnostics.geweke_joint_test(
        ...     model, kernel, key=jax.random.key(0), observed=["y"], num_warmup=0, num_samples=50
        ... )
        >>> verdict.ok
        True

    References:
        Geweke (2004). Getting it right: joint distribution tests of posterior simulators. Journal of the American
        Statistical Association 99(467), 799-804. doi:10.1198/016214504000001132
        Gandy, Scott (2020). Unit testing for MCMC and other Monte Carlo methods. arXiv:2001.06465
    """
    number, key = check_count("num_chains", num_chains, MIN_CHAINS), check_key(key)
    num_warmup, num_samples = check_count("num_warmup", num_warmup, 0), check_count("num_samples", num_samples)
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1; got {level!r}.")
    joint = make_joint(model, simulator, model_args, model_kwargs, observed, var_names, quantities)
    names = labels(joint.shapes())
    chain_key, marginal_key = jax.random.split(key)
    chains = jax.jit(jax.vmap(_Chain(joint, kernel, num_warmup, num_samples)))
    successive = np.asarray(chains(jax.random.split(chain_key, number)), np.float64)
    draw = jax.jit(lambda keys: jax.lax.map(lambda one: joint.vector(*joint.draw(one)), keys, batch_size=256))
    size = max(2000, number * num_samples // 4)
    marginal = np.asarray(draw(jax.random.split(marginal_key, 2 * size)), np.float64)
    table = _compare(marginal[:size], marginal[size:], successive, names)
    finite = bool(np.isfinite(marginal).all() and np.isfinite(successive).all())
    advice = "a simulated value or its log likelihood is not finite: the prior reaches where the model overflows."
    return Verdict(
        test="geweke_joint_test",
        statistic=float(np.abs(table["z"]).max()) if finite else np.nan,
        p_value=float(table["p_value_adjusted"].min()),
        level=level,
        table=table,
        problems=() if finite else (Problem("NONFINITE_DRAW", advice),),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Chain:
    """One successive-conditional chain: the function that is vectorised."""

    joint: Joint
    kernel: Any
    num_warmup: int
    num_samples: int

    def __call__(self, key: PRNGKey) -> Float[Array, "draw quantity"]:
        joint, args = self.joint, self.joint.model_args
        tune_key, place_key, init_key, key = jax.random.split(key, 4)
        kernel: Any = bind(self.kernel, self._given_data)
        sites, data = joint.draw(tune_key)
        kwargs = joint.model_kwargs | {DATA: data}
        start = self._start(kernel, sites, kwargs)
        state = kernel.init(init_key, self.num_warmup, start, args, kwargs)
        state = jax.lax.fori_loop(0, self.num_warmup, lambda _, state: kernel.sample(state, args, kwargs), state)
        if start is None:
            sites = self._sites(kernel, state, kwargs)
        else:
            # A draw of its own: had the step size been tuned on the data the chain starts with, it would say something
            # about them, and chains of different speed would leave the joint distribution together.
            sites, data = joint.draw(place_key)
            state = _moved(state, self._start(kernel, sites, joint.model_kwargs | {DATA: data}))

        def step(carry: tuple[Any, Sites], key: PRNGKey) -> tuple[tuple[Any, Sites], Array]:
            state, given = carry
            data = joint.redraw(key, given)
            kwargs = joint.model_kwargs | {DATA: data}
            state = kernel.sample(kernel.refresh(state, args, kwargs), args, kwargs)
            sites = self._sites(kernel, state, kwargs)
            return (state, self._latent(sites)), joint.vector(sites, data)

        return jax.lax.scan(step, (state, self._latent(sites)), jax.random.split(key, self.num_samples))[1]

    def _latent(self, sites: Sites) -> Sites:
        return {name: sites[name] for name in self.joint.latent}

    def _start(self, kernel: Any, sites: Sites, kwargs: dict[str, Any]) -> Sites | None:
        """The simulated values, unconstrained; None for kernels that may read starting values in another sense."""
        if not isinstance(kernel, HMC | BlackJAXKernel):
            return None
        return unconstrain_fn(self._given_data, self.joint.model_args, kwargs, self._latent(sites))

    def _sites(self, kernel: MCMCKernel, state: Any, kwargs: dict[str, Any]) -> Sites:
        return kernel.postprocess_fn(self.joint.model_args, kwargs)(getattr(state, kernel.sample_field))

    def _given_data(self, *args: Any, **kwargs: Any) -> Any:
        data = kwargs.pop(DATA)
        return self.joint.posterior(data)(*args, **kwargs)


def _moved(state: Any, z: Any) -> Any:
    """The tuned state at another place; what it caches is evaluated by `refresh` before the next transition."""
    if isinstance(state, BlackJAXState):
        position = state.chain.preconditioner.to_whitened(ravel_pytree(z)[0])
        inner = state.chain.inner._replace(position=position)
        state = state._replace(chain=state.chain._replace(inner=inner))
    return state._replace(z=z)


def _compare(
    reference: Float[np.ndarray, "reference quantity"],
    marginal: Float[np.ndarray, "marginal quantity"],
    successive: Float[np.ndarray, "chain draw quantity"],
    names: list[str],
) -> xr.Dataset:
    """Differences of means of bounded functions between the two simulators; Welch's t for chain means."""
    rows, identities, constant = [], [], []
    for index, name in enumerate(names):
        values = np.concatenate([np.ravel(sample[..., index]) for sample in (reference, marginal, successive)])
        constant += [bool(np.ptp(values) == 0)] * len(FUNCTIONS)  # the corner of a Cholesky factor, for instance
        ordered = np.sort(reference[:, index])
        levels = [_levels(ordered, sample[..., index]) for sample in (marginal, successive)]
        for function in FUNCTIONS:
            one, many = ((level - 0.5) ** (1 if function == "location" else 2) for level in levels)
            means = many.mean(axis=1)
            errors = np.array([one.var(ddof=1) / len(one), means.var(ddof=1) / len(means)])
            with np.errstate(invalid="ignore"):
                freedom = errors.sum() ** 2 / (errors**2 / np.array([len(one) - 1, len(means) - 1])).sum()
            rows.append((means.mean() - one.mean(), np.sqrt(errors.sum()), freedom))
            identities.append(f"{function}, {name}")
    estimate, error, freedom = np.transpose(rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = estimate / error
    judged = ~np.array(constant)
    single = np.where(np.isfinite(z), 2 * stats.t.sf(np.abs(z), freedom), np.where(judged, 0.0, np.nan))
    adjusted = single.copy()
    adjusted[judged] = holm(single[judged])
    columns = {"estimate": estimate, "standard_error": error, "z": z, "p_value": single, "p_value_adjusted": adjusted}
    return xr.Dataset({name: ("identity", column) for name, column in columns.items()}, {"identity": identities})


def _levels(ordered: Float[np.ndarray, " reference"], values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The distribution function of the reference at `values`, half of the ties counted; NaN for NaN."""
    below, upto = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return np.where(np.isnan(values), np.nan, (below + upto) / (2 * len(ordered)))
