"""How well a normalised energy predicts data that it has not seen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._checks import check_condition, check_data, check_floating
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._check_start import event_rows
from ebm_ppl.energies._coordinate_energy import coordinate_energy
from ebm_ppl.energies._event import evaluate
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._traced import traced
from ebm_ppl.errors import EnergyShapeError, Problem
from ebm_ppl.normalizers._estimate import LogNormalizerEstimate

BATCH = 4096  # events evaluated at a time


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutLogLikelihood:
    """Mean log density of held-out events in nats, with its error from both sources.

    Args:
        value: mean over events, nats.
        standard_error: of `value`: both parts, added in quadrature.
        standard_error_data: because there are only so many events.
        standard_error_log_normalizer: because log Z is an estimate; it does not shrink with more data.
        pointwise: log density of every event, nats, `(n,)`; its sum is what other tables call the log likelihood.
        problems: those of log Z, and `OUTSIDE_SUPPORT` where events have density zero.
    """

    value: float
    standard_error: float
    standard_error_data: float
    standard_error_log_normalizer: float
    pointwise: Float[np.ndarray, " n"]
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found against it."""
        return not self.problems

    def __repr__(self) -> str:
        """Value, error and where it comes from."""
        head = (
            f"held-out log likelihood {self.value:.5g} +- {self.standard_error:.2g} nats per event over "
            f"{len(self.pointwise)} events (from data {self.standard_error_data:.2g}, "
            f"from log Z {self.standard_error_log_normalizer:.2g})"
        )
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


def held_out_log_likelihood(
    energy: AbstractEnergy | Any, data: Any, log_normalizer: LogNormalizerEstimate | Any, *, condition: Any = None
) -> HeldOutLogLikelihood:
    r"""Mean of \(\log p(x) = -E(x) - \log Z\) over held-out events, with a standard error that includes log Z's.

    The two errors differ in kind: that of the data shrinks with their number and is shared by no other model, that
    of log Z does not and is. Compare models by the difference of their `pointwise` values.

    Args:
        energy: E, nats.
        data: `(n, *event_shape)` (with named parts a dictionary), not used in training.
        log_normalizer: a `LogNormalizerEstimate` of this energy, or an exact log Z in nats. With a condition for every
            event, one estimate per event (`ebm.log_normalizer(energy, condition=condition, ...)`).
        condition: for conditional energies: one for all events, or `(n, *condition_shape)`.

    Returns:
        `HeldOutLogLikelihood`; nats per event.

    Raises:
        EnergyShapeError: data, condition or the number of estimates do not fit.
        InvalidDataError: data are empty, not finite, or outside the support.
        ValueError: `log_normalizer` is not finite.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.FunctionEnergy(lambda x: x**2 / 2 - 100, ())             # a scale that learning leaves open
        >>> data = jax.random.normal(jax.random.key(0), (1000,))
        >>> ebm.normalizers.held_out_log_likelihood(energy, data, ebm.normalizers.quadrature(energy))
        held-out log likelihood -1.4... +- 0.02... nats per event over 1000 events (from data 0.02..., from log Z ...)

    References:
        Good (1952). Rational decisions. Journal of the Royal Statistical Society B 14(1), 107-114 (the logarithmic
        score). doi:10.1111/j.2517-6161.1952.tb00104.x
    """
    check_energy_type("energy", energy)
    if energy.support is None and not isinstance(energy.event_shape, Mapping):
        x = check_data("data", data, energy.event_shape)
    else:
        event_rows(coordinate_energy(energy), "data", data, axis="n")
        x = jax.tree.map(lambda part: check_floating("data", part), data)
    energy = traced(energy, jax.tree.leaves(x)[0].dtype)
    count = len(jax.tree.leaves(x)[0])
    checked = check_condition(condition, energy.condition_shape, count)
    value, error, problems = _log_z(log_normalizer, count)
    one = isinstance(log_normalizer, LogNormalizerEstimate) and np.ndim(value) == 0
    if one and checked is not None and checked.shape != energy.condition_shape and (checked != checked[:1]).any():
        raise EnergyShapeError(
            f"`log_normalizer` is an estimate for one condition, and the {count} events have several: give one for "
            "each, ebm.log_normalizer(energy, condition=condition, ...)."
        )
    pointwise = -np.asarray(_energies(energy, x, checked), np.float64) - value
    outside = int(np.count_nonzero(np.isneginf(pointwise)))
    if outside:
        advice = f"{outside} of {count} events have density zero: the mean is minus infinity."
        problems = (*problems, Problem("OUTSIDE_SUPPORT", advice, None, float(outside)))
    from_log_z = float(error) if np.ndim(error) == 0 else float(np.sqrt(np.sum(error**2)) / count)
    from_data = float("nan")
    if count > 1 and not outside:
        from_data = float(pointwise.std(ddof=1) / np.sqrt(count))
    total = float(np.hypot(from_data, from_log_z))
    return HeldOutLogLikelihood(float(pointwise.mean()), total, from_data, from_log_z, pointwise, problems)


def _log_z(given: Any, num_events: int) -> tuple[Any, Any, tuple[Problem, ...]]:
    if isinstance(given, LogNormalizerEstimate):
        value, error, problems = given.value, given.standard_error, given.problems
    else:
        value, error, problems = np.asarray(given, np.float64), 0.0, ()
    if np.ndim(value) > 0 and np.shape(value) != (num_events,):
        raise EnergyShapeError(
            f"`log_normalizer` must be one number, or one for each of the {num_events} events; got shape "
            f"{np.shape(value)}."
        )
    if not np.all(np.isfinite(value)):
        raise ValueError(f"`log_normalizer` must be finite; got {given!r}.")
    return value, error, problems


@eqx.filter_jit
def _energies(energy: AbstractEnergy, x: Any, condition: Array | None) -> Float[Array, " n"]:
    size = min(BATCH, len(jax.tree.leaves(x)[0]))
    if condition is not None and condition.shape != energy.condition_shape:
        return jax.lax.map(lambda pair: evaluate(energy, *pair), (x, condition), batch_size=size)
    return jax.lax.map(lambda event: jnp.asarray(evaluate(energy, event, condition)), x, batch_size=size)
