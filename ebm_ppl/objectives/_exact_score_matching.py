"""Score matching with the exact trace of the Hessian."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, energy_of
from ebm_ppl.objectives._directions import score_and_curvatures


class ExactScoreMatching(AbstractStatelessObjective):
    r"""Score matching: the Fisher divergence to the data, up to a constant, without log Z.

        J = E[ 1/2 ||score(x)||^2 + div score(x) ],   score = -grad E,  div score = -Laplacian E

    No randomness beside the data: `key` is not used. The Laplacian takes d products with the Hessian, so that the
    cost of a step grows as d times that of the network, and memory with it; from some tens of dimensions on take
    `HutchinsonScoreMatching` or `DenoisingScoreMatching`.

    What it cannot see: the weights of well-separated modes, for the score is the same on each whatever they are. It
    has no lower bound on discrete or duplicated data: add noise to such data. The activations of a network must be
    smooth (the Laplacian of a ReLU network is zero almost everywhere).

    Returns:
        `loss(model, batch, *, key)`: in squared inverse units of x, summed over the event, averaged over the batch;
        batch `(n, *event_shape)` or `(data, condition)`. At its minimum it is negative.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(3), covariance=jnp.eye(3))
        >>> float(ebm.objectives.ExactScoreMatching().loss(energy, jnp.zeros((5, 3)), key=jax.random.key(0)))
        -3.0

    References:
        Hyvärinen (2005). Estimation of non-normalized statistical models by score matching. Journal of Machine
        Learning Research 6, 695-709. https://jmlr.org/papers/v6/hyvarinen05a.html
        Zhang, Key, Hayes, Barber, Paige, Briol (2022). Towards healing the blindness of score matching.
        doi:10.48550/arXiv.2209.07396
    """

    comparable: ClassVar[bool] = True

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per row; no metrics."""
        x, condition = self.split_batch(model, batch)
        energy, shape = energy_of(model), x.shape[1:]
        basis = jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, *shape)

        def event_loss(x: Array, condition: Array | None) -> Scalar:
            score, curvatures = score_and_curvatures(energy, x, condition, basis)
            return jnp.sum(score**2) / 2 + jnp.sum(curvatures)

        return jax.vmap(event_loss)(x, condition), {}
