"""Stochastic gradient Langevin dynamics."""

from typing import Any, ClassVar

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count, check_positive
from ebm_ppl._types import LogDensityFn
from ebm_ppl.kernels._base import AbstractKernel
from ebm_ppl.kernels._parts import minibatch_density
from ebm_ppl.kernels._unadjusted import UnadjustedInfo, UnadjustedState, take_unless_nonfinite, unadjusted_stats


class SGLD(AbstractKernel):
    r"""Stochastic gradient Langevin dynamics (`blackjax.sgld`): `ULA` with the gradient of a few data, drawn afresh.

        x' = x - step_size * G + sqrt(2 * step_size) * xi,   xi ~ N(0, I),   E G = grad E(x)

    For energies that are sums over many data (`energies.DataSumEnergy`): one step looks at `batch_size` of them.
    Unadjusted, and biased twice: by the step size, as `ULA`, and by the noise of the gradient. Where E has precision p
    and G variance V, the stationary variance is (1 / p) (1 + h V / 2) / (1 - h p / 2), h = `step_size`, instead of 1/p:
    choose h well below 2 / V and 2 / p. The statistic `lp` is the estimate of -E by the same few data.

    Args:
        step_size: h > 0, BlackJAX's convention as above; a text's epsilon (x' = x - epsilon/2 G + sqrt(epsilon) xi) is
            h = epsilon/2. There is no acceptance rate to tune it by: warm-up leaves it alone.
        batch_size: data per step, drawn with replacement, at least 1.

    Raises:
        ValueError: if `step_size` is not positive and finite or `batch_size` is not a positive integer.
        TypeError: when sampling, if the energy is not a `DataSumEnergy`.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> prior = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1))
        >>> term = ebm.FunctionEnergy(lambda x, y: jnp.sum((x - y) ** 2) / 2, (1,), condition_shape=(1,))
        >>> posterior = ebm.energies.DataSumEnergy(prior, term, jnp.ones((99, 1)))           # N(0.99, 0.01)
        >>> draws = ebm.sample(posterior, ebm.kernels.SGLD(1e-3, batch_size=10), key=jax.random.key(0),
        ...                    progress_bar=False)
        >>> bool(abs(draws.positions.mean() - 0.99) < 0.02), draws.settings["adjusted"]
        (True, False)

    References:
        Welling, Teh (2011). Bayesian learning via stochastic gradient Langevin dynamics. ICML, 681-688.
        ISBN 978-1-4503-0619-5
        Vollmer, Zygalakis, Teh (2016). Exploration of the (non-)asymptotic bias and variance of stochastic gradient
        Langevin dynamics. Journal of Machine Learning Research 17(159), 1-48. arXiv:1501.00438
    """

    step_size: float | Float[Array, "..."] = 1e-3
    batch_size: int = eqx.field(static=True, default=32)
    target_acceptance_rate: ClassVar[float | None] = None
    adjusted: ClassVar[bool] = False
    reversible: ClassVar[bool] = False

    def __check_init__(self) -> None:
        """Only a positive step moves, only data give a gradient."""
        check_positive("step_size", self.step_size)
        check_count("batch_size", self.batch_size)

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The transition for this log density, which must know its data; `init` needs a key, for the first batch."""
        kernel: Any = blackjax.sgld.build_kernel()

        def estimate(key: Array, position: Any) -> tuple[Any, Array, Any]:
            density = minibatch_density(logdensity_fn, key, self.batch_size)
            return (position, *jax.value_and_grad(density)(position))

        def init(position: Any, rng_key: Any) -> UnadjustedState:
            return UnadjustedState(*estimate(rng_key, position), diverged=jnp.zeros((), bool))

        def step(rng_key: Array, state: Any) -> Any:
            move_key, batch_key = jax.random.split(rng_key)
            # The estimate at this position was made when it was reached, so that its faults were seen then.
            moved = kernel(move_key, state.position, lambda *_: state.logdensity_grad, None, self.step_size)
            return take_unless_nonfinite(state, estimate(batch_key, moved))

        return blackjax.base.SamplingAlgorithm(init, step)

    def stats(self, state: UnadjustedState, info: UnadjustedInfo) -> dict[str, Array]:
        """`diverging nonfinite_proposal n_steps`; `n_steps` counts gradients of minibatches."""
        return unadjusted_stats(state, info)
