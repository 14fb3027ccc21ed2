"""Score matching from energies alone: finite differences along random directions."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count, check_positive
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, as_floating, energy_of
from ebm_ppl.objectives._directions import check_probe, draw_directions


class FiniteDifferenceScoreMatching(AbstractStatelessObjective):
    r"""Sliced score matching by finite differences: three energies per datum, no derivative in x.

        J = E[ 1/2 slope^2 + curvature ],   E[v v'] = I,  mean over num_slices,  h = spacing
        slope     = (E(x - h v) - E(x + h v)) / (2 h)                 ~ v' score(x)
        curvature = (2 E(x) - E(x + h v) - E(x - h v)) / h^2          ~ v' (d score/dx) v

    Only the parameters are differentiated, so this is the cheapest form of score matching per step. Bias is O(h^2)
    (none for quadratic energies); rounding is about eps |E|/h^2 with eps = 1.2e-7 in float32, so h should be no
    smaller than a few hundredths of the data's scale there. The variance is that of plain sliced score matching.

    Args:
        spacing: h > 0, in the units of x.
        num_slices: directions per datum, >= 1.
        probe: "rademacher" (signs), "gaussian", or "sphere" (uniform, of length sqrt(d)).

    Returns:
        `loss(model, batch, *, key)`: in squared inverse units of x, summed over the event, averaged over the batch;
        batch `(n, *event_shape)` or `(data, condition)`. At its minimum it is negative.

    Raises:
        ValueError: if `spacing` is not one positive finite number, `num_slices` not a count >= 1, or `probe` unknown.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(3), covariance=jnp.eye(3))
        >>> objective = ebm.objectives.FiniteDifferenceScoreMatching(spacing=0.5)
        >>> float(objective.loss(energy, jnp.zeros((5, 3)), key=jax.random.key(0)))
        -3.0

    References:
        Pang, Xu, Li, Song, Ermon, Zhu (2020). Efficient learning of generative models via finite-difference score
        matching. Advances in Neural Information Processing Systems 33. doi:10.48550/arXiv.2007.03317
    """

    spacing: Float[Array, ""] = eqx.field(converter=as_floating, default=0.1)
    num_slices: int = eqx.field(static=True, default=1, kw_only=True)
    probe: str = eqx.field(static=True, default="rademacher", kw_only=True)
    comparable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """One positive spacing, at least one direction of a known law."""
        check_positive("spacing", self.spacing)
        if self.spacing.ndim != 0:
            raise ValueError(f"`spacing` must be one number; got shape {self.spacing.shape}.")
        check_count("num_slices", self.num_slices)
        check_probe(self.probe)

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per row, with its own directions; no metrics."""
        x, condition = self.split_batch(model, batch)
        energy, keys = energy_of(model), jax.random.split(key, x.shape[0])
        spacing = self.spacing.astype(x.dtype)

        def event_loss(x: Array, condition: Array | None, key: Array) -> Scalar:
            centre = energy(x, condition)

            def sliced_loss(direction: Array) -> Scalar:
                right = energy(x + spacing * direction, condition)
                left = energy(x - spacing * direction, condition)
                slope = (left - right) / (2 * spacing)
                return slope**2 / 2 + ((centre - right) + (centre - left)) / spacing**2

            return jnp.mean(jax.vmap(sliced_loss)(draw_directions(self.probe, x, self.num_slices, key=key)))

        return jax.vmap(event_loss)(x, condition, keys), {}
