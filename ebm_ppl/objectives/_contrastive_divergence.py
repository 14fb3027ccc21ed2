"""Contrastive divergence: negatives from short chains that start at the data."""

from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.objectives._base import AbstractObjective, Batch, Metrics, energy_of
from ebm_ppl.objectives._negatives import Advanced, advance, as_kernel, check_kernel, contrast


class ContrastiveDivergence(AbstractObjective[None]):
    r"""Contrastive divergence (CD-k): every datum against where a chain of k = `num_steps` transitions takes it.

        loss = mean E(x) - mean E(x_k),   x_0 = x ~ data,   x_k after num_steps transitions of `kernel`

    Its gradient, in which the negatives x_k are constants, approaches that of the negative log likelihood as the chains
    become long enough to forget the data. Before, it is short of it (on N(0, 1/P) with exact Langevin dynamics by the
    factor 1 - exp(-2 step_size P k)) and need not vanish at the maximum-likelihood estimate, unless the model is right.
    Modes of the model that no chain reaches from the data are not seen. An unadjusted kernel adds a bias of its own
    that longer chains do not remove: with `ULA(h)` on N(0, 1) the fitted precision is (1 - sqrt(1 - 2h))/h for every k.

    The value means nothing, only the gradient does: near 0 the chains are as low in energy as the data, however good
    or bad the model. `standard_errors` and early stopping do not apply.

    Args:
        kernel: any kernel, e.g. `ebm.MALA(0.1)`; its step size is not adapted: watch `acceptance_rate` and choose it
            near the kernel's `target_acceptance_rate`.
        num_steps: k >= 1.

    Returns:
        `loss(model, batch, *, key)`, in nats; batch `(n, *event_shape)` or `(data, condition)`, where every chain keeps
        the condition of its datum. Metrics: `energy_gap` (the loss), `acceptance_rate` where the kernel rejects, and
        `nonfinite_negatives`, the number of chains that met an energy or gradient that is not finite.

    Raises:
        TypeError: if `kernel` is not a kernel.
        ValueError: if `num_steps` is not a count >= 1.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> objective = ebm.objectives.ContrastiveDivergence(ebm.ULA(1e-8), num_steps=2)     # hardly moves
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))
        >>> loss, (_, metrics) = eqx.filter_jit(objective)(energy, None, jnp.ones((16, 2)), key=jax.random.key(0))
        >>> bool(abs(loss) < 1e-3), sorted(metrics)
        (True, ['energy_gap', 'nonfinite_negatives'])

    References:
        Hinton (2002). Training products of experts by minimizing contrastive divergence. Neural Computation 14(8),
        1771-1800. doi:10.1162/089976602760128018
        Carreira-Perpiñán, Hinton (2005). On contrastive divergence learning. Artificial Intelligence and Statistics
        R5, 33-40. https://proceedings.mlr.press/r5/carreira-perpinan05a.html
    """

    kernel: AbstractKernel | Any = eqx.field(converter=as_kernel)
    num_steps: int = eqx.field(static=True, default=1)
    comparable: ClassVar[bool] = False
    any_support: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """A kernel, at least one transition."""
        check_kernel(self.kernel)
        check_count("num_steps", self.num_steps)

    def init(self, model: Any, batch: Batch, *, key: PRNGKey) -> None:
        """No state; a batch of the wrong shape is refused."""
        self.split_batch(model, batch)

    def __call__(self, model: Any, state: None, batch: Batch, *, key: PRNGKey) -> tuple[Scalar, tuple[None, Metrics]]:
        """Mean energy of the data minus that of the negatives, which are constants to the gradient."""
        x, condition = self.split_batch(model, batch)
        energy = energy_of(model)

        def from_datum(x: Array, condition: Array | None, key: Array) -> Advanced:
            return advance(self.kernel, energy, x, condition, self.num_steps, key=key)

        moved = jax.vmap(from_datum)(x, condition, jax.random.split(key, x.shape[0]))
        loss, metrics = contrast(
            energy, (x, condition), (moved.position, condition), moved.acceptance_rate, moved.nonfinite
        )
        return loss, (None, metrics)
