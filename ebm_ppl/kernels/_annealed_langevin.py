"""Annealed Langevin dynamics."""

from typing import Any, ClassVar, Literal, NamedTuple

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc.diffusions import overdamped_langevin
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count, check_positive
from ebm_ppl._types import LogDensityFn
from ebm_ppl.energies._parameters import as_positive, concrete
from ebm_ppl.kernels._base import AbstractKernel
from ebm_ppl.kernels._parts import at_noise_scale
from ebm_ppl.kernels._unadjusted import UnadjustedInfo, take_unless_nonfinite, unadjusted_stats


class AnnealedState(NamedTuple):
    """A Langevin state and how many transitions led to it; log density and gradient are those of the next level."""

    position: Any
    logdensity: Array
    logdensity_grad: Any
    diverged: Array
    transitions: Array
    annealing: Array  # whether the last transition was at another level than the last one


def _as_levels(value: Any) -> Array:
    return as_positive("levels", value, 1)


class AnnealedLangevin(AbstractKernel):
    r"""Annealed Langevin dynamics: unadjusted Langevin down a ladder of noise scales, or of temperatures.

        at level k:   x' = x - h_k * grad E_k(x) + sqrt(2 h_k) * xi,   h_k = step_size * s_k^2 / s_K^2,   xi ~ N(0, I)

    `num_steps` transitions at each of the K levels, from the first to the last, where the chain stays. `over` says
    what a level is: a `"noise_scale"` s_k of a noise-conditioned energy (trained by
    `MultiscaleDenoisingScoreMatching`), E_k(x) = E(x; log s_k); or an `"inverse_temperature"` b_k, E_k = b_k E, with
    s_k^2 = 1 / b_k.

    Every chain anneals once: give `num_warmup >= num_steps * (K - 1)`, so that all draws come from the last level
    (others are flagged `STILL_ANNEALING`), and many chains, because the modes of a chain are settled by then.
    Unadjusted: at the last level the law is that of `ULA` with `step_size`, on the way it lags behind. The steps of the
    first levels are long: where the curvature grows without bound (a quartic energy, say) chains may run away there.

    Args:
        levels: noise scales, strictly descending, or inverse temperatures, strictly ascending; shape `(K,)`, K >= 2.
        step_size: h_K > 0, the step at the last level, BlackJAX's convention. Song & Ermon's
            alpha_k / 2 = epsilon s_k^2 / (2 s_K^2) is h_k: `step_size` = epsilon / 2. Warm-up leaves it alone.
        over: `"noise_scale"` or `"inverse_temperature"`.
        num_steps: transitions per level, at least 1.

    Raises:
        ValueError: if a number is not positive and finite, `levels` not in strict order, or a name unknown.
        TypeError: when sampling over noise scales, if the energy is not conditional on one.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> modes = ebm.energies.GaussianMixture([0.5, 0.5], [-3.0, 3.0], [0.5, 0.5])
        >>> kernel = ebm.kernels.AnnealedLangevin([0.02, 0.2, 1.0], 0.05, over="inverse_temperature")
        >>> draws = ebm.sample(modes, kernel, key=jax.random.key(0), num_chains=100, num_warmup=300, num_samples=1,
        ...                    initial_positions=jnp.full(100, 3.0), progress_bar=False)
        >>> bool(0.3 < (draws.positions < 0).mean() < 0.7)              # all started in the right one
        True

    References:
        Song, Ermon (2019). Generative modeling by estimating gradients of the data distribution. Advances in Neural
        Information Processing Systems 32. arXiv:1907.05600
    """

    levels: Float[Array, " level"] = eqx.field(converter=_as_levels)
    step_size: float | Float[Array, "..."] = 1e-3
    over: Literal["noise_scale", "inverse_temperature"] | Any = eqx.field(static=True, default="noise_scale")
    num_steps: int = eqx.field(static=True, default=100)
    target_acceptance_rate: ClassVar[float | None] = None
    adjusted: ClassVar[bool] = False
    reversible: ClassVar[bool] = False

    def __check_init__(self) -> None:
        """A ladder in order, and steps that move."""
        check_positive("step_size", self.step_size)
        check_count("num_steps", self.num_steps)
        if self.over not in ("noise_scale", "inverse_temperature"):
            raise ValueError(f"`over` must be 'noise_scale' or 'inverse_temperature'; got {self.over!r}.")
        if self.levels.shape[0] < 2:
            raise ValueError(f"`levels` must have at least 2 entries; got {self.levels.shape[0]}: use ebm.ULA.")
        host = concrete(self.levels)
        sign, order = (-1, "descending") if self.over == "noise_scale" else (1, "ascending")
        if host is not None and not np.all(sign * np.diff(host) > 0):
            raise ValueError(f"`levels` must be strictly {order} over {self.over}; got {host}.")

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The annealed transition for this log density, which must know its noise scale where levels are scales."""
        last = self.levels.shape[0] - 1

        def level_at(count: Array) -> Array:
            return jnp.minimum(count // self.num_steps, last)

        def value_and_grad(level: Array) -> Any:
            return jax.value_and_grad(self._density(logdensity_fn, self.levels[level]))

        def init(position: Any, rng_key: Array | None = None) -> AnnealedState:
            zero, false = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
            logdensity, gradient = value_and_grad(zero)(position)
            return AnnealedState(position, logdensity, gradient, false, zero, ~false)

        def step(rng_key: Array, state: Any) -> Any:
            level, following = level_at(state.transitions), level_at(state.transitions + 1)
            propose: Any = overdamped_langevin(value_and_grad(following))
            proposal = propose(rng_key, state[:3], self._step_at(level, state.logdensity.dtype))
            state, info = take_unless_nonfinite(state, tuple(proposal))
            return state._replace(transitions=state.transitions + 1, annealing=level < last), info

        return blackjax.base.SamplingAlgorithm(init, step)

    def stats(self, state: AnnealedState, info: UnadjustedInfo) -> dict[str, Array]:
        """`annealing diverging nonfinite_proposal n_steps`; `annealing`: the transition was above the last level."""
        return unadjusted_stats(state, info) | {"annealing": state.annealing}

    def _density(self, logdensity_fn: LogDensityFn, level: Array) -> LogDensityFn:
        if self.over == "inverse_temperature":
            return lambda x: _times(level, logdensity_fn(x))
        return at_noise_scale(logdensity_fn, level)

    def _step_at(self, level: Array, dtype: Any) -> Array:
        ratio = self.levels / self.levels[-1]
        widths = ratio**2 if self.over == "noise_scale" else 1 / ratio
        return jnp.asarray(self.step_size, dtype) * widths.astype(dtype)[level]


def _times(factor: Array, value: Any) -> Any:
    return factor.astype(value.dtype) * value
