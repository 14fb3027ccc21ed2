"""The change of variables that learns scales and a few directions, from draws and gradients."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.metric_recipes import REGISTRY
from jaxtyping import Array, Bool, Float, Int

from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.sampling._fisher import FisherDense
from ebm_ppl.sampling._preconditioners import PRECONDITIONERS, AbstractPreconditioner, Dense, Diagonal

RANK = 10  # directions beside the coordinates; BlackJAX's and nutpie's number
HISTORY = 256  # draws of a window that are remembered, per chain: bounds memory at 2 x 256 x d numbers
POOLED_HISTORY = 4096  # the same for all chains together, where they learn together
PRIOR_DRAWS = 0.1  # weight of "no correlation" against the draws; nutpie's 1e-5 is beyond float32


class History(NamedTuple):
    """The last draws of a window and the gradients of the log density there, in the user's coordinates."""

    positions: Float[Array, "row size"]
    gradients: Float[Array, "row size"]
    seen: Int[Array, ""]  # draws so far; rows are overwritten in turn once all are in use


class LowRank(AbstractPreconditioner):
    r"""x = diag(scale) (I + U (Lambda^1/2 - I) U') z with `directions` U of orthonormal columns.

    Where z ~ N(0, I), x has covariance diag(scale) (I + U (Lambda - I) U') diag(scale). Scales, directions and
    eigenvalues are those of least Fisher divergence (`blackjax.adaptation`, after nutpie): from draws *and* gradients,
    because on a normal target those two together tell the covariance exactly, however short the window.

    References:
        Seyboldt, Carlson, Carpenter (2026). Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence.
        arXiv:2603.18845
    """

    _scale: Float[Array, "..."]
    directions: Float[Array, "size rank"]
    eigenvalues: Float[Array, " rank"]

    def to_user(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """The image x = T z."""
        return self._scale * self._stretch(z.ravel(), jnp.sqrt(self.eigenvalues)).reshape(z.shape)

    def to_whitened(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The preimage z = T^-1 x."""
        return self._stretch((x / self._scale).ravel(), 1 / jnp.sqrt(self.eigenvalues)).reshape(x.shape)

    @property
    def scale(self) -> Float[Array, "..."]:
        """Standard deviation of every coordinate of x where z ~ N(0, I)."""
        spread = 1 + jnp.sum(self.directions**2 * (self.eigenvalues - 1)[None, :], axis=1)
        return self._scale * jnp.sqrt(spread).reshape(self._scale.shape)

    def start_moments(self) -> History:
        """No draws yet."""
        rows = jnp.zeros((HISTORY, self._scale.size), self._scale.dtype)
        return History(rows, rows, jnp.zeros((), jnp.int32))

    def observe(self, moments: Any, x: Array, gradient: Array | None, wanted: Bool[Array, ""]) -> History:
        """Remember x and the gradient there, `gradient` being that with respect to z, where `wanted`."""
        if gradient is None:
            raise TypeError("`precondition='low_rank'` needs a kernel whose state has a field `logdensity_grad`.")
        row = moments.seen % len(moments.positions)
        # grad_z = T' grad_x, and T = diag(scale) S with S symmetric
        back = self._stretch(jnp.ravel(gradient), 1 / jnp.sqrt(self.eigenvalues)) / self._scale.ravel()

        def write(rows: Array, new: Array) -> Array:
            return rows.at[row].set(jnp.where(wanted, new, rows[row]))

        positions, gradients = write(moments.positions, x.ravel()), write(moments.gradients, back)
        return History(positions, gradients, moments.seen + wanted.astype(jnp.int32))

    def learn_from(self, moments: Any) -> "LowRank":
        """The map learnt from a window; where a coordinate or its gradient did not vary, the map stays as it is."""
        dtype, size = self._scale.dtype, self._scale.size
        recipe = dataclasses.replace(REGISTRY["fisher_low_rank"], max_rank=RANK, gamma=PRIOR_DRAWS)
        core = recipe.build_core(buffer_size=len(moments.positions))
        seen = jnp.minimum(moments.seen, len(moments.positions))
        with jax.numpy_dtype_promotion("standard"):  # BlackJAX mixes integers, bools and floats
            state = core.init(size)._replace(
                draws_buffer=moments.positions, grads_buffer=moments.gradients, buffer_idx=seen
            )
            metric: Any = core.final(state).inverse_mass_matrix
        valid = (jnp.arange(len(moments.positions), dtype=seen.dtype) < seen)[:, None]
        moved = _varies(moments.positions, valid) & _varies(moments.gradients, valid)
        usable = moved & jnp.all(jnp.isfinite(metric.U)) & jnp.all(jnp.isfinite(metric.lam)) & jnp.all(metric.lam > 0)
        new = LowRank(metric.sigma.reshape(self._scale.shape), metric.U, metric.lam)
        return jax.tree.map(lambda new, old: jnp.where(usable, new.astype(dtype), old), new, self)

    def pool(self, moments: Any) -> History:
        """Draws of all chains as one history; all have seen equally many."""
        chains, rows, size = moments.positions.shape
        share = min(rows, max(1, POOLED_HISTORY // chains))

        def together(rows: Array) -> Array:
            return jnp.swapaxes(rows[:, :share], 0, 1).reshape(share * chains, size)

        seen = jnp.minimum(moments.seen[0], share) * chains
        return History(together(moments.positions), together(moments.gradients), seen)

    def _stretch(self, flat: Array, factors: Array) -> Array:
        """(I + U (diag(factors) - I) U') flat."""
        return flat + self.directions @ ((factors - 1) * (self.directions.T @ flat))


def initial_preconditioner(
    name: str, position: Float[Array, "..."], *, uses_gradient: bool = True
) -> AbstractPreconditioner:
    """The identity map, in the form that `name` learns."""
    ones, dtype = jnp.ones_like(position), position.dtype
    if name == "dense":
        return (FisherDense if uses_gradient else Dense)(ones, jnp.eye(position.size, dtype=dtype))
    if name == "low_rank":
        return LowRank(ones, jnp.zeros((position.size, RANK), dtype), jnp.ones(RANK, dtype))
    return Diagonal(ones)


def check_precondition(precondition: object, kernel: AbstractKernel) -> None:
    """Refuse an unknown name, and directions learnt from gradients for a kernel that computes none."""
    if precondition not in PRECONDITIONERS:
        raise ValueError(f"`precondition` must be one of {PRECONDITIONERS}; got {precondition!r}.")
    if precondition == "low_rank" and not kernel.uses_gradient:
        raise ValueError(
            f"`precondition='low_rank'` learns from gradients, and {type(kernel).__name__} computes none: "
            "use 'diagonal' or 'dense'."
        )


def _varies(rows: Array, valid: Array) -> Array:
    """Whether every column takes more than one value, all of them finite."""
    finite = jnp.all(jnp.isfinite(rows))
    return finite & jnp.all(jnp.any(valid & (rows != rows[:1]), axis=0))
