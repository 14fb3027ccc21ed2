"""Elliptical slice sampling."""

import math
from typing import Any, ClassVar, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ebm_ppl._checks import check_positive
from ebm_ppl._types import LogDensityFn
from ebm_ppl.energies import Gaussian
from ebm_ppl.energies._parameters import cast_floating
from ebm_ppl.errors import EnergyShapeError
from ebm_ppl.kernels._base import AbstractKernel, is_nonfinite


class EllipticalSliceState(NamedTuple):
    """A point, its log density, and what the base does not explain of it: log p(x) + base(x)."""

    position: Array
    logdensity: Array
    log_likelihood: Array


class EllipticalSliceInfo(NamedTuple):
    """What a human needs to know of one transition."""

    angle: Array
    num_evaluations: Array
    nonfinite_proposal: Array


class _Search(NamedTuple):
    """A proposed point and the bracket of angles that is left."""

    proposal: EllipticalSliceState
    angle: Array
    lower: Array
    upper: Array
    num_evaluations: Array
    nonfinite: Array


class EllipticalSlice(AbstractKernel):
    r"""Elliptical slice sampling: for a target that is a Gaussian `base` times a likelihood; nothing to tune.

        p(x) = exp(-base(x)) L(x);   nu ~ base;   log y = log L(x) + log U(0, 1)
        x' = m + (x - m) cos(theta) + (nu - m) sin(theta),   m the mean of base,
        theta uniform on a bracket of width step_size, placed at random around 0 and shrunk until log L(x') >= log y

    Every transition moves, no gradient is used, and correlations of the base cost nothing: made for latent Gaussian
    models and Gaussian processes. Hand the whole energy to `ebm.sample`; the kernel takes the base off it. Any
    Gaussian leaves any target of the same shape exactly invariant, but one that is narrower than the target, or far
    from it, mixes slowly.

    BlackJAX has this kernel too, but there (1.7) a NaN likelihood is accepted, and where the likelihood is large
    rounding can make the bracket shrink for ever. Here NaN is outside the slice, and counted; and a bracket below
    machine precision ends the search at the current point.

    Args:
        base: the Gaussian factor of the target, with the target's `event_shape`; it need not be normalised.
        step_size: width of the first bracket in radians, in (0, 2 pi]; 2 pi is the whole ellipse. A smaller one saves
            energies where the likelihood is much narrower than the base. Warm-up changes neither it nor the
            coordinates, in which the base is given.

    Raises:
        TypeError: if `base` is not an `ebm.energies.Gaussian`.
        ValueError: if `step_size` is outside (0, 2 pi].
        EnergyShapeError: when sampling, if the target's events have not the shape of the base's.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> prior = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> likelihood = ebm.FunctionEnergy(lambda x: 2.0 * jnp.sum((x - 1.0) ** 2), (2,))  # precision 4 at 1
        >>> kernel = ebm.kernels.EllipticalSlice(prior)
        >>> draws = ebm.sample(ebm.SumEnergy(prior, likelihood), kernel, key=jax.random.key(0), progress_bar=False)
        >>> draws
        Draws: 4 chains x 1000 draws of shape (2,), EllipticalSlice, ok
        >>> bool(abs(draws.positions.mean() - 0.8) < 0.05)             # 4 / (1 + 4)
        True

    References:
        Murray, Adams, MacKay (2010). Elliptical slice sampling. AISTATS, PMLR 9, 541-548. arXiv:1001.0175
        Neal (2003). Slice sampling. Annals of Statistics 31(3), 705-767 (brackets of any width).
        doi:10.1214/aos/1056562461
    """

    base: Gaussian
    step_size: float | Float[Array, "..."] = 2 * math.pi
    target_acceptance_rate: ClassVar[float | None] = None
    uses_gradient: ClassVar[bool] = False

    def __check_init__(self) -> None:
        """A Gaussian base, and a bracket that is not wider than the ellipse."""
        if not isinstance(self.base, Gaussian):
            raise TypeError(f"`base` must be an ebm.energies.Gaussian; got {type(self.base).__name__}.")
        check_positive("step_size", self.step_size)
        # The float32 nearest to 2 pi is a little larger than it.
        if not isinstance(self.step_size, Tracer) and np.any(np.asarray(self.step_size) > np.float32(2 * math.pi)):
            raise ValueError(f"`step_size` must be at most 2 pi, the whole ellipse; got {self.step_size!r}.")

    @property
    def num_coordinates(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The size of the base's events."""
        return math.prod(self.base.event_shape)

    def build(self, logdensity_fn: LogDensityFn) -> blackjax.base.SamplingAlgorithm:
        """The elliptical slice transition for this log density, which includes the base's."""

        def evaluate(position: Array) -> EllipticalSliceState:
            logdensity = logdensity_fn(position)
            base = cast_floating(self.base, logdensity.dtype)
            return EllipticalSliceState(position, logdensity, logdensity + base(position))

        def init(position: Any, rng_key: Array | None = None) -> EllipticalSliceState:
            if jnp.shape(position) != self.base.event_shape:
                raise EnergyShapeError(
                    f"the target's events have shape {jnp.shape(position)}, but `base` is a Gaussian over events of "
                    f"shape {self.base.event_shape}."
                )
            return evaluate(position)

        return blackjax.base.SamplingAlgorithm(init, lambda rng_key, state: self._step(evaluate, rng_key, state))

    def _step(self, evaluate: Any, rng_key: Array, state: Any) -> tuple[EllipticalSliceState, EllipticalSliceInfo]:
        base_key, height_key, bracket_key, angle_key = jax.random.split(rng_key, 4)
        dtype = state.log_likelihood.dtype
        base = cast_floating(self.base, dtype)
        centred, other = state.position - base.mean, base.draw(base_key) - base.mean
        # U in (0, 1], so that the height is finite and a wall never reaches it.
        height = state.log_likelihood + jnp.log1p(-jax.random.uniform(height_key, dtype=dtype))
        width = jnp.asarray(self.step_size, dtype)
        upper = width * jax.random.uniform(bracket_key, dtype=dtype)

        def propose(search: _Search) -> _Search:
            key = jax.random.fold_in(angle_key, search.num_evaluations)
            angle = jax.random.uniform(key, dtype=dtype, minval=search.lower, maxval=search.upper)
            proposal = evaluate(base.mean + centred * jnp.cos(angle) + other * jnp.sin(angle))
            return _Search(
                proposal,
                angle,
                jnp.where(angle < 0, angle, search.lower),
                jnp.where(angle < 0, search.upper, angle),
                search.num_evaluations + 1,
                search.nonfinite | is_nonfinite(proposal.logdensity),
            )

        def outside(search: _Search) -> Array:
            inside = (search.proposal.log_likelihood >= height) & ~is_nonfinite(search.proposal.logdensity)
            return ~inside & (search.upper - search.lower > jnp.finfo(dtype).eps)

        first = propose(_Search(state, upper, upper - width, upper, jnp.zeros((), jnp.int32), jnp.zeros((), bool)))
        last = jax.lax.while_loop(outside, propose, first)
        found = (last.proposal.log_likelihood >= height) & ~is_nonfinite(last.proposal.logdensity)
        new_state = jax.tree.map(lambda new, old: jnp.where(found, new, old), last.proposal, state)
        return new_state, EllipticalSliceInfo(jnp.where(found, last.angle, 0), last.num_evaluations, last.nonfinite)

    def stats(self, state: EllipticalSliceState, info: EllipticalSliceInfo) -> dict[str, Array]:
        """`diverging nonfinite_proposal n_steps`; `n_steps` counts energies. No `acceptance_rate`: it always moves."""
        return {
            "diverging": jnp.zeros_like(info.nonfinite_proposal),
            "nonfinite_proposal": info.nonfinite_proposal,
            "n_steps": info.num_evaluations,
        }
