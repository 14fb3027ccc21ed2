"""Score matching with a stochastic trace of the Hessian."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import score
from ebm_ppl.objectives._base import AbstractStatelessObjective, Batch, Metrics, energy_of
from ebm_ppl.objectives._directions import check_probe, draw_directions


class HutchinsonScoreMatching(AbstractStatelessObjective):
    r"""Score matching with Hutchinson's estimate of the trace.

        J = E[ 1/2 ||score(x)||^2 + mean over num_probes of v' (d score/dx) v ],   E[v v'] = I

    The same expected loss as `ExactScoreMatching`, at the cost of `num_probes` products with the Hessian instead of
    d. It is also the variance-reduced form of sliced score matching. The trace's variance is twice the sum of the
    squared off-diagonal entries of the Hessian for Rademacher probes, and of all its entries for Gaussian ones; so
    Rademacher probes never do worse than Gaussian ones, and are exact where the Hessian is diagonal.

    With `sketch_size` > 0 the trace is Hutch++: exact on an orthonormal basis Q of the Hessian's action on that many
    random directions, by probes on the rest. Where a few directions hold most of the curvature, its variance falls as
    the inverse square of the number of products; where all curve alike, the 2 sketch_size products are better spent
    on probes.

        tr A = tr Q' A Q + E[ v' (I - QQ') A (I - QQ') v ],   Q = orthonormal basis of A S

    Args:
        num_probes: directions per datum, >= 1; the variance of the trace falls as 1/num_probes.
        probe: "rademacher" (signs), "gaussian", or "sphere" (uniform, of length sqrt(d)).
        sketch_size: directions of the sketch S; 0: none. Each costs two products with the Hessian; Meyer et al. take
            as many as probes. From d on the trace is exact.

    Returns:
        `loss(model, batch, *, key)`: in squared inverse units of x, summed over the event, averaged over the batch;
        batch `(n, *event_shape)` or `(data, condition)`. At its minimum it is negative.

    Raises:
        ValueError: if `num_probes` is not a count >= 1, `sketch_size` not one >= 0, or `probe` not one of the three.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(3), covariance=jnp.eye(3))
        >>> float(ebm.objectives.HutchinsonScoreMatching().loss(energy, jnp.zeros((5, 3)), key=jax.random.key(0)))
        -3.0

    References:
        Hutchinson (1989). A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines.
        Communications in Statistics: Simulation and Computation 18(3), 1059-1076. doi:10.1080/03610918908812806
        Meyer, Musco, Musco, Woodruff (2021). Hutch++: optimal stochastic trace estimation. Symposium on Simplicity in
        Algorithms, 142-155. doi:10.1137/1.9781611976496.16
        Song, Garg, Shi, Ermon (2019). Sliced score matching: a scalable approach to density and score estimation.
        Uncertainty in Artificial Intelligence 115, 574-584. doi:10.48550/arXiv.1905.07088
    """

    num_probes: int = eqx.field(static=True, default=1)
    probe: str = eqx.field(static=True, default="rademacher")
    sketch_size: int = eqx.field(static=True, default=0, kw_only=True)
    comparable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """At least one probe, of a known law."""
        check_count("num_probes", self.num_probes)
        check_count("sketch_size", self.sketch_size, minimum=0)
        check_probe(self.probe)

    def evaluate(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Float[Array, " n"], Metrics]:
        """One loss per row, with its own probes; no metrics."""
        x, condition = self.split_batch(model, batch)
        energy, keys = energy_of(model), jax.random.split(key, x.shape[0])

        def event_loss(x: Array, condition: Array | None, key: Array) -> Scalar:
            value, push = jax.linearize(lambda x: score(energy, x, condition), x)
            return jnp.sum(value**2) / 2 + self._trace(push, x, key)

        return jax.vmap(event_loss)(x, condition, keys), {}

    def _trace(self, push: Callable[[Array], Array], x: Array, key: Array) -> Scalar:
        """The trace of the linear map `push`, which is symmetric."""

        def curvature(direction: Array) -> Array:
            return jnp.sum(direction * push(direction))

        probe_key, sketch_key = jax.random.split(key) if self.sketch_size else (key, None)
        probes = draw_directions(self.probe, x, self.num_probes, key=probe_key)
        if sketch_key is None:
            return jnp.mean(jax.vmap(curvature)(probes))
        sketch = jax.vmap(push)(draw_directions(self.probe, x, self.sketch_size, key=sketch_key))
        # The expectation is the same for every Q: its derivative in the parameters would be noise.
        columns = jax.lax.stop_gradient(jnp.linalg.qr(sketch.reshape(self.sketch_size, -1).T)[0])
        flat = probes.reshape(self.num_probes, -1)
        rest = (flat - (flat @ columns) @ columns.T).reshape(probes.shape)
        return jnp.sum(jax.vmap(curvature)(columns.T.reshape(-1, *x.shape))) + jnp.mean(jax.vmap(curvature)(rest))
