"""Maximum likelihood, where log Z can be computed."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import AbstractEnergy, AbstractReferenceEnergy
from ebm_ppl.energies._parameters import as_parameter, concrete
from ebm_ppl.errors import EnergyShapeError, InvalidDataError, MissingLogNormalizerError
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, energy_of

EDGE = 0.05  # of the box's width, at each of its sides


def _as_lower(value: Any) -> Array | None:
    return None if value is None else as_parameter("lower", value)


def _as_upper(value: Any) -> Array | None:
    return None if value is None else as_parameter("upper", value)


class MaximumLikelihood(AbstractStatelessObjective):
    r"""Maximum likelihood: the negative log likelihood, with log Z by quadrature in one or two dimensions.

        J = E[ E(x) ] + log Z,   log Z = log sum_i w_i exp(-E(x_i)),   x_i, w_i: Gauss-Legendre in the box

    What every other objective is measured by, where it can be had. The gradient passes through the quadrature. The box
    must hold practically all of the model's probability *throughout training*: what lies outside counts as impossible,
    and an energy may go down there for nothing. `edge_probability` tells; without tails that grow
    (`SumEnergy(network, Gaussian(...))`) any box is too small.

    Args:
        lower: lower corner of the box, a number or an array of the event's shape, in the units of x.
        upper: upper corner.
        num_points: nodes per dimension. Exact to rounding where E is smooth on the scale of (upper - lower)/num_points
            times a few; a step costs num_points^d energies, and for a conditional energy as many per datum.
        log_normalizer: instead of a box, log Z as a function (energy, condition) -> scalar that JAX can differentiate,
            in any dimension; condition is None for an unconditional energy. With neither, log Z is the reference
            energy's own.

    Returns:
        `loss(model, batch, *, key)`: negative log likelihood per datum, in nats; batch `(n, *event_shape)` or
        `(data, condition)`. `key` is not used. Metrics: `log_normalizer` (mean over the batch) and, with a box,
        `edge_probability`: the model's probability within 5 % of the box's width of its sides.

    Raises:
        ValueError: if only one corner is given, a corner and `log_normalizer`, corners are not in order, or the energy
            has more than two dimensions and no `log_normalizer`.
        MissingLogNormalizerError: if there is nothing to compute log Z with.
        EnergyShapeError: if a corner has not the event's shape.
        InvalidDataError: if data lie outside the box.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.FunctionEnergy(lambda x: x**4, ())
        >>> objective = ebm.objectives.MaximumLikelihood(lower=-3.0, upper=3.0)
        >>> float(objective.loss(energy, jnp.zeros(1), key=jax.random.key(0)))             # log 2 Gamma(5/4)
        0.59487...

    References:
        Fisher (1922). On the mathematical foundations of theoretical statistics. Philosophical Transactions of the
        Royal Society A 222, 309-368. doi:10.1098/rsta.1922.0009
        Golub, Welsch (1969). Calculation of Gauss quadrature rules. Mathematics of Computation 23, 221-230.
        doi:10.1090/S0025-5718-69-99647-1
    """

    lower: Float[Array, "..."] | None = eqx.field(converter=_as_lower, default=None)
    upper: Float[Array, "..."] | None = eqx.field(converter=_as_upper, default=None)
    num_points: int = eqx.field(static=True, default=128)
    log_normalizer: Callable[[Any, Any], Any] | None = eqx.field(default=None, kw_only=True)
    comparable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """A box, or a function, or neither."""
        check_count("num_points", self.num_points, 2)
        if (self.lower is None) != (self.upper is None):
            raise ValueError("`lower` and `upper` must be given together; got one of them.")
        if self.lower is None or self.upper is None:
            return
        if self.log_normalizer is not None:
            raise ValueError("`log_normalizer` stands for the box of `lower` and `upper`: give one of the two.")
        lower, upper = concrete(self.lower), concrete(self.upper)
        if lower is not None and upper is not None and not np.all(lower < upper):
            raise ValueError(f"`lower` must be below `upper`; got {lower} and {upper}.")

    def init(self, model: Any, batch: Batch, *, key: PRNGKey) -> None:
        """No state; a model without log Z and data outside the box are refused."""
        x, _ = self.split_batch(model, batch)
        energy = energy_of(model)
        if self.lower is not None and self.upper is not None:
            if math.prod(energy.event_shape) not in (1, 2):
                raise ValueError(
                    f"quadrature is for one or two dimensions, the energy has {math.prod(energy.event_shape)}: pass "
                    "`log_normalizer`, or take an objective that needs no log Z."
                )
            for name, bound in (("lower", self.lower), ("upper", self.upper)):
                if bound.shape not in ((), energy.event_shape):
                    raise EnergyShapeError(
                        f"`{name}` must be a number or have the event's shape {energy.event_shape}; got {bound.shape}."
                    )
            if not any(isinstance(array, Tracer) for array in (x, self.lower, self.upper)):
                _check_inside(x, np.asarray(self.lower), np.asarray(self.upper))
        elif self.log_normalizer is None and not isinstance(energy, AbstractReferenceEnergy):
            raise MissingLogNormalizerError(
                f"log Z of {type(energy).__name__} is not known: pass `lower` and `upper`, or `log_normalizer`."
            )

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One negative log likelihood per datum; log Z."""
        x, condition = self.split_batch(model, batch)
        energy = energy_of(model)

        def normalize(condition: Array | None) -> tuple[Scalar, Scalar | None]:
            return self._normalize(energy, condition, x.dtype)

        constants, edges = normalize(None) if condition is None else jax.vmap(normalize)(condition)
        losses = jax.vmap(energy)(x, condition) + jnp.broadcast_to(constants, x.shape[:1])
        metrics = {"log_normalizer": jnp.mean(constants)}
        if edges is not None:
            metrics["edge_probability"] = jnp.mean(edges)
        return losses, metrics

    def _normalize(self, energy: AbstractEnergy, condition: Array | None, dtype: Any) -> tuple[Scalar, Scalar | None]:
        """Log Z at one condition and, with a box, the probability near its sides."""
        if self.lower is not None and self.upper is not None:
            shape = energy.event_shape
            lower, upper = (jnp.broadcast_to(bound.astype(dtype), shape) for bound in (self.lower, self.upper))
            return quadrature(energy, condition, lower, upper, self.num_points)
        if self.log_normalizer is not None:
            return jnp.asarray(self.log_normalizer(energy, condition)).astype(dtype), None
        return energy.log_normalizer.astype(dtype), None  # pyright: ignore[reportAttributeAccessIssue]  (see `init`)


def quadrature(
    energy: AbstractEnergy,
    condition: Float[Array, "..."] | None,
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    num_points: int,
) -> tuple[Scalar, Scalar]:
    """Log of the integral of exp(-E) over a box by Gauss-Legendre, and the probability near the box's sides."""
    abscissas, weights = np.polynomial.legendre.leggauss(num_points)
    axes = np.meshgrid(*[abscissas] * lower.size, indexing="ij")
    unit = np.stack([axis.ravel() for axis in axes], axis=1)  # in [-1, 1]^d
    log_weights = np.log(weights)[np.indices((num_points,) * lower.size)].sum(0).ravel()
    half = (upper - lower) / 2
    scaled = jnp.asarray(unit, lower.dtype).reshape(-1, *lower.shape)
    points = ((upper + lower) / 2)[None] + half[None] * scaled
    log_terms = jnp.asarray(log_weights, lower.dtype) - jax.vmap(lambda x: energy(x, condition))(points)
    log_sum = jax.nn.logsumexp(log_terms)
    at_edge = jnp.asarray(np.any(np.abs(unit) > 1 - 2 * EDGE, axis=1))
    edge = jnp.sum(jnp.where(at_edge, jnp.exp(log_terms - log_sum), 0))
    return log_sum + jnp.sum(jnp.log(half)), jax.lax.stop_gradient(edge)


def _check_inside(x: Array, lower: np.ndarray, upper: np.ndarray) -> None:
    rows = np.asarray(x)
    inside = np.all(((rows >= lower) & (rows <= upper)).reshape(len(rows), -1), axis=1)
    if not inside.all():
        raise InvalidDataError(
            f"{int((~inside).sum())} of {inside.size} data lie outside the box of `lower` and `upper`, the first at "
            f"index {int(np.argmin(inside))}: widen it."
        )
