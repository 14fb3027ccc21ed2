"""The uniform face of a transition kernel."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_positive, check_probability, what_came
from ebm_ppl._types import LogDensityFn
from ebm_ppl.energies._parameters import as_positive

if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar  # what type checkers know of it: None is one for the class
else:
    from equinox import AbstractVar as AbstractClassVar


class AbstractKernel(eqx.Module):
    """A transition kernel: hyperparameters as fields, the transition itself BlackJAX's.

    `build(logdensity_fn)` gives a `blackjax.SamplingAlgorithm(init, step)`; `stats(state, info)` gives the
    statistics of one transition under ArviZ names. Every kernel reports at least

    - `acceptance_rate` (absent where the kernel never rejects),
    - `diverging`: the transition left the region where the integrator can be trusted,
    - `nonfinite_proposal`: energy NaN or -inf, or gradient NaN or infinite, at the proposed point. An energy of
      +inf is a wall (density zero) and is not counted,
    - `n_steps`: gradients (or densities, for kernels without gradient) this transition evaluated.

    Attributes:
        step_size: the kernel's step size; each docstring says in which convention.
        target_acceptance_rate: what warm-up tunes `step_size` to; None: nothing to tune by.
        adjusted: whether the kernel leaves exp(-E) exactly invariant (it has a Metropolis step, or needs none).
        reversible: whether successive positions satisfy detailed balance with respect to exp(-E); a kernel may leave
            exp(-E) invariant without it.
        uses_gradient: whether the energy must be differentiable.
        num_coordinates: for how many coordinates the kernel is made, where its fields decide that; None: for any
            number. A subclass may make it a keyword-only field or a property.
        stated_bias: what is known of the bias of a kernel that is not `adjusted`, as JSON-able facts for
            `Draws.settings`; None where nothing is. A subclass may make it a property.
        carried: fields of the kernel's state that have nothing to do with the coordinates: warm-up, which makes the
            state anew whenever it changes the coordinates, takes them over.
    """

    step_size: eqx.AbstractVar[float | Float[Array, "..."]]
    target_acceptance_rate: AbstractClassVar[float | None]
    adjusted: ClassVar[bool] = True
    reversible: ClassVar[bool] = True
    uses_gradient: ClassVar[bool] = True
    num_coordinates: ClassVar[int | None] = None
    stated_bias: ClassVar[dict[str, Any] | None] = None
    carried: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The transition for this log density. `init(position, rng_key)`, `step(rng_key, state)`."""

    @abc.abstractmethod
    def stats(self, state: Any, info: Any) -> dict[str, Array]:
        """Statistics of one transition under ArviZ names; scalars."""


class AbstractTunableKernel(AbstractKernel):
    """A kernel whose step size warm-up tunes to an acceptance rate.

    Attributes:
        step_size: positive and finite, a number or a scalar array; where warm-up starts.
        target_acceptance_rate: mean acceptance rate that warm-up tunes `step_size` to, between 0 and 1.
    """

    step_size: eqx.AbstractVar[float | Float[Array, "..."]]
    target_acceptance_rate: eqx.AbstractVar[float]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __check_init__(self) -> None:
        """A step that moves, and a rate that can be reached."""
        check_positive("step_size", self.step_size)
        check_probability("target_acceptance_rate", self.target_acceptance_rate)


def is_nonfinite(logdensity: Any, logdensity_grad: Any = ()) -> Array:
    """Whether a proposed point is numerically unusable.

    True where the log density is NaN or +inf, or where it is finite but some entry of its gradient is not. A log
    density of -inf is density zero: a wall, which a Metropolis step handles, not a fault.
    """
    unusable = jnp.isnan(logdensity) | (logdensity == jnp.inf)
    for leaf in jax.tree.leaves(logdensity_grad):
        unusable |= jnp.isfinite(logdensity) & ~jnp.all(jnp.isfinite(leaf))
    return unusable


def identity_metric(position: Any) -> Array:
    """The inverse mass matrix of unit masses: the driver preconditions by a change of variables instead."""
    leaves = jax.tree.leaves(position)
    return jnp.ones(sum(leaf.size for leaf in leaves), leaves[0].dtype)


def random_length(key: Array, mean: int) -> Array:
    """A number of integration steps, uniform between half and one and a half times `mean`.

    A trajectory of one fixed length may come back to where it started, or to its mirror image: on a normal target
    every chain then stays at its distance from the centre, whatever the acceptance rate says.
    """
    return jax.random.randint(key, (), (mean + 1) // 2, mean + mean // 2 + 1)


def check_two_dimensions(name: str, position: Any) -> None:
    """Motion at unit speed needs a direction to turn to."""
    size = sum(leaf.size for leaf in jax.tree.leaves(position))
    if size < 2:
        raise ValueError(f"`{name}` needs an energy of at least 2 dimensions; got {size}: use ebm.HMC().")


def check_invariant(name: str, kernel: Any) -> None:
    """Refuse a kernel that leaves its target invariant only up to a bias: what is computed would have it, unnoticed.

    Asked by whatever assumes exact invariance: estimators of log Z, the exchange algorithm, calibration. None stands
    for a default kernel, which is adjusted.

    Raises:
        TypeError: not a kernel.
        ValueError: a kernel without a Metropolis correction.
    """
    if kernel is None:
        return
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"`{name}` must be an ebm.AbstractKernel such as ebm.MALA(); got {what_came(kernel)}.")
    if not kernel.adjusted:
        made = "have been made by a kernel that leaves" if name == "draws" else "leave"
        raise ValueError(
            f"`{name}` must {made} its target exactly invariant, which {type(kernel).__name__} does not: "
            "use ebm.MALA(), ebm.HMC() or ebm.NUTS()."
        )


def as_hyperparameter(name: str) -> Callable[[Any], Array]:
    """A converter for numbers beside the step size: positive, and arrays, so that changing them never recompiles."""

    def convert(value: Any) -> Array:
        return as_positive(name, value, 0)

    return convert


def with_step_size[K: AbstractKernel](kernel: K, step_size: float | Array) -> K:
    """`kernel` with another step size; an array, so that changing it never recompiles."""
    return eqx.tree_at(lambda k: k.step_size, kernel, step_size)
