"""Score matching along random directions."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, energy_of
from ebm_ppl.objectives._directions import check_probe, draw_directions, score_and_curvatures


class SlicedScoreMatching(AbstractStatelessObjective):
    r"""Sliced score matching: compare the projections of the scores on random directions.

        J = E[ 1/2 (v' score(x))^2 + v' (d score/dx) v ],   E[v v'] = I,  mean over num_slices
        variance_reduced:  1/2 ||score(x)||^2  in place of  1/2 (v' score(x))^2

    The expected loss is that of `ExactScoreMatching` for every law of v, since directions are scaled to E[v v'] = I
    (some implementations take unit vectors, which divides the loss by d). `variance_reduced` integrates the first
    term over v; it is `HutchinsonScoreMatching` under its other name. At the true model this reduces the variance
    (with Rademacher directions on independent coordinates, to none); away from it the two terms may have balanced
    each other, and the plain form may be the less noisy one.

    Args:
        num_slices: directions per datum, >= 1.
        variance_reduced: integrate the squared projection analytically.
        probe: "rademacher" (signs), "gaussian", or "sphere" (uniform, of length sqrt(d)).

    Returns:
        `loss(model, batch, *, key)`: in squared inverse units of x, summed over the event, averaged over the batch;
        batch `(n, *event_shape)` or `(data, condition)`. At its minimum it is negative.

    Raises:
        ValueError: if `num_slices` is not a count >= 1, or `probe` is not one of the three.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(3), covariance=jnp.eye(3))
        >>> float(ebm.objectives.SlicedScoreMatching().loss(energy, jnp.zeros((5, 3)), key=jax.random.key(0)))
        -3.0

    References:
        Song, Garg, Shi, Ermon (2019). Sliced score matching: a scalable approach to density and score estimation.
        Uncertainty in Artificial Intelligence 115, 574-584. doi:10.48550/arXiv.1905.07088
    """

    num_slices: int = eqx.field(static=True, default=1)
    variance_reduced: bool = eqx.field(static=True, default=True, kw_only=True)
    probe: str = eqx.field(static=True, default="rademacher", kw_only=True)
    comparable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """At least one direction, of a known law."""
        check_count("num_slices", self.num_slices)
        check_probe(self.probe)

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per row, with its own directions; no metrics."""
        x, condition = self.split_batch(model, batch)
        energy, keys = energy_of(model), jax.random.split(key, x.shape[0])

        def event_loss(x: Array, condition: Array | None, key: Array) -> Scalar:
            directions = draw_directions(self.probe, x, self.num_slices, key=key)
            score, curvatures = score_and_curvatures(energy, x, condition, directions)
            if self.variance_reduced:
                return jnp.sum(score**2) / 2 + jnp.mean(curvatures)
            projections = jax.vmap(lambda direction: jnp.sum(direction * score))(directions)
            return jnp.mean(projections**2 / 2 + curvatures)

        return jax.vmap(event_loss)(x, condition, keys), {}
