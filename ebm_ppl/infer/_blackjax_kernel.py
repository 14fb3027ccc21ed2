"""BlackJAX kernels as a NumPyro `MCMCKernel`."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro  # noqa: F401  (before any of its submodules)
from jax.core import Tracer
from numpyro.infer import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import _transforms_from_trace, initialize_model, transform_fn
from numpyro.util import identity, is_prng_key

from ebm_ppl.distributions._check_model import find_missing, refuse_missing
from ebm_ppl.distributions._start_guard import checked
from ebm_ppl.errors import NonFiniteEnergyError
from ebm_ppl.infer._chain import BlackJAXState, PotentialFn, make_schedule, refresh, start, stat_names, step
from ebm_ppl.kernels import MALA, AbstractKernel
from ebm_ppl.sampling._low_rank import check_precondition

# What `init` builds from model and data. It does not pickle, and MCMC calls `init` again where `_sample_fn` is None.
UNBUILT: dict[str, Any] = dict.fromkeys(("_sample_fn", "_potential_fn_gen", "_postprocess_fn", "_transforms"))


class BlackJAXKernel(MCMCKernel):
    r"""A BlackJAX transition kernel for `numpyro.infer.MCMC`, alone or as a block of `numpyro.infer.Gibbs`.

        U(z) = -log p(data, x(z)) - log |det dx/dz|        z the unconstrained latent values, all in one vector

    Warm-up tunes the step size by dual averaging to the kernel's target acceptance rate and learns a preconditioner
    in Stan's windows; kernels without acceptance rate (`ebm.ULA`) keep their step size. All three `chain_method`s of
    `MCMC`, with and without progress bar, resuming from `post_warmup_state`, pickling and `jit_model_args` work.

    The statistics ArviZ knows are collected without being asked for: `az.from_numpyro(mcmc)` has `lp`,
    `acceptance_rate`, `step_size`, `diverging`, `n_steps`, `nonfinite_proposal` and what else the kernel reports.

    An energy in the model whose log Z is missing although it depends on latent variables is refused before anything
    is compiled (`ebm.check_model`).

    After new data or another target, `refresh(state, model_args, model_kwargs)` re-evaluates what a state caches;
    without it the chain would be frozen.

    Args:
        model: a NumPyro model.
        potential_fn: instead of a model, the potential energy of unconstrained values (any pytree, which
            `MCMC.run(..., init_params=...)` must give).
        kernel: how to move; `ebm.MALA()` by default.
        init_strategy: where to start, as in `numpyro.infer.NUTS`.
        precondition: `"diagonal"`, `"dense"`, `"low_rank"` or `"none"`.

    Raises:
        ValueError: not exactly one of `model` and `potential_fn`; `precondition` unknown; on `init`, `init_params`
            missing with `potential_fn`.
        TypeError: `kernel` is not an `ebm.AbstractKernel`.
        MissingLogNormalizerError: on `init`, log Z varies with latent sites and is missing.
        NonFiniteEnergyError: on `init`, the potential or its gradient is not finite at `init_params`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, ebm_ppl as ebm
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     numpyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)
        >>> mcmc = numpyro.infer.MCMC(
        ...     ebm.BlackJAXKernel(model), num_warmup=300, num_samples=500, progress_bar=False
        ... )
        >>> mcmc.run(jax.random.key(0), jnp.array([1.0, 2.0, 3.0]))
        >>> bool(jnp.abs(mcmc.get_samples()["mu"].mean() - 2.0) < 0.2)
        True
        >>> sorted(mcmc.get_extra_fields())
        ['acceptance_rate', 'diverging', 'n_steps', 'nonfinite_proposal', 'potential_energy', 'step_size']

    References:
        Cabezas, Corenflos, Lao, Louf (2024). BlackJAX: composable Bayesian inference in JAX. arXiv:2402.10797
        Phan, Pradhan, Jankowiak (2019). Composable effects for flexible and accelerated probabilistic programming in
        NumPyro. arXiv:1912.11554
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        potential_fn: PotentialFn | None = None,
        kernel: AbstractKernel | None = None,
        init_strategy: Callable[..., Any] = init_to_uniform,
        precondition: str = "diagonal",
    ) -> None:
        if (model is None) == (potential_fn is None):
            raise ValueError("exactly one of `model` and `potential_fn` must be given.")
        kernel = MALA() if kernel is None else kernel
        if not isinstance(kernel, AbstractKernel):
            raise TypeError(f"`kernel` must be an ebm.AbstractKernel such as ebm.MALA(); got {type(kernel).__name__}.")
        check_precondition(precondition, kernel)
        self._model, self._potential_fn = model, potential_fn
        self._kernel, self._init_strategy, self._precondition = kernel, init_strategy, precondition
        self._default_fields = ("z", "potential_energy", *self._stat_names())
        self._constrained_init = False  # True on the copy that runs inside `Gibbs`
        vars(self).update(UNBUILT)

    @property
    def model(self) -> Callable[..., Any] | None:
        """The NumPyro model; None with `potential_fn`."""
        return self._model

    @property
    def transition(self) -> AbstractKernel:
        """The kernel whose transitions are made."""
        return self._kernel

    @property
    def sample_field(self) -> str:
        """The field of the state that holds the sample."""
        return "z"

    @property
    def default_fields(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What `MCMC` collects without being asked."""
        return self._default_fields

    def init(
        self, rng_key: Any, num_warmup: int, init_params: Any, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> BlackJAXState:
        """The state before the first transition; with a batch of keys (`chain_method="vectorized"`) of all chains."""
        single = is_prng_key(rng_key)
        keys = jax.random.split(rng_key) if single else jnp.swapaxes(jax.vmap(jax.random.split)(rng_key), 0, 1)
        given = init_params is not None
        if self._model is not None:
            self._check_model(model_args, model_kwargs or {})
            init_params = self._initialize(keys[1], init_params, model_args, model_kwargs or {})
        elif not given:
            raise ValueError("`init_params` must be given with `potential_fn`.")
        schedule = make_schedule(num_warmup, self._precondition)

        def begin(z: Any, key: Any) -> BlackJAXState:
            potential_fn = self._potential(model_args, model_kwargs)
            return start(self._kernel, potential_fn, z, key, num_warmup, self._precondition)

        def advance(state: BlackJAXState, args: tuple, kwargs: dict[str, Any] | None) -> BlackJAXState:
            # The potential is built anew: with `jit_model_args` the arguments are traced.
            return step(self._kernel, self._potential(args, kwargs), state, schedule)

        self._sample_fn = advance if single else jax.vmap(advance, in_axes=(0, None, None))
        state = jax.jit(begin if single else jax.vmap(begin))(init_params, keys[0])
        if given:
            _check_start(state)
        return state

    def sample(self, state: BlackJAXState, model_args: tuple, model_kwargs: dict[str, Any] | None) -> BlackJAXState:
        """One transition."""
        if self._sample_fn is None:
            raise RuntimeError("`init` must be called before `sample`.")
        return self._sample_fn(state, model_args, model_kwargs)

    def postprocess_fn(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> Callable[[Any], Any]:
        """Unconstrained values -> constrained values and deterministic sites."""
        if self._postprocess_fn is None:
            return identity
        return self._postprocess_fn(*model_args, **(model_kwargs or {}))

    def get_diagnostics_str(self, state: BlackJAXState) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the progress bar shows."""
        text = f"step size {state.chain.step_size:.2e}"
        return text + (
            f", acceptance rate {state.mean_acceptance_rate:.2f}" if "acceptance_rate" in state.stats else ""
        )

    def refresh(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state: BlackJAXState, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> BlackJAXState:
        """`state` re-evaluated under other arguments: new data, or a sibling block moved; `jax.vmap` it over chains."""
        return refresh(self._kernel, self._potential(model_args, model_kwargs), state)

    def wrap_model(self, wrapper: Callable[[Any], Any]) -> "BlackJAXKernel":
        """A copy whose model is `wrapper(model)`: how `Gibbs` conditions a block on the others."""
        if self._model is None:
            raise ValueError("`wrap_model` needs a model; this kernel has a `potential_fn`.")
        clone = copy.copy(self)
        vars(clone).update(UNBUILT, _model=wrapper(self._model), _constrained_init=True)
        return clone

    def get_constrain_fn(self, model_args: tuple, model_kwargs: dict[str, Any] | None) -> Callable[[Any], Any]:
        """Unconstrained -> constrained values; without running the model where the supports are fixed."""
        if self._transforms is None or self._transforms.dynamic_support:
            return self.postprocess_fn(model_args, model_kwargs)
        return partial(transform_fn, self._transforms.inv_transforms)

    def _stat_names(self) -> tuple[str, ...]:
        """What a transition reports; `ExchangeKernel` has statistics of its own."""
        return stat_names(self._kernel)

    def _check_model(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Refuse what this algorithm would get wrong: here, a log Z that varies and is missing."""
        if self._model is not None:
            refuse_missing(find_missing(self._model, args, kwargs, params=False))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | UNBUILT

    def _initialize(self, key: Any, init_params: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Build potential and transforms from the model; returns unconstrained starting values."""
        with checked():
            info = initialize_model(
                key,
                self._model,
                init_strategy=self._init_strategy,
                dynamic_args=True,
                model_args=args,
                model_kwargs=kwargs,
                validate_grad=self._kernel.uses_gradient,
            )
        self._potential_fn_gen, self._postprocess_fn = info.potential_fn, info.postprocess_fn
        self._transforms = _transforms_from_trace(info.model_trace, raise_warnings=False)
        if init_params is None:
            return info.param_info.z
        if self._constrained_init:  # `Gibbs` hands constrained values to every block that is not NumPyro's HMC
            return transform_fn(self._transforms.inv_transforms, init_params, invert=True)
        return init_params

    def _potential(self, args: tuple, kwargs: dict[str, Any] | None) -> PotentialFn:
        if self._potential_fn is not None:
            return self._potential_fn
        if self._potential_fn_gen is None:
            raise RuntimeError("`init` must be called first.")
        return self._potential_fn_gen(*args, **(kwargs or {}))


def _check_start(state: BlackJAXState) -> None:
    """Potential and gradient must be finite at `init_params`; NumPyro has seen to it at starts of its own."""
    inner = state.chain.inner
    if isinstance(inner.logdensity, Tracer):
        return
    finite = np.isfinite(inner.logdensity)
    if hasattr(inner, "logdensity_grad"):
        gradient = np.isfinite(inner.logdensity_grad)
        finite = finite & gradient.all(axis=tuple(range(finite.ndim, gradient.ndim)))
    if not finite.all():
        chain = int(np.argmin(np.atleast_1d(finite)))
        value = float(np.atleast_1d(state.potential_energy)[chain])
        what = "the gradient of the potential is not finite" if np.isfinite(value) else f"the potential is {value}"
        raise NonFiniteEnergyError(f"{what} at `init_params` of chain {chain}; choose a start inside the support.")
