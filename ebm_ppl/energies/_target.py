"""What samplers, normalisers and tests see of an energy: a log density of real coordinates."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._coordinates import Coordinates
from ebm_ppl.energies._data_sum import DataSumEnergy
from ebm_ppl.energies._event import check_condition, evaluate
from ebm_ppl.energies._named_shapes import NamedShapes
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._traced import TracedEnergy, traced


class AbstractLogDensity(eqx.Module):
    """A log density as a module: what kernels call, and ask for more than its value.

    As a pytree it passes through `eqx.filter_jit`, where an equal structure is a cache hit. As a callable it is hashed
    by identity, because JAX's control flow hashes the functions it is given and arrays have no hash.
    """

    @abc.abstractmethod
    def __call__(self, z: Float[Array, "..."]) -> Scalar:
        """The log density up to a constant, in nats."""

    @abc.abstractmethod
    def minibatch(self, key: PRNGKey, batch_size: int) -> "AbstractLogDensity":
        """The same with `batch_size` data drawn by `key`; an unbiased estimate.

        Raises:
            TypeError: the density is not that of a sum over data.
        """

    @abc.abstractmethod
    def at_noise_scale(self, noise_scale: Array) -> "AbstractLogDensity":
        """The same at another noise scale.

        Raises:
            TypeError: the density does not depend on a noise scale.
        """

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class Target(AbstractLogDensity):
    r"""The unnormalised log density of an energy in real coordinates z, with x = T(z) the event.

        target(z) = -E(T(z); y) + log |det dT/dz|        in nats

    Whatever samples, integrates, tempers or tests an energy does it through a target. It **is** the log density
    function of the coordinates, so any BlackJAX algorithm takes it as `logdensity_fn`. On all reals z is the event
    itself, and the Jacobian is one; on another support, or for events with named parts, z is a vector.

    The energy is traced when the target is made: it holds a program and arrays, those that the energy closes over
    among them. Two targets with the same program and shapes share compiled code; a rebound global, a mutated closure
    or a changed attribute gives other arrays or another program. Nothing is computed and nothing compiled. Inside
    `jit`, `vmap` or a NumPyro model a target is made while tracing.

    Args:
        energy: E, on any support that NumPyro has a bijection for.
        condition: one condition y of shape `energy.condition_shape`; None for an unconditional energy, or to give it
            later by `at_condition`.
        dtype: floating dtype of the coordinates; JAX's default where None.

    Raises:
        TypeError: `energy` is not an energy.
        EnergyShapeError: the energy is not a floating scalar of one event, or `condition` has another shape.
        EnergyDtypeError: `dtype` is not float32 or float64.
        NonDifferentiableEnergyError: the energy cannot be traced.
        NotImplementedError: the support is discrete, or NumPyro has no bijection onto it.

    Example:
        >>> import blackjax, jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> from numpyro.distributions import constraints
        >>> gamma = ebm.FunctionEnergy(lambda x: x - 2 * jnp.log(x), (), support=constraints.positive)
        >>> target = ebm.Target(gamma)
        >>> target.dimension, float(target.to_event(jnp.zeros(1)))
        (1, 1.0)
        >>> float(target(jnp.zeros(1)))                                  # -E(1) + log |d exp(z) / dz| at z = 0
        -1.0
        >>> mala = blackjax.mala(target, 0.5)
        >>> state, info = mala.step(jax.random.key(0), mala.init(jnp.zeros(1)))

    References:
        Cabezas, Corenflos, Lao, Louf (2024). BlackJAX: composable Bayesian inference in JAX. arXiv:2402.10797
    """

    energy: AbstractEnergy
    coordinates: Coordinates
    condition: Array | None
    inverse_temperature: Array | None

    def __init__(self, energy: AbstractEnergy | Any, condition: Any = None, *, dtype: Any = None) -> None:
        check_energy_type("energy", energy)
        self.coordinates = Coordinates(energy.event_shape, energy.support)
        if condition is not None:
            check_condition(type(energy).__name__, energy.condition_shape, condition)
            condition = jnp.asarray(condition)
        self.energy = traced(energy, dtype)
        self.condition = condition
        self.inverse_temperature = None

    def __call__(self, z: Float[Array, "..."]) -> Scalar:
        """-E(T(z); y) + log |det dT/dz|, in nats, in the dtype of `z`.

        -inf where T(z) is no point inside the support in floating-point numbers: it overflowed, or was rounded onto
        the edge.
        """
        return self.coordinates.log_density(self._tempered, z)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the coordinates z: `event_shape` on all reals, else one axis."""
        return self.coordinates.shape

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return self.coordinates.dimension

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of an event; empty for an array event."""
        shape = self.coordinates.event_shape
        return tuple(shape) if isinstance(shape, NamedShapes) else ()

    @property
    def is_discrete(self) -> bool:
        """Whether events take finitely many values: never, for the energies that there are so far."""
        return False

    @property
    def has_callback(self) -> bool:
        """Whether the energy calls back into Python, so that its program does not show what it computes."""
        return any(one.program.has_callback for one in self._traced_parts())

    @property
    def is_opaque(self) -> bool:
        """Whether the traced program does not tell what it computes, so that it equals itself only."""
        return any(one.program.is_opaque for one in self._traced_parts())

    @property
    def program_fingerprint(self) -> str:
        """SHA-256 of the computation, without the values of its arrays; the same in every process."""
        return "-".join(one.program.fingerprint for one in self._traced_parts())

    def to_event(self, z: Float[Array, "..."]) -> Any:
        """T(z): an array, or a dictionary of named parts."""
        return self.coordinates.to_event(z)

    def to_coordinates(self, x: Any, key: PRNGKey | None = None) -> Float[Array, "..."]:
        """The coordinates of an event; with a key angles get a random radius, so that draws stay draws."""
        return self.coordinates.to_coordinates(x, key)

    def log_jacobian(self, z: Float[Array, "..."]) -> Scalar:
        """Log |det dT/dz|, in nats."""
        return self.coordinates.log_jacobian(z)

    def at_condition(self, condition: Array | None) -> "Target":
        """The same under another condition."""
        return self._replaced(condition=condition)

    def at_inverse_temperature(self, inverse_temperature: Array) -> "Target":
        """Of the energy times `inverse_temperature`; the Jacobian stays as it is."""
        return self._replaced(inverse_temperature=inverse_temperature)

    def at_noise_scale(self, noise_scale: Array) -> "Target":
        """The same at another noise scale, for an energy whose condition is, or begins with, log(noise_scale).

        Raises:
            TypeError: if the energy is unconditional, or its condition not a scalar or a vector.
        """
        if self.condition is None or self.condition.ndim > 1:
            raise TypeError(
                "noise scales need a noise-conditioned energy, of condition_shape () or (1 + k,); got condition_shape "
                f"{self.energy.condition_shape} of {self.name}."
            )
        log_scale = jnp.log(noise_scale).astype(self.condition.dtype)
        condition = log_scale if self.condition.ndim == 0 else self.condition.at[0].set(log_scale)
        return self._replaced(condition=condition)

    def minibatch(self, key: PRNGKey, batch_size: int) -> "Target":
        """The same with a few of the data, for an energy that is a sum over data.

        Raises:
            TypeError: if the energy is not a `DataSumEnergy`.
        """
        if not isinstance(self.energy, DataSumEnergy):
            raise TypeError(
                f"minibatches need an energy that is a sum over data, ebm.energies.DataSumEnergy; got {self.name}."
            )
        return self._replaced(energy=self.energy.minibatch(key, batch_size))

    @property
    def name(self) -> str:
        """The name of the energy, for messages."""
        return self.energy.name if isinstance(self.energy, TracedEnergy) else type(self.energy).__name__

    def _tempered(self, x: Any) -> Scalar:
        value = evaluate(self.energy, x, self.condition)
        if self.inverse_temperature is None:
            return value
        return self.inverse_temperature.astype(value.dtype) * value

    def _traced_parts(self) -> list[TracedEnergy]:
        leaves = jax.tree.leaves(self.energy, is_leaf=lambda node: isinstance(node, TracedEnergy))
        return [leaf for leaf in leaves if isinstance(leaf, TracedEnergy)]

    def _replaced(self, **changes: Any) -> "Target":
        copy = object.__new__(Target)
        for name in ("energy", "coordinates", "condition", "inverse_temperature"):
            object.__setattr__(copy, name, changes.get(name, getattr(self, name)))
        return copy
