"""An energy with a learnable log normaliser."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from ebm_ppl._types import Scalar
from ebm_ppl.energies._base import AbstractEnergy
from ebm_ppl.energies._event import check_event, evaluate
from ebm_ppl.energies._parameters import as_parameter
from ebm_ppl.energies._sum import check_energy_type


class ShiftedEnergy(AbstractEnergy):
    r"""An energy plus a learnable constant: \(E(x; y) + c\), c = `log_normalizer`.

    exp(-ShiftedEnergy) is a normalised density exactly when c is the log Z of the inner `energy`; noise-contrastive
    estimation learns it. The field is this model's *claim* about the inner energy, not an exact property as on
    reference energies. For a conditional energy one constant serves all conditions.

    Args:
        energy: the energy without the constant.
        log_normalizer: c, a scalar, in nats; an array field, learnable.

    Raises:
        ValueError: if a concrete `log_normalizer` is not a finite scalar.

    Example:
        >>> import jax.numpy as jnp, ebm_ppl as ebm
        >>> gaussian = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> normalised = ebm.ShiftedEnergy(gaussian, gaussian.log_normalizer)
        >>> print(f"{normalised(jnp.zeros(2)):.4f}")        # log 2π
        1.8379

    References:
        Gutmann, Hyvärinen (2012). Noise-contrastive estimation of unnormalized statistical models, with applications
        to natural image statistics. Journal of Machine Learning Research 13, 307-361.
        Gutmann, Kleinegesse, Rhodes (2022). Statistical applications of contrastive learning. Behaviormetrika 49,
        277-301. doi:10.1007/s41237-022-00178-4
    """

    energy: AbstractEnergy
    log_normalizer: Float[Array, ""]
    event_shape: Any = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __init__(self, energy: AbstractEnergy, log_normalizer: Any = 0.0) -> None:
        check_energy_type("energy", energy)
        self.energy = energy
        self.log_normalizer = as_parameter("log_normalizer", log_normalizer, 0)
        self.event_shape, self.condition_shape = energy.event_shape, energy.condition_shape
        self.support = energy.support

    def __call__(self, x: Any, condition: Float[Array, "..."] | None = None) -> Scalar:
        """E(x; condition) + log_normalizer of one event, in nats."""
        dtype = check_event(self, x, condition)
        return evaluate(self.energy, x, condition).astype(dtype) + self.log_normalizer.astype(dtype)
