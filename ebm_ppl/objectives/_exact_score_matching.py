"""Score matching with the exact trace of the Hessian."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies._forward_laplacian import score_and_divergence
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, energy_of


class ExactScoreMatching(AbstractStatelessObjective):
    r"""Score matching: the Fisher divergence to the data, up to a constant, without log Z.

        J = E[ 1/2 ||score(x)||^2 + div score(x) ],   score = -grad E,  div score = -Laplacian E

    No randomness beside the data: `key` is not used. Score and Laplacian come from one forward sweep that carries d
    directions through each layer, without a backward pass in x (a forward Laplacian; only energies with a
    `jax.custom_vjp` need d products with the Hessian). The cost of a step still grows as d times that of the network,
    and so does memory, which `chunk_size` bounds; from some tens of dimensions on `HutchinsonScoreMatching` or
    `DenoisingScoreMatching` are cheaper.

    What it cannot see: the weights of well-separated modes, for the score is the same on each whatever they are. It
    has no lower bound on discrete or duplicated data: add noise to such data. The activations of a network must be
    smooth (the Laplacian of a ReLU network is zero almost everywhere).

    Args:
        chunk_size: coordinates that travel together; None: all d. Smaller chunks need less memory, and one more
            evaluation of the network each.

    Returns:
        `loss(model, batch, *, key)`: in squared inverse units of x, summed over the event, averaged over the batch;
        batch `(n, *event_shape)` or `(data, condition)`. At its minimum it is negative.

    Raises:
        ValueError: if `chunk_size` is not a count >= 1.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(3), covariance=jnp.eye(3))
        >>> float(ebm.objectives.ExactScoreMatching().loss(energy, jnp.zeros((5, 3)), key=jax.random.key(0)))
        -3.0

    References:
        Hyvärinen (2005). Estimation of non-normalized statistical models by score matching. Journal of Machine
        Learning Research 6, 695-709. https://jmlr.org/papers/v6/hyvarinen05a.html
        Li, Li, Yu, Wang (2024). A computational framework for neural network-based variational Monte Carlo with
        forward Laplacian. Nature Machine Intelligence 6, 209-219. doi:10.1038/s42256-024-00794-x
        Zhang, Key, Hayes, Barber, Paige, Briol (2022). Towards healing the blindness of score matching.
        doi:10.48550/arXiv.2209.07396
    """

    chunk_size: int | None = eqx.field(static=True, default=None, kw_only=True)
    comparable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """At least one coordinate at a time."""
        if self.chunk_size is not None:
            check_count("chunk_size", self.chunk_size)

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per row; no metrics."""
        x, condition = self.split_batch(model, batch)
        energy = energy_of(model)

        def event_loss(x: Array, condition: Array | None) -> Scalar:
            score, divergence = score_and_divergence(energy, x, condition, chunk_size=self.chunk_size)
            return jnp.sum(score**2) / 2 + divergence

        return jax.vmap(event_loss)(x, condition), {}
