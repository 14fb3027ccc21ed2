"""A prior and one term per datum: the energy of parameters given data."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_data
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import check_event, evaluate
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._support import common_support
from ebm_ppl.errors import EnergyShapeError


class DataSumEnergy(AbstractEnergy):
    r"""A sum over data: \(E(x) = E_0(x) + w \sum_{i=1}^n E_1(x; y_i)\), E_0 = `prior`, E_1 = `term`, y = `data`.

    With E_0 and E_1 minus the logarithms of a prior and of a likelihood, exp(-E) is the posterior of x. Any kernel
    samples it; `kernels.SGLD` and `kernels.SGHMC` look at a few data per step only, through `minibatch`.

    Args:
        prior: unconditional energy of x.
        term: conditional energy of x; its condition is one datum.
        data: y, shape `(n, *term.condition_shape)`, n >= 1, finite.

    Raises:
        TypeError: if `prior` or `term` is not an energy.
        EnergyShapeError: if event shapes differ, `prior` is conditional, `term` is not, or `data` has another shape.
        ValueError: if `prior` and `term` have different supports.
        InvalidDataError: if `data` is empty, not numeric or not finite.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> prior = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1))
        >>> term = ebm.FunctionEnergy(lambda x, y: jnp.sum((x - y) ** 2) / 2, (1,), condition_shape=(1,))
        >>> posterior = ebm.energies.DataSumEnergy(prior, term, jnp.array([[1.0], [3.0]]))
        >>> float(posterior(jnp.array([1.0])))                                # 1/2 + 0 + 4/2
        2.5

    References:
        Welling, Teh (2011). Bayesian learning via stochastic gradient Langevin dynamics. ICML, 681-688.
        ISBN 978-1-4503-0619-5
    """

    prior: AbstractEnergy
    term: AbstractEnergy
    data: Float[Array, "n ..."]
    weight: Float[Array, ""]
    event_shape: Any = eqx.field(static=True)

    def __init__(self, prior: AbstractEnergy | Any, term: AbstractEnergy | Any, data: Any) -> None:
        check_energy_type("prior", prior)
        check_energy_type("term", term)
        if prior.condition_shape is not None:
            raise EnergyShapeError(f"`prior` must be unconditional; got condition_shape {prior.condition_shape}.")
        if term.condition_shape is None:
            raise EnergyShapeError("`term` must be conditional, on one datum; its condition_shape is None.")
        if prior.event_shape != term.event_shape:
            raise EnergyShapeError(
                f"`prior` and `term` must share one event shape; got {prior.event_shape} and {term.event_shape}."
            )
        self.prior, self.term = prior, term
        self.data = check_data("data", data, term.condition_shape)
        self.weight = jnp.ones((), self.data.dtype)
        self.event_shape, self.condition_shape = prior.event_shape, None
        self.support = common_support([prior.support, term.support], ["prior", "term"])

    def __call__(self, x: Any, condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x) of one event, in nats, with all data."""
        dtype = check_event(self, x, condition)
        terms = jax.vmap(lambda y: evaluate(self.term, x, y).astype(dtype))(self.data.astype(dtype))
        return evaluate(self.prior, x).astype(dtype) + self.weight.astype(dtype) * jnp.sum(terms)

    def minibatch(self, key: PRNGKey, batch_size: int) -> "DataSumEnergy":
        r"""The same energy with `batch_size` data drawn with replacement, each counting w n / batch_size.

        Its value and gradient are unbiased estimates. The variance of the gradient is
        \(n^2 / b\) times that of one datum's gradient over the data, b = `batch_size`.

        Args:
            key: a JAX key.
            batch_size: data to draw, at least 1.
        """
        count = self.data.shape[0]
        drawn = self.data[jax.random.randint(key, (batch_size,), 0, count)]
        weight = self.weight * (count / batch_size)
        return eqx.tree_at(lambda energy: (energy.data, energy.weight), self, (drawn, weight))
