"""What all estimators of log Z ask of their arguments, and how a batch of conditions becomes rows."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ebm_ppl._checks import check_condition, check_key
from ebm_ppl._types import Scalar
from ebm_ppl.energies import AbstractEnergy, AbstractReferenceEnergy, Gaussian
from ebm_ppl.energies._event import evaluate
from ebm_ppl.energies._known_density import KnownDensity, check_known_density
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.errors import EnergyShapeError

DEFAULT_VARIANCE = 9.0  # that of `parallel_tempering`: N(0, 3^2) in every coordinate


class Rows(NamedTuple):
    """One row per condition: its key and the condition itself (None for an unconditional energy)."""

    keys: Array
    conditions: Array | None
    batched: bool

    def __len__(self) -> int:
        return len(self.keys)


def check_rows(energy: Any, key: Any, condition: Any) -> Rows:
    """`condition` alone or with one leading axis; the draws for a condition depend on its place, not on the others."""
    check_energy_type("energy", energy)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((energy, condition))):
        raise TypeError(
            "`energy` must hold numbers; its parameters are traced (latent variables of a NumPyro model, jit, grad): "
            "these estimators run outside of compiled programs. Where log Z varies with latent variables, give it as a "
            "JAX function of them, or take ebm.objectives.MaximumLikelihood in objective_factor, or ebm.ExchangeKernel."
        )
    key = check_key(key)
    shape = energy.condition_shape
    extra = shape is not None and np.ndim(condition) == len(shape) + 1
    size = int(np.shape(condition)[0]) if extra else None
    array = check_condition(condition, shape, size)
    count = 1 if size is None else size
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(count, dtype=jnp.uint32))
    if array is not None and size is None:
        array = array[None]
    return Rows(keys, array, size is not None)


def check_base(name: str, distribution: Any, energy: AbstractEnergy) -> KnownDensity:
    """A density with known normaliser on the event space; N(0, 3^2) in every coordinate where None."""
    if distribution is None:
        if len(energy.event_shape) > 1:
            raise ValueError(
                f"`{name}` must be given for an energy of event_shape {energy.event_shape}; the default is a normal on "
                "scalars and vectors."
            )
        size = energy.event_shape
        distribution = Gaussian(jnp.zeros(size), DEFAULT_VARIANCE * (jnp.eye(size[0]) if size else jnp.ones(())))
    check_known_density(name, distribution)
    declared = getattr(distribution, "event_shape", None)
    if isinstance(distribution, AbstractReferenceEnergy) and declared != energy.event_shape:
        raise EnergyShapeError(
            f"`{name}` must have the event_shape of the energy, {energy.event_shape}; got {declared}."
        )
    return KnownDensity(distribution, energy.event_shape, name)


def check_fraction(name: str, value: Any) -> Array:
    """A number strictly between 0 and 1, as an array: another value compiles nothing."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be between 0 and 1; got {value!r}.") from None
    if not 0 < number < 1:
        raise ValueError(f"`{name}` must be between 0 and 1; got {value!r}.")
    return jnp.asarray(number, float)


def log_weight(energy: AbstractEnergy, base: KnownDensity, x: Float[Array, "..."], condition: Array | None) -> Scalar:
    """-E(x) - log q(x): the log importance weight of a draw from q; -inf outside the support of exp(-E)."""
    value = evaluate(energy, x, condition)
    return -value - base.log_prob(x, condition).astype(value.dtype)


@eqx.filter_jit
def draws_and_log_weights(
    energy: AbstractEnergy, base: KnownDensity, keys: Array, conditions: Array | None, *, num_samples: int
) -> tuple[Array, Array]:
    """`(row, n, *event)` draws of the base and their `(row, n)` log weights."""

    def one(key: Array, condition: Array | None) -> tuple[Array, Array]:
        x = base.sample(key, num_samples, condition)
        return x, jax.vmap(lambda x: log_weight(energy, base, x, condition))(x)

    return jax.vmap(one)(keys, conditions)
