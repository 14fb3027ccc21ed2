"""What an objective is, and the one boundary at which the function of one event becomes one of a batch."""

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_key
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._support import describe_support
from ebm_ppl.errors import EnergyShapeError, InvalidDataError

if TYPE_CHECKING:  # pyright knows class variables under this name only
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar

type Batch = Float[Array, "..."] | tuple[Float[Array, "..."], Float[Array, "..."]]
"""`data` of shape `(n, *event_shape)`, or `(data, condition)` for a conditional energy; row i belongs to row i."""

type Metrics = dict[str, Scalar]
"""Scalars recorded at every step beside the loss."""


class AbstractObjective[State](eqx.Module):
    """What `fit` minimises: hyperparameters as fields, the state of the estimation as an explicit value.

    An objective without state subclasses `AbstractStatelessObjective` and writes `evaluate` only. One with state
    (persistent chains, a replay buffer) writes `init` and `__call__`.

    Attributes:
        comparable: whether values may be compared between steps and between models, as early stopping does. False
            where only the gradient means anything (contrastive divergence, minimax games).
        noise_conditioned: whether the objective itself puts the noise scale into the energy's condition; the user's
            own condition is then one entry shorter than the energy's (see `noise_condition`).
        any_support: whether energies with a `support` are trained: the objective evaluates them on their support only.
    """

    comparable: AbstractClassVar[bool]
    noise_conditioned: ClassVar[bool] = False
    any_support: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, model: Any, batch: Batch, *, key: PRNGKey) -> State:
        """The state before the first step; raises if `model` or `batch` cannot be used with this objective.

        Args:
            model: the energy, or a pytree that holds it.
            batch: data to start from: all of it where `fit` has it in memory.
            key: a JAX key.
        """

    @abc.abstractmethod
    def __call__(self, model: Any, state: State, batch: Batch, *, key: PRNGKey) -> tuple[Scalar, tuple[State, Metrics]]:
        """Loss of one mini-batch (mean over its rows), the next state, and metrics.

        Args:
            model: the energy, or a pytree that holds it; differentiated by `fit`.
            state: what `init` or the previous step returned.
            batch: `data` or `(data, condition)`.
            key: a JAX key, used for this step only.
        """

    def loss(self, model: Any, batch: Any, *, key: Any) -> Scalar:
        """Value of the objective on one batch, from a fresh state.

        Args:
            model: the energy, or a pytree that holds it.
            batch: `data` or `(data, condition)`.
            key: a JAX key.

        Returns:
            The mean over the rows of `batch`.

        Raises:
            EnergyShapeError: if data or condition do not have the shapes that the energy declares.
            InvalidDataError: if the batch has no rows.
            KeyArgumentError: if `key` is not one JAX key.
        """
        init_key, step_key = jax.random.split(check_key(key))
        return _value(self, model, self.init(model, batch, key=init_key), batch, step_key)

    def data_condition_shape(self, model: Any) -> tuple[int, ...] | None:
        """Shape of the condition that comes with each event of the data; None: the data are events only.

        Args:
            model: the energy, or a pytree that holds it.

        Raises:
            EnergyShapeError: if the objective is `noise_conditioned` and the energy's condition has no room for that.
        """
        shape = energy_of(model).condition_shape
        if not self.noise_conditioned:
            return shape
        if shape == ():
            return None
        if shape is not None and len(shape) == 1 and shape[0] >= 2:
            return (shape[0] - 1,)
        raise EnergyShapeError(
            f"`{type(self).__name__}` tells the energy log(noise_scale) through its condition: `condition_shape` must "
            f"be (), or (1 + k,) with k further entries of your own; got {shape}."
        )

    def split_batch(self, model: Any, batch: Batch) -> tuple[Array, Array | None]:
        """`(x, condition)` of a batch whose shapes fit the model; condition None where the data are events only.

        Args:
            model: the energy, or a pytree that holds it.
            batch: `data` or `(data, condition)`.

        Raises:
            EnergyShapeError: if data or condition do not have the shapes that the energy declares.
            InvalidDataError: if the batch has no rows.
            NotImplementedError: if the energy has named parts, or a support that the objective does not respect.
        """
        x, condition = batch if isinstance(batch, tuple) else (batch, None)
        energy = energy_of(model)
        if isinstance(energy.event_shape, Mapping):
            raise NotImplementedError(
                f"`{type(self).__name__}` takes energies of array events; this one has the parts "
                f"{list(energy.event_shape)}."
            )
        if energy.support is not None and not self.any_support:
            raise NotImplementedError(
                f"`{type(self).__name__}` moves events off the data, over all reals; this energy has the support "
                f"{describe_support(energy.support)}: train it by ContrastiveDivergence, "
                "PersistentContrastiveDivergence, or NoiseContrastive with noise on that support."
            )
        _check_rows("data", x, energy.event_shape)
        shape = self.data_condition_shape(model)
        if shape is None and condition is None:
            return x, None
        if shape is None:
            raise EnergyShapeError("the batch holds a condition, but the energy takes none from the data.")
        if condition is None:
            raise EnergyShapeError(
                f"the energy is conditional: pass (data, condition), each condition of shape {shape}."
            )
        _check_rows("condition", condition, shape)
        if condition.shape[0] != x.shape[0]:
            raise EnergyShapeError(f"`condition` must have one row per event: {x.shape[0]}; got {condition.shape[0]}.")
        return x, condition


class AbstractMeanObjective(AbstractObjective[None]):
    """A mean over the data of something that needs no memory from step to step.

    `evaluate` gives one loss per row. The mean is taken here and nowhere else, so that the optimum cannot depend on
    the batch size, and the scatter of the rows gives every value its standard error.
    """

    @abc.abstractmethod
    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per row of `batch`, and metrics of the batch as scalars.

        Args:
            model: the energy, or a pytree that holds it.
            batch: `data` or `(data, condition)`.
            key: a JAX key.
        """

    def __call__(self, model: Any, state: None, batch: Batch, *, key: PRNGKey) -> tuple[Scalar, tuple[None, Metrics]]:
        """Mean over the rows of `evaluate`."""
        losses, metrics = self.evaluate(model, batch, key=key)
        return jnp.mean(losses), (None, metrics)


class AbstractStatelessObjective(AbstractMeanObjective):
    """What most objectives are: a mean over the data, without state and without demands on the model.

    Only `evaluate` is left to write.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> class NegativeLogLikelihood(ebm.objectives.AbstractStatelessObjective):
        ...     comparable = True
        ...     def evaluate(self, model, batch, *, key):
        ...         x, condition = self.split_batch(model, batch)
        ...         return jax.vmap(model)(x, condition) + model.log_normalizer, {}
        >>> model = ebm.energies.Gaussian(mean=jnp.zeros(1), covariance=jnp.eye(1))
        >>> float(NegativeLogLikelihood().loss(model, jnp.zeros((3, 1)), key=jax.random.key(0)))
        0.9189...
    """

    def init(self, model: Any, batch: Batch, *, key: PRNGKey) -> None:
        """No state; a batch of the wrong shape is refused."""
        self.split_batch(model, batch)


def as_floating(value: Any) -> Any:
    """Numbers and arrays as strongly typed floating arrays, so that their values may change without recompiling.

    What is neither comes back as it is, for `__check_init__` to refuse by name.
    """
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating):
        return value
    try:
        return jnp.asarray(value, jnp.result_type(float))
    except (TypeError, ValueError):
        return value


def energy_of(model: Any) -> AbstractEnergy:
    """The energy that `model` is, or the first one that it holds.

    Args:
        model: an energy, or a pytree that holds one, e.g. `(energy, flow)`.

    Raises:
        TypeError: if there is none.
    """
    for node in jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, AbstractEnergy)):
        if isinstance(node, AbstractEnergy):
            return node
    raise TypeError(
        f"`model` must be an energy or hold one; got {type(model).__name__}. "
        "Wrap a function: ebm.FunctionEnergy(fn, event_shape, params)."
    )


@eqx.filter_jit
def _value(objective: AbstractObjective, model: Any, state: Any, batch: Batch, key: Array) -> Scalar:
    return objective(model, state, batch, key=key)[0]


def _check_rows(name: str, rows: Array, shape: tuple[int, ...]) -> None:
    if rows.ndim != len(shape) + 1 or rows.shape[1:] != shape:
        expected = "(" + ", ".join(["n", *map(str, shape)]) + ("," if not shape else "") + ")"
        raise EnergyShapeError(f"`{name}` must have shape {expected}; got {rows.shape}.")
    if rows.shape[0] == 0:
        raise InvalidDataError(f"`{name}` is empty: shape {rows.shape}; at least one event is needed.")
