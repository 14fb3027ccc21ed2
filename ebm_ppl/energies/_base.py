"""The one noun everything else is about: an energy of one event."""

import abc
import dataclasses
from typing import Any

import equinox as eqx
import numpyro  # noqa: F401  (before any of its submodules)
from jaxtyping import Array, Float
from numpyro.distributions.constraints import Constraint

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._support import check_support


class AbstractEnergy(eqx.Module):
    r"""An energy function \(E\) of one event: \(p(x) = \exp(-E(x)) / Z\), E in nats.

    Subclass it, declare `event_shape` and write `__call__` for **one** event; batches come from `jax.vmap`.
    A conditional energy \(E(x; y)\) also declares `condition_shape` and reads `condition`.

    Attributes:
        event_shape: shape of one event x; `()` for a scalar; with named parts a mapping from names to shapes.
        support: where exp(-E) is positive: one of `numpyro.distributions.constraints`, a dictionary of them for named
            parts, or None for all reals. Its kind is static; its bounds may be arrays, also traced ones.
        condition_shape: shape of one condition y, or None for an unconditional energy.

    Example:
        >>> import equinox as eqx, jax.numpy as jnp, ebm_ppl as ebm
        >>> class Quartic(ebm.AbstractEnergy):
        ...     event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,))
        ...     def __call__(self, x, condition=None):
        ...         return jnp.sum(x**4)
        >>> float(Quartic()(jnp.ones(2)))
        2.0

    References:
        LeCun, Chopra, Hadsell, Ranzato, Huang (2006). A tutorial on energy-based learning.
        In: Predicting Structured Data, MIT Press. doi:10.7551/mitpress/7443.003.0014
    """

    event_shape: eqx.AbstractVar[Any]
    support: Any = eqx.field(default=None, kw_only=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    @abc.abstractmethod
    def __call__(self, x: Any, condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x; condition) of one event, in nats.

        Args:
            x: one event, shape `event_shape`; with named parts a dictionary.
            condition: one condition, shape `condition_shape`; None where the energy is unconditional.

        Returns:
            A floating scalar.
        """

    def __check_init__(self) -> None:
        """`event_shape` must be static: as a pytree leaf it would become a tracer under `jit`; the support a field."""
        for owner in type(self).__mro__:
            declared = vars(owner).get("support")
            if owner is not AbstractEnergy and isinstance(declared, Constraint):
                raise TypeError(
                    f"`{owner.__name__}.support` must be a field, not a class attribute: declare `support: Any = "
                    "eqx.field(default_factory=lambda: constraints.positive, kw_only=True)`, or set it in `__init__`."
                )
        check_support(self.support, self.event_shape)
        for field in dataclasses.fields(self):
            if field.name in ("event_shape", "condition_shape") and not field.metadata.get("static", False):
                raise TypeError(
                    f"`{type(self).__name__}.{field.name}` must be static: declare "
                    f"`{field.name}: tuple[int, ...] = eqx.field(static=True)`."
                )


class AbstractReferenceEnergy(AbstractEnergy):
    r"""An energy whose normaliser and law are known: what everything else is tested against.

    `log_normalizer` is the exact \(\log Z = \log \int \exp(-E(x)) dx\), in nats, and `sample` draws exactly from
    \(\exp(-E)/Z\). Where one of them does not exist in closed form it raises `NotImplementedError` naming what to
    use instead.
    """

    @property
    @abc.abstractmethod
    def log_normalizer(self) -> Scalar:
        r"""Exact \(\log Z\), in nats."""

    @abc.abstractmethod
    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact independent draws, shape `(*sample_shape, *event_shape)`."""
