"""Gibbs sampling of binary coordinates."""

from typing import Any, ClassVar, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._types import LogDensityFn
from ebm_ppl.energies._parameters import as_positive
from ebm_ppl.kernels._base import AbstractKernel, is_nonfinite


class BinaryState(NamedTuple):
    """Where the chain is, and its log density."""

    position: Array
    logdensity: Array


class BinaryInfo(NamedTuple):
    """What a human needs to know of one sweep."""

    nonfinite_proposal: Array
    num_evaluations: Array


class BinaryGibbs(AbstractKernel):
    r"""Deterministic-scan Gibbs sampling where every coordinate is `low` or `high`: Ising models, binary fields.

        for i = 1 ... d:   x_i <- high  with probability  1 / (1 + exp(E(x; x_i = high) - E(x; x_i = low)))

    One transition is one sweep: 2 d energies, no gradient, no rejection. Every single update satisfies detailed
    balance, the sweep leaves exp(-E) invariant without it. Start anywhere: coordinates become binary as they are
    swept.

    Args:
        step_size: there is none; the field is kept at 1 so that all kernels look alike.
        low: the lower value.
        high: the upper value.

    Raises:
        ValueError: if `low` is not below `high`.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> pair = ebm.FunctionEnergy(lambda s: -s[0] * s[1] / 2, (2,))                 # two coupled spins
        >>> draws = ebm.sample(pair, ebm.kernels.BinaryGibbs(), key=jax.random.key(0), progress_bar=False)
        >>> agree = (draws.positions[..., 0] == draws.positions[..., 1]).mean()
        >>> bool(abs(agree - 0.731) < 0.03)                                             # 1 / (1 + exp(-1))
        True

    References:
        Geman, Geman (1984). Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images.
        IEEE Transactions on Pattern Analysis and Machine Intelligence 6, 721-741. doi:10.1109/TPAMI.1984.4767596
    """

    step_size: float | Float[Array, "..."] = 1.0
    low: float = -1.0
    high: float = 1.0
    target_acceptance_rate: ClassVar[float | None] = None
    reversible: ClassVar[bool] = False
    uses_gradient: ClassVar[bool] = False

    def __check_init__(self) -> None:
        """Two values, in order."""
        as_positive("high - low", self.high - self.low, 0)

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The sweep for this log density."""

        def init(position: Any, rng_key: Any = None) -> Any:
            return BinaryState(position, jnp.asarray(logdensity_fn(position)))

        def step(rng_key: Array, state: Any) -> Any:
            shape, dtype = state.position.shape, state.position.dtype
            uniform = jax.random.uniform(rng_key, (state.position.size,), dtype)
            values = jnp.asarray(self.low, dtype), jnp.asarray(self.high, dtype)

            def update(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                flat, _, nonfinite = carry
                low, high = (flat.at[i].set(value) for value in values)
                at_low, at_high = (jnp.asarray(logdensity_fn(x.reshape(shape))) for x in (low, high))
                nonfinite |= is_nonfinite(at_low) | is_nonfinite(at_high)
                # A NaN compares False: the coordinate becomes `low`, and the fault is on record.
                is_high = uniform[i] < jax.nn.sigmoid(at_high - at_low).astype(dtype)
                return jnp.where(is_high, high, low), jnp.where(is_high, at_high, at_low), nonfinite

            start = (state.position.ravel(), state.logdensity, jnp.zeros((), bool))
            flat, logdensity, nonfinite = jax.lax.fori_loop(0, len(uniform), update, start)
            evaluations = jnp.asarray(2 * len(uniform), jnp.int32)
            return BinaryState(flat.reshape(shape), logdensity), BinaryInfo(nonfinite, evaluations)

        return blackjax.base.SamplingAlgorithm(init, step)

    def stats(self, state: BinaryState, info: BinaryInfo) -> dict[str, Array]:
        """`diverging nonfinite_proposal n_steps`; `n_steps` counts energies."""
        return {
            "diverging": jnp.zeros_like(info.nonfinite_proposal),
            "nonfinite_proposal": info.nonfinite_proposal,
            "n_steps": info.num_evaluations,
        }
