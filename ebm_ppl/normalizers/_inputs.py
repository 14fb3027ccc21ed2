"""What all estimators of log Z ask of their arguments, and how a batch of conditions becomes rows."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ebm_ppl._checks import check_condition, check_finite, check_floating, check_key
from ebm_ppl._types import Scalar
from ebm_ppl.energies import AbstractEnergy, AbstractReferenceEnergy, DiagonalGaussian
from ebm_ppl.energies._check_start import event_rows
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy, coordinate_energy
from ebm_ppl.energies._event import evaluate
from ebm_ppl.energies._known_density import KnownDensity, check_known_density
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.errors import EnergyShapeError

DEFAULT_SCALE = 3.0  # that of `parallel_tempering`: N(0, 3^2) in every coordinate


class Rows(NamedTuple):
    """The energy in real coordinates, and one row per condition: its key and the condition (None: unconditional)."""

    energy: CoordinateEnergy
    keys: Array
    conditions: Array | None
    batched: bool

    def __len__(self) -> int:
        return len(self.keys)

    def coordinates_of(self, name: str, events: Any, leading: int) -> Array:
        """Given events, behind `leading` axes, in the coordinates of the energy."""
        leaves = [check_floating(name, leaf) for leaf in jax.tree.leaves(events)]
        if not leaves or any(leaf.ndim < leading for leaf in leaves):
            raise EnergyShapeError(f"`{name}` must have at least {leading} axes in front of those of an event.")
        lead = leaves[0].shape[:leading]
        if any(leaf.shape[:leading] != lead for leaf in leaves):
            raise EnergyShapeError(f"the parts of `{name}` must agree in their first {leading} axes.")
        flat = jax.tree.map(lambda leaf: check_floating(name, leaf).reshape(-1, *jnp.shape(leaf)[leading:]), events)
        rows = event_rows(self.energy, name, flat, axis="draw", key=jax.random.key(0))
        check_finite(name, rows)
        return rows.reshape(*lead, *rows.shape[1:])


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
    return Rows(coordinate_energy(energy), keys, array, size is not None)


def check_base(name: str, distribution: Any, energy: CoordinateEnergy) -> KnownDensity:
    """A density with known normaliser in the coordinates of the energy; N(0, 3^2) in every one where None."""
    if distribution is None:
        distribution = DiagonalGaussian(jnp.zeros(energy.event_shape), DEFAULT_SCALE)
    check_known_density(name, distribution)
    declared = getattr(distribution, "event_shape", None)
    if isinstance(distribution, AbstractReferenceEnergy) and declared != energy.event_shape:
        where = "" if energy.coordinates.is_identity else ", in the real coordinates of its support"
        raise EnergyShapeError(
            f"`{name}` must have the event_shape of the energy{where}, {energy.event_shape}; got {declared}."
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
