"""`ExchangeKernel`: posteriors of energy parameters whose log Z nobody knows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.handlers as handlers
from jaxtyping import Array
from numpyro.distributions import ImproperUniform
from numpyro.infer import init_to_uniform
from numpyro.infer.util import constrain_fn

from ebm_ppl._checks import check_count
from ebm_ppl.distributions import energy_dependencies
from ebm_ppl.distributions._batching import lead
from ebm_ppl.distributions._events import unwrap
from ebm_ppl.distributions._guard import base_distribution
from ebm_ppl.infer._auxiliary import EnergySite, ExchangePotential
from ebm_ppl.infer._blackjax_kernel import BlackJAXKernel
from ebm_ppl.infer._chain import BlackJAXState, PotentialFn
from ebm_ppl.infer._exchange import ExchangeWalk
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import check_invariant


class ExchangeKernel(BlackJAXKernel):
    r"""The exchange algorithm: a posterior over energy parameters theta without log Z(theta), for `numpyro.infer.MCMC`.

        theta' ~ N(theta, step_size^2 C),   x ~ exp(-E(.; theta')) / Z(theta')
        accept with probability  min(1, p(theta') f(y; theta') f(x; theta) / (p(theta) f(y; theta) f(x; theta')))

    with f = exp(-E), y the data, x auxiliary data of the same shape: Z(theta) and Z(theta') appear above and below and
    cancel. The latent variables move together, unconstrained, by a random walk whose scale and covariance C warm-up
    learns.

    Where x comes from decides what is sampled:

    - `inner_kernel=None`: from the `sampler` of the `EnergyDistribution`. If that draws exactly, so does the exchange
      algorithm (Murray et al.).
    - an `inner_kernel`: from `num_inner_steps` of its transitions, started at the data (double Metropolis-Hastings,
      Liang). The posterior is right as far as the inner chains forget their start. That is watched: the statistic
      `auxiliary_memory` estimates their autocorrelation from start to end, and `ebm.diagnose` reports
      `AUXILIARY_NOT_MIXED` where it is above 1/4. Proposals whose inner chains accept less than
      `min_inner_acceptance` are rejected and counted as `diverging`, so that the run cannot drift to where the inner
      chains have stopped; beyond 2 % of all proposals `ebm.diagnose` reports `AUXILIARY_REJECTED`. An improper
      prior is refused, for far out nothing else holds the parameters.

    It may be the kernel of a whole model, or of a block: `numpyro.infer.Gibbs([(ebm.ExchangeKernel(model, ...),
    ["theta"]), (NUTS(model), None)])` moves the other sites by NUTS.

    The statistic `lp` lacks log Z: never compare it between draws, and never use it as a likelihood.

    Args:
        model: a NumPyro model with observed `EnergyDistribution`s (in plates, with batches and conditions, inside
            `expand`, `to_event`, `mask`) that have no `log_normalizer`.
        inner_kernel: moves the auxiliary data; None: they are drawn by the distribution's own sampler. One step size
            must do for all theta: `ebm.Barker()` forgives that, `ebm.MALA()` stalls where theta makes the energy stiff.
        num_inner_steps: transitions of the inner chains for each proposal.
        num_bridges: intermediate energies between theta' and theta, on which x is moved once each: more of them
            raise acceptance where x is large, at the cost of as many inner transitions. 0 is the plain algorithm.
        min_inner_acceptance: see above; in [0, 1).
        tune_inner: whether warm-up tunes the step size of `inner_kernel` to its target acceptance rate.
        init_strategy: where to start, as in `numpyro.infer.NUTS`.
        precondition: what warm-up learns of the posterior's shape: `"dense"`, `"diagonal"` or `"none"`.

    Raises:
        TypeError: `inner_kernel` is not an `ebm.AbstractKernel`.
        ValueError: a number is out of range; `inner_kernel` has no Metropolis correction; bridges without
            `inner_kernel`; on `init`, no energy of the model needs this kernel, or its parameters have an improper
            prior and `inner_kernel` is given.
        NotImplementedError: on `init`, an energy that needs it is latent, scaled (`handlers.scale`, subsampling), or
            inside a wrapper other than `expand`, `to_event` and `mask`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> def half_square(precision, x):
        ...     return precision * x**2 / 2
        >>> def model(y):
        ...     precision = numpyro.sample("precision", dist.Gamma(2.0, 1.0))
        ...     energy = ebm.EnergyDistribution(ebm.FunctionEnergy(half_square, (), precision))    # log Z is missing
        ...     with numpyro.plate("n", len(y)):
        ...         numpyro.sample("y", energy, obs=y)
        >>> kernel = ebm.ExchangeKernel(model, inner_kernel=ebm.Barker(0.5), num_inner_steps=40)
        >>> mcmc = numpyro.infer.MCMC(kernel, num_warmup=300, num_samples=1500, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), jnp.sqrt(1.25) * jnp.array([1.0, -1.0] * 5))
        >>> bool(jnp.abs(mcmc.get_samples()["precision"].mean() - 0.966) < 0.12)              # Gamma(7, 7.25)
        True

    References:
        Murray, Ghahramani, MacKay (2006). MCMC for doubly-intractable distributions. UAI 22. arXiv:1206.6848
        Liang (2010). A double Metropolis-Hastings sampler for spatial models with intractable normalizing constants.
        Journal of Statistical Computation and Simulation 80(9), 1007-1022. doi:10.1080/00949650902882162
        Park, Haran (2018). Bayesian inference in the presence of intractable normalizing functions. Journal of the
        American Statistical Association 113, 1372-1390. doi:10.1080/01621459.2018.1448824
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        inner_kernel: AbstractKernel | Any = None,
        num_inner_steps: int = 50,
        num_bridges: int = 0,
        min_inner_acceptance: float = 0.1,
        tune_inner: bool = True,
        init_strategy: Callable[..., Any] = init_to_uniform,
        precondition: str = "dense",
    ) -> None:
        if inner_kernel is not None and not isinstance(inner_kernel, AbstractKernel):
            raise TypeError(f"`inner_kernel` must be an ebm.AbstractKernel; got {type(inner_kernel).__name__}.")
        check_invariant("inner_kernel", inner_kernel)
        self._inner_kernel = inner_kernel
        self._num_inner_steps = check_count("num_inner_steps", num_inner_steps)
        self._num_bridges = check_count("num_bridges", num_bridges, 0)
        if inner_kernel is None and num_bridges:
            raise ValueError("`num_bridges` needs an `inner_kernel`, which moves the auxiliary data along the bridge.")
        if not 0 <= min_inner_acceptance < 1:
            raise ValueError(f"`min_inner_acceptance` must lie in [0, 1); got {min_inner_acceptance!r}.")
        walk = ExchangeWalk(
            inner_step_size=1.0 if inner_kernel is None else inner_kernel.step_size,
            inner_target=None if inner_kernel is None or not tune_inner else inner_kernel.target_acceptance_rate,
            min_inner_acceptance=float(min_inner_acceptance),
        )
        self._site_names: tuple[str, ...] = ()
        super().__init__(model, kernel=walk, init_strategy=init_strategy, precondition=precondition)

    def init(
        self, rng_key: Any, num_warmup: int, init_params: Any, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> BlackJAXState:
        """The state before the first transition; with a batch of keys (`chain_method="vectorized"`) of all chains."""
        walk: Any = self._kernel
        self._kernel = ExchangeWalk(
            walk.step_size, walk.inner_step_size, walk.inner_target, walk.min_inner_acceptance, num_warmup
        )
        return super().init(rng_key, num_warmup, init_params, model_args, model_kwargs)

    def refresh(self, state: BlackJAXState, model_args: tuple, model_kwargs: dict[str, Any] | None) -> BlackJAXState:
        """`state` re-evaluated under other arguments; what the inner chains have taught is kept."""
        potential = self._potential(model_args, model_kwargs)(state.z)
        inner = state.chain.inner._replace(logdensity=-potential)
        return state._replace(chain=state.chain._replace(inner=inner), potential_energy=potential)

    def get_diagnostics_str(self, state: BlackJAXState) -> str:
        """What the progress bar shows."""
        text = super().get_diagnostics_str(state)
        if self._inner_kernel is None:
            return text
        rate, memory = state.stats["auxiliary_acceptance_rate"], state.stats["auxiliary_memory"]
        return f"{text}, inner acceptance {rate:.2f}, inner memory {memory:.2f}"

    def _check_model(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Find the energies without log Z, and see that the algorithm applies to every one of them."""
        dependencies = energy_dependencies(self._model_fn, *args, **kwargs)
        self._site_names = tuple(dependencies)
        if not self._site_names:
            raise ValueError(
                "no energy of the model depends on its latent variables without log Z: use BlackJAXKernel."
            )
        seeded = handlers.seed(self._model_fn, 0)
        seeded = handlers.substitute(seeded, substitute_fn=numpyro.infer.init_to_sample)

        def look() -> None:
            trace = handlers.trace(seeded).get_trace(*args, **kwargs)
            for name in self._site_names:
                site = trace[name]
                if not site["is_observed"]:
                    raise NotImplementedError(
                        f"the energy site {name!r} is latent, and so are its parameters: move them in two blocks, "
                        f"numpyro.infer.Gibbs([(ebm.ExchangeKernel(...), [parameters]), (NUTS(...), [{name!r}])])."
                    )
                if site["scale"] is not None:
                    raise NotImplementedError(
                        f"the energy site {name!r} is scaled (handlers.scale or subsampling): a power of a density "
                        "has no auxiliary data. Use all data, without a scale."
                    )
                distribution, _ = unwrap(site["fn"])
                if self._inner_kernel is None:
                    distribution._draw_one(())  # says how to give a sampler, where there is none
                    continue
                for parameter in dependencies[name][1]:
                    _refuse_improper(parameter, trace[parameter])

        jax.eval_shape(look)

    def _stat_names(self) -> tuple[str, ...]:
        return (
            "acceptance_rate",
            "auxiliary_acceptance_rate",
            "auxiliary_memory",
            "diverging",
            "n_steps",
            "nonfinite_proposal",
            "step_size",
        )

    def _potential(self, args: tuple, kwargs: dict[str, Any] | None) -> PotentialFn:
        potential_fn, kwargs = super()._potential(args, kwargs), kwargs or {}

        def sites(z: Any) -> dict[str, EnergySite]:
            values = constrain_fn(self._model_fn, args, kwargs, z)
            bound = handlers.substitute(handlers.seed(self._model_fn, 0), data=values)
            trace = handlers.trace(bound).get_trace(*args, **kwargs)
            return {name: _site(trace[name]) for name in self._site_names}

        return ExchangePotential(potential_fn, sites, self._inner_kernel, self._num_inner_steps, self._num_bridges)

    @property
    def _model_fn(self) -> Callable[..., Any]:
        if self._model is None:
            raise RuntimeError("the exchange algorithm needs a model.")
        return self._model


def _refuse_improper(name: str, site: dict[str, Any]) -> None:
    """Where inner chains stall the data cancel themselves, and the prior alone holds the parameters."""
    if site["type"] == "sample" and isinstance(base_distribution(site["fn"]), ImproperUniform):
        raise ValueError(
            f"the prior of {name!r} is improper: far out inner chains stall, the prior alone decides there, and the "
            "parameters would run away. Give it a proper prior, however wide, or exact draws (`sampler=`)."
        )


def _site(site: dict[str, Any]) -> EnergySite:
    distribution, mask = unwrap(site["fn"])
    data = distribution._to_event(site["value"])
    shape = jnp.broadcast_shapes(distribution._total_shape(), lead(data, distribution.event_dim))
    data: Array = jnp.broadcast_to(data, shape + distribution.event_shape)
    return EnergySite(distribution, data, mask)
