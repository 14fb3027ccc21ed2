"""Score matching with a stochastic trace of the Hessian."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, energy_of
from ebm_ppl.objectives._directions import check_probe, draw_directions, score_and_curvatures


class HutchinsonScoreMatching(AbstractStatelessObjective):
    r"""Score matching with Hutchinson's estimate of the trace.

        J = E[ 1/2 ||score(x)||^2 + mean over num_probes of v' (d score/dx) v ],   E[v v'] = I

    The same expected loss as `ExactScoreMatching`, at the cost of `num_probes` products with the Hessian instead of
    d. It is also the variance-reduced form of sliced score matching. The trace's variance is twice the sum of the
    squared off-diagonal entries of the Hessian for Rademacher probes, and of all its entries for Gaussian ones; so
    Rademacher probes never do worse than Gaussian ones, and are exact where the Hessian is diagonal.

    Args:
        num_probes: directions per datum, >= 1; the variance of the trace falls as 1/num_probes.
        probe: "rademacher" (signs), "gaussian", or "sphere" (uniform, of length sqrt(d)).

    Returns:
        `loss(model, batch, *, key)`: in squared inverse units of x, summed over the event, averaged over the batch;
        batch `(n, *event_shape)` or `(data, condition)`. At its minimum it is negative.

    Raises:
        ValueError: if `num_probes` is not a count >= 1, or `probe` is not one of the three.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(3), covariance=jnp.eye(3))
        >>> float(ebm.objectives.HutchinsonScoreMatching().loss(energy, jnp.zeros((5, 3)), key=jax.random.key(0)))
        -3.0

    References:
        Hutchinson (1989). A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines.
        Communications in Statistics: Simulation and Computation 18(3), 1059-1076. doi:10.1080/03610918908812806
        Song, Garg, Shi, Ermon (2019). Sliced score matching: a scalable approach to density and score estimation.
        Uncertainty in Artificial Intelligence 115, 574-584. doi:10.48550/arXiv.1905.07088
    """

    num_probes: int = eqx.field(static=True, default=1)
    probe: str = eqx.field(static=True, default="rademacher")
    comparable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """At least one probe, of a known law."""
        check_count("num_probes", self.num_probes)
        check_probe(self.probe)

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per row, with its own probes; no metrics."""
        x, condition = self.split_batch(model, batch)
        energy, keys = energy_of(model), jax.random.split(key, x.shape[0])

        def event_loss(x: Array, condition: Array | None, key: Array) -> Scalar:
            probes = draw_directions(self.probe, x, self.num_probes, key=key)
            score, curvatures = score_and_curvatures(energy, x, condition, probes)
            return jnp.sum(score**2) / 2 + jnp.mean(curvatures)

        return jax.vmap(event_loss)(x, condition, keys), {}
