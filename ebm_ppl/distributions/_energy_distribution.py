"""An energy as a NumPyro distribution: latent, observed, and everywhere else a distribution may stand."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro  # noqa: F401  (before any of its submodules)
from jax.core import Tracer
from jaxtyping import Array, Float
from numpyro.distributions import Distribution
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.constraints import Constraint

from ebm_ppl._checks import check_key, what_came
from ebm_ppl.distributions._batching import lead, map_batch, pad_lead, total_shape
from ebm_ppl.distributions._evaluation import evaluate_one, event_dtype, trace_energy
from ebm_ppl.distributions._guard import refuse_varying_energy
from ebm_ppl.distributions._likelihoods import refuse_unnormalized_likelihood
from ebm_ppl.distributions._sampler import AbstractSampler
from ebm_ppl.distributions._start_guard import check_at_start
from ebm_ppl.distributions._support import move_inside, support_mask
from ebm_ppl.energies import AbstractEnergy, AbstractReferenceEnergy
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._support import has_arrays, is_real, resolve_support, with_support
from ebm_ppl.errors import EnergyShapeError
from ebm_ppl.kernels import AbstractKernel


class EnergyDistribution(Distribution):
    r"""The distribution \(p(x) = \exp(-E(x; y)) / Z\) of an energy E, for use in NumPyro models.

        log_prob(x) = -energy(x, condition) - log_normalizer        in nats; without log_normalizer: up to a constant

    It stands wherever NumPyro takes a distribution: as latent or observed site, in plates, `scan` and enumeration,
    with `expand`, `to_event` and `mask`, in a `TransformedDistribution`, under `jit` and `vmap`.

    What log Z is needed for: never for latent x with fixed energy parameters. If the energy (or `condition`, or the
    bounds of `support`) depends on a latent variable or on a `numpyro.param`, then log Z depends on it too, and
    leaving it out gives a wrong posterior. That is refused with `MissingLogNormalizerError`: at once where NumPyro
    differentiates the model, and by `ebm.check_model` and `ebm.BlackJAXKernel` in all other cases. Comparing models
    (`az.loo`, `az.compare`) needs log Z always: without it `numpyro.infer.log_likelihood`, and with it
    `az.from_numpyro(mcmc, log_likelihood=True)`, is refused for observed energies.

    Args:
        energy: the energy of one event. A reference energy (`ebm.energies.Gaussian`, ...) on all reals brings its
            own exact log Z and draws.
        condition: for a conditional energy, `(*batch, *energy.condition_shape)`: one distribution per batch element.
        batch_shape: batch axes in front of **every** array of `energy` (one energy per plate element, per enumerated
            component, ...); axes of size one are broadcast. A batch of equal energies is `.expand(batch_shape)`.
        support: one of `numpyro.distributions.constraints`; by default the support of the energy. One for fewer
            dimensions than the event applies to every row: `constraints.positive` makes every coordinate positive.
        log_normalizer: log Z in nats: a number, an array that broadcasts to the batch shape, or anything with such a
            `.value`. A constant asserts that log Z does not vary.
        sampler: how to draw, for `.sample`: `ebm.distributions.ChainSampler()`, or `TemperedSampler()` for isolated
            modes; or a function, called as `sampler(energy, key, sample_shape)`, with the condition as fourth
            argument if there is one, for one batch element. Must be jittable and return
            `(*sample_shape, *event_shape)`.
        constant_log_normalizer_in: names of latent or param sites that the energy depends on but log Z does not,
            such as a location.
        validate_args: as in NumPyro; by default values outside the support are also warned of.

    Outside the support `log_prob` is -inf with gradient zero. For simplices, matrices and other supports that can be
    tested only up to rounding this holds for concrete values; traced ones are taken to be where NumPyro's bijections
    put them.

    Raises:
        TypeError: `energy` is not an `AbstractEnergy` of array events, or `support` not a constraint.
        EnergyShapeError: the energy is not a scalar of one event, or the shapes of condition, parameters or support
            do not fit.
        EnergyDtypeError: the energy is not floating-point.
        MissingLogNormalizerError: log Z varies and is missing, or a log likelihood is asked for without it.
        NotImplementedError: `.sample` without `sampler`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, ebm_ppl as ebm
        >>> energy = ebm.FunctionEnergy(lambda x: jnp.sum(x**4 - x**2), event_shape=(3,))
        >>> prior = ebm.EnergyDistribution(energy)
        >>> prior
        EnergyDistribution(FunctionEnergy, batch_shape=(), event_shape=(3,), log Z unknown, no sampler)
        >>> prior.expand([5]).log_prob(jnp.ones(3)).tolist()
        [-0.0, -0.0, -0.0, -0.0, -0.0]
        >>> def model(y):
        ...     x = numpyro.sample("x", prior)
        ...     numpyro.sample("y", numpyro.distributions.Normal(x, 0.5).to_event(1), obs=y)
        >>> mcmc = numpyro.infer.MCMC(ebm.BlackJAXKernel(model), num_warmup=50, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), jnp.ones(3))
        >>> mcmc.get_samples()["x"].shape
        (100, 3)

    References:
        LeCun, Chopra, Hadsell, Ranzato, Huang (2006). A tutorial on energy-based learning.
        In: Predicting Structured Data, MIT Press. doi:10.7551/mitpress/7443.003.0014
        Murray, Ghahramani, MacKay (2006). MCMC for doubly-intractable distributions. UAI 22. arXiv:1206.6848
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (NumPyro's own declarations)
    reparametrized_params: list[str] = []  # noqa: RUF012
    pytree_data_fields = ("_arrays", "_condition", "_log_normalizer", "_array_support", "_sampler_arrays")
    pytree_aux_fields = ("_static", "_core_ndims", "_static_support", "_sampler_static", "_constant_in")

    def __init__(
        self,
        energy: AbstractEnergy,
        *,
        condition: Any = None,
        batch_shape: Sequence[int] = (),
        support: Any = None,
        log_normalizer: Any = None,
        sampler: Callable[..., Any] | None = None,
        constant_log_normalizer_in: Sequence[str] = (),
        validate_args: bool | None = None,
    ) -> None:
        check_energy_type("energy", energy)
        _check_sampler_type(sampler)
        if isinstance(energy.event_shape, Mapping):
            raise TypeError(
                f"`energy` must have array events: a distribution is one site. This one has the parts "
                f"{list(energy.event_shape)}: declare them with ebm.energy_sites(name, energy)."
            )
        support = resolve_support(energy.support if support is None else support, energy.event_shape)
        energy = with_support(energy, None) if energy.support is not None else energy  # kept here, beside the batch
        # A constraint whose bounds are arrays is data: they may be traced. All others are part of the program.
        self._array_support, self._static_support = (support, None) if has_arrays(support) else (None, support)
        arrays, self._static = eqx.partition(jax.tree.map(_to_jax, energy), eqx.is_array)
        batch_shape = _check_batch_shape(batch_shape, arrays)
        condition, condition_batch = _check_condition(condition, energy.condition_shape)
        total = jnp.broadcast_shapes(batch_shape, condition_batch)
        cores = [leaf.ndim - len(batch_shape) for leaf in jax.tree.leaves(arrays)]
        if condition is not None:
            cores.append(condition.ndim - len(condition_batch))
        self._core_ndims = tuple(cores)
        leaves, treedef = jax.tree.flatten((arrays, condition))
        leaves = [pad_lead(leaf, core, len(total)) for leaf, core in zip(leaves, cores, strict=True)]
        self._arrays, self._condition = jax.tree.unflatten(treedef, leaves)
        self._sampler_arrays, self._sampler_static = eqx.partition(sampler, eqx.is_array)
        names = constant_log_normalizer_in
        self._constant_in = (names,) if isinstance(names, str) else tuple(names)
        self._log_normalizer = None
        super().__init__(total, tuple(energy.event_shape), validate_args=validate_args)
        captured = self._trace()
        self._log_normalizer = self._resolve_log_normalizer(log_normalizer)
        if self._log_normalizer is None:
            _refuse_if_varying(type(energy).__name__, (leaves, self._array_support, captured), self._constant_in)

    @property
    def has_rsample(self) -> bool:
        """Never: NumPyro would infer True from the empty `arg_constraints`, and SVI differentiate the sampler."""
        return False

    @property
    def support(self) -> Constraint:
        """Where the density is positive."""
        support = self._static_support if self._array_support is None else self._array_support
        return cast(Constraint, support)

    @property
    def energy(self) -> AbstractEnergy:
        """The energy; with batched parameters, they lead with the batch axes."""
        leads = [lead(leaf, core) for leaf, core in zip(self._operands()[0], self._core_ndims, strict=True)]
        num_arrays = len(jax.tree.leaves(self._arrays))
        if all(size == 1 for dims in leads[:num_arrays] for size in dims):
            cores = iter(self._core_ndims)
            arrays = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[leaf.ndim - next(cores) :]), self._arrays)
            return self._on_support(eqx.combine(arrays, self._static))
        return self._on_support(eqx.combine(self._arrays, self._static))

    def _on_support(self, energy: AbstractEnergy) -> AbstractEnergy:
        return energy if is_real(self.support) else with_support(energy, self.support)

    @property
    def energy_name(self) -> str:
        """The class of the energy, for messages."""
        return type(self._static).__name__

    @property
    def condition(self) -> Array | None:
        """The condition, with the batch axes in front."""
        return self._condition

    @property
    def log_normalizer(self) -> Float[Array, "..."] | None:
        """Log Z in nats, one per batch element; None where it is not known."""
        return self._log_normalizer

    @property
    def constant_log_normalizer_in(self) -> tuple[str, ...]:
        """The sites that log Z is declared not to depend on."""
        return self._constant_in

    def potential_energy(self, value: Any) -> Float[Array, "..."]:
        """E(value; condition) of every event, in nats, with neither log Z nor support."""
        value = self._to_event(value)
        operands, treedef = self._operands()
        shape = jnp.broadcast_shapes(self._total_shape(), lead(value, self.event_dim))
        value = jnp.broadcast_to(value, shape + self.event_shape)

        def one(leaves: list[Array], x: Array) -> Array:
            arrays, condition = jax.tree.unflatten(treedef, leaves)
            return evaluate_one(self._static, arrays, condition, x)

        return map_batch(one, shape, (operands, value), (*self._core_ndims, self.event_dim))

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        """Log density of every event, in nats, one number per batch element."""
        if self._log_normalizer is None:
            refuse_unnormalized_likelihood(repr(self))
        value = self._to_event(value)
        if self._validate_args:
            self._validate_sample(value)  # warns of concrete values outside the support
        inside = support_mask(self.support, value)
        log_prob = -self.potential_energy(value if inside is None else move_inside(self.support, inside, value))
        if self._log_normalizer is not None:
            log_prob -= jnp.broadcast_to(self._log_normalizer.astype(log_prob.dtype), log_prob.shape)
        if inside is None:
            return log_prob
        return jnp.where(jnp.broadcast_to(inside, log_prob.shape), log_prob, -jnp.inf)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draws of shape `(*sample_shape, *batch_shape, *event_shape)`, from `sampler` or the reference energy."""
        draw = self._draw_one(tuple(sample_shape))
        key = check_key(key)
        operands, treedef = self._operands()
        shape = self._total_shape()
        keys = jax.random.split(key, shape) if shape else key

        def one(leaves: list[Array], key: Array) -> Array:
            arrays, condition = jax.tree.unflatten(treedef, leaves)
            return draw(eqx.combine(arrays, self._static), key, condition)

        cores = (*self._core_ndims, 0)
        return map_batch(one, shape, (operands, keys), cores, out_axis=len(sample_shape))

    def __repr__(self) -> str:
        reference = isinstance(self._static, AbstractReferenceEnergy) and is_real(self.support)
        drawn = "sampler" if self._has_sampler() else "exact sampler" if reference else "no sampler"
        support = "" if is_real(self.support) else f", support={self.support!r}"
        return (
            f"EnergyDistribution({self.energy_name}, batch_shape={self._total_shape()}, "
            f"event_shape={self.event_shape}{support}, log Z {'unknown' if self._log_normalizer is None else 'known'}, "
            f"{drawn})"
        )

    def _operands(self) -> tuple[list[Array], Any]:
        return jax.tree.flatten((self._arrays, self._condition))

    def _total_shape(self) -> tuple[int, ...]:
        """`batch_shape` and the axes that a transformation (`vmap`, `scan`) stacked in front of it."""
        leaves, cores = self._operands()[0], self._core_ndims
        if self._log_normalizer is not None:
            leaves, cores = [*leaves, self._log_normalizer], (*cores, 0)
        return total_shape(self.batch_shape, leaves, cores)

    def _to_event(self, value: Any) -> Array:
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            value = value.astype(event_dtype(self._arrays))  # counts, flags: exact, as in NumPyro
        if value.shape[max(0, value.ndim - self.event_dim) :] != self.event_shape:
            raise EnergyShapeError(
                f"a value of shape {value.shape} does not end in the event shape {self.event_shape}."
            )
        return value

    def _trace(self) -> list[Any]:
        """Check the energy on one abstract event; what it captured from its surroundings."""
        leaves, treedef = self._operands()
        cores = zip(leaves, self._core_ndims, strict=True)
        structs = [jax.ShapeDtypeStruct(leaf.shape[leaf.ndim - core :], leaf.dtype) for leaf, core in cores]
        arrays, condition = jax.tree.unflatten(treedef, structs)
        return trace_energy(self._static, arrays, condition)

    def _resolve_log_normalizer(self, given: Any) -> Array | None:
        if given is None:
            return self._reference_log_normalizer()
        try:
            array = jnp.asarray(getattr(given, "value", given), jnp.result_type(float))
        except (TypeError, ValueError):
            raise TypeError(
                "`log_normalizer` must be log Z in nats: a number, an array, or what ebm.log_normalizer returns; got "
                f"{what_came(given)}."
            ) from None
        if jnp.broadcast_shapes(array.shape, self.batch_shape) != self.batch_shape:
            raise EnergyShapeError(
                f"`log_normalizer` must broadcast to the batch shape {self.batch_shape}; got shape {array.shape}: "
                "declare `batch_shape` if the energy's parameters are batched."
            )
        if not isinstance(array, Tracer) and not np.all(np.isfinite(array)):
            raise ValueError(f"`log_normalizer` must be finite; got {given!r}.")
        return pad_lead(array, 0, len(self.batch_shape))

    def _reference_log_normalizer(self) -> Array | None:
        if not (isinstance(self._static, AbstractReferenceEnergy) and is_real(self.support)):
            return None
        leaves, treedef = self._operands()

        def one(leaves: list[Array]) -> Array:
            return eqx.combine(jax.tree.unflatten(treedef, leaves)[0], self._static).log_normalizer

        try:
            return map_batch(one, self.batch_shape, (leaves,), self._core_ndims)
        except NotImplementedError:  # known up to a constant only
            return None

    def _has_sampler(self) -> bool:
        return self._sampler_static is not None or bool(jax.tree.leaves(self._sampler_arrays))

    def _draw_one(self, sample_shape: tuple[int, ...]) -> Callable[[AbstractEnergy, Array, Any], Array]:
        """`(energy, key, condition) -> draws` of one batch element, from wherever they can be had."""
        if self._has_sampler():
            sampler = eqx.combine(self._sampler_arrays, self._sampler_static)
            if isinstance(sampler, AbstractSampler):
                sampler = functools.partial(sampler, support=self.support)

            def draw(energy: AbstractEnergy, key: Array, condition: Any) -> Array:
                extra = () if condition is None else (condition,)
                value = jnp.asarray(sampler(energy, key, sample_shape, *extra))
                if value.shape != sample_shape + self.event_shape:
                    raise EnergyShapeError(
                        f"`sampler` must return shape {sample_shape + self.event_shape}; got {value.shape}."
                    )
                return value

            return draw
        if isinstance(self._static, AbstractReferenceEnergy) and is_real(self.support):
            return lambda energy, key, condition: cast(AbstractReferenceEnergy, energy).sample(key, sample_shape)
        raise NotImplementedError(
            f"{self!r} cannot draw: give `sampler=ebm.distributions.ChainSampler()` (TemperedSampler() for isolated "
            "modes), or a function (energy, key, sample_shape) -> draws; or draw with ebm.sample(energy, key=...)."
        )


@promote_batch_shape.register  # pyright: ignore[reportArgumentType, reportCallIssue]
def _promote_energy_distribution(distribution: EnergyDistribution) -> EnergyDistribution:
    """NumPyro's `scan` stacked every array: count the new axis as a batch axis."""
    promoted = copy.copy(distribution)
    promoted._batch_shape = distribution._total_shape()
    return promoted


def _refuse_if_varying(energy_name: str, ingredients: Any, constant_in: tuple[str, ...]) -> None:
    """Raise if the log Z that is missing varies with what inference is about."""
    from ebm_ppl.distributions._check_model import find_missing, refuse_missing  # which need the class above

    def check(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, params: bool) -> None:
        refuse_missing(find_missing(model, args, kwargs, params=params))

    check_at_start(check)
    if not constant_in:
        refuse_varying_energy(energy_name, ingredients)


def _to_jax(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf


def _check_sampler_type(sampler: Any) -> None:
    if sampler is None or (callable(sampler) and not isinstance(sampler, (type, AbstractKernel))):
        return
    cure = ": pass ebm.distributions.ChainSampler(kernel)" if isinstance(sampler, AbstractKernel) else ""
    raise TypeError(
        "`sampler` must be ebm.distributions.ChainSampler(), TemperedSampler(), or a function (energy, key, "
        f"sample_shape) -> draws; got {what_came(sampler)}{cure}."
    )


def _check_batch_shape(batch_shape: Sequence[int], arrays: Any) -> tuple[int, ...]:
    if isinstance(batch_shape, int):
        raise TypeError(f"`batch_shape` must be a tuple of ints; got {batch_shape}: write ({batch_shape},).")
    batch_shape = tuple(int(size) for size in batch_shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        front = leaf.shape[: len(batch_shape)]
        if len(front) < len(batch_shape) or any(a not in (1, b) for a, b in zip(front, batch_shape, strict=True)):
            raise EnergyShapeError(
                f"every array of `energy` must lead with `batch_shape` {batch_shape}; "
                f"`{jax.tree_util.keystr(path)}` has shape {leaf.shape}. A batch of equal energies is "
                ".expand(batch_shape); parameters that are shared need axes of size one in front."
            )
    return batch_shape


def _check_condition(condition: Any, condition_shape: tuple[int, ...] | None) -> tuple[Array | None, tuple[int, ...]]:
    """The condition as an array, and its batch shape."""
    if (condition is None) != (condition_shape is None):
        need = "none: the energy is unconditional" if condition_shape is None else f"one of shape {condition_shape}"
        got = "none" if condition is None else f"shape {jnp.shape(condition)}"
        raise ValueError(f"`condition` must be {need}; got {got}.")
    if condition is None or condition_shape is None:
        return None, ()
    condition = jnp.asarray(condition)
    batch_ndim = condition.ndim - len(condition_shape)
    if batch_ndim < 0 or condition.shape[batch_ndim:] != tuple(condition_shape):
        raise EnergyShapeError(
            f"`condition` must have shape (*batch, {', '.join(map(str, condition_shape))}); got {condition.shape}."
        )
    return condition, condition.shape[:batch_ndim]
