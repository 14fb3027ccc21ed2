"""The unnormalised log density that samplers ask for."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._data_sum import DataSumEnergy
from ebm_ppl.energies._event import check_condition, check_event, evaluate
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._target import AbstractLogDensity


class LogDensity(AbstractLogDensity):
    """x -> -E(x; condition), as a module: `log_density` builds it.

    A function of events; `Target` is the one of coordinates, which compiled code is looked up by.

    References:
        Cabezas, Corenflos, Lao, Louf (2024). BlackJAX: composable Bayesian inference in JAX. arXiv:2402.10797
    """

    energy: AbstractEnergy
    condition: Array | None

    def __call__(self, x: Any) -> Scalar:
        """-E(x; condition) of one event, in nats, in the dtype of `x` (float32 for half precision)."""
        dtype = check_event(self.energy, x, self.condition)
        return -evaluate(self.energy, x, self.condition).astype(dtype)

    def minibatch(self, key: PRNGKey, batch_size: int) -> "LogDensity":
        """The same with a few of the data, for an energy that is a sum over data.

        Raises:
            TypeError: if the energy is not a `DataSumEnergy`.
        """
        if not isinstance(self.energy, DataSumEnergy):
            raise TypeError(
                f"minibatches need an energy that is a sum over data, ebm.energies.DataSumEnergy; got "
                f"{type(self.energy).__name__}."
            )
        return LogDensity(self.energy.minibatch(key, batch_size), self.condition)

    def at_noise_scale(self, noise_scale: Array) -> "LogDensity":
        """The same at another noise scale, for an energy whose condition is, or begins with, log(noise_scale).

        Raises:
            TypeError: if the energy is unconditional, or its condition not a scalar or a vector.
        """
        if self.condition is None or self.condition.ndim > 1:
            raise TypeError(
                "noise scales need a noise-conditioned energy, of condition_shape () or (1 + k,); got condition_shape "
                f"{self.energy.condition_shape} of {type(self.energy).__name__}."
            )
        log_scale = jnp.log(noise_scale).astype(self.condition.dtype)
        condition = log_scale if self.condition.ndim == 0 else self.condition.at[0].set(log_scale)
        return LogDensity(self.energy, condition)


def log_density(energy: AbstractEnergy, condition: Any = None) -> LogDensity:
    r"""The unnormalised log density \(x \mapsto -E(x; y)\) as a callable without closure.

    Args:
        energy: E.
        condition: one condition y, shape `energy.condition_shape`, fixed in the result; None: unconditional.

    Returns:
        A callable module of one event: what BlackJAX calls `logdensity_fn`. Its value has the dtype of the event.

    Raises:
        EnergyShapeError: if `condition` has not the declared shape.
        TypeError: if `energy` is not an energy.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> log_p = ebm.log_density(ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2)))
        >>> float(log_p(jnp.ones(2)))
        -1.0

    References:
        Cabezas, Corenflos, Lao, Louf (2024). BlackJAX: composable Bayesian inference in JAX. arXiv:2402.10797
    """
    check_energy_type("energy", energy)
    check_condition(type(energy).__name__, energy.condition_shape, condition)
    return LogDensity(energy, condition)
