"""Draws of an energy from chains of their own."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey
from ebm_ppl.distributions._sampler import AbstractSampler, Record, check_sampler
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy
from ebm_ppl.kernels import AbstractKernel, Barker
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.sampling import run_chains
from ebm_ppl.sampling._low_rank import check_precondition
from ebm_ppl.sampling._positions import RADIUS

START_TRIES = 16  # uniform draws, one of which is where a chain starts
ABSURD = 50.0  # nats above the best of them: where space is stretched, an ordered triple say, it may be exp(30)


class ChainSampler(AbstractSampler):
    r"""Draws from chains: each starts afresh, warms up, and gives its position after `num_steps` more transitions.

        x_0 ~ uniform(-2, 2),   num_warmup transitions that tune,   num_steps transitions of the tuned kernel -> draw

    The draws are independent, for every one has its own chain; and exact as far as a chain forgets its start in
    `num_warmup + num_steps` transitions: that is the approximation, and `draws` with `ebm.diagnose` looks at it. Chains
    do not cross high barriers: for isolated modes take `TemperedSampler`.

    Cost: `num_warmup + num_steps` transitions for every draw. `EnergyDistribution(...).sample(key, (n,))` and
    `Predictive(..., parallel=True)` run all chains at once, `Predictive` by itself runs one after the other.
    `num_chains=m` is cheaper for large n: m chains give n / m draws each, `num_steps` transitions apart, which are then
    correlated as far as `num_steps` transitions do not forget.

    Args:
        kernel: how to move; by default `Barker()`, which neither steep tails nor a poor step size bring to a stand, as
            they do `MALA`. Its step size is where warm-up starts.
        num_warmup: transitions that tune step size and preconditioner.
        num_steps: transitions from there to the draw, and from one draw to the next of the same chain.
        num_chains: at most so many chains at once; None: one for every draw.
        precondition: `"diagonal"`, `"dense"`, `"low_rank"` or `"none"`, as in `ebm.sample`.

    Raises:
        TypeError: `kernel` is not an `ebm.AbstractKernel`.
        ValueError: a count is out of range, or `precondition` unknown.
        NotImplementedError: when drawing, the support is one that NumPyro has no bijection onto.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, ebm_ppl as ebm
        >>> energy = ebm.FunctionEnergy(lambda x: x - 2 * jnp.log(x), ())              # Gamma(3, 1)
        >>> sampler = ebm.distributions.ChainSampler(num_warmup=100, num_steps=50)
        >>> positive = numpyro.distributions.constraints.positive
        >>> prior = ebm.EnergyDistribution(energy, support=positive, sampler=sampler)
        >>> draws = prior.sample(jax.random.key(0), (400,))
        >>> bool(abs(draws.mean() - 3) < 0.4)
        True

    References:
        Livingstone, Zanella (2022). The Barker proposal: combining robustness and efficiency in gradient-based MCMC.
        Journal of the Royal Statistical Society B 84(2), 496-523. doi:10.1111/rssb.12482
    """

    kernel: AbstractKernel | Any = eqx.field(default_factory=Barker)
    num_warmup: int = 300
    num_steps: int = 100
    num_chains: int | None = None
    precondition: str = "diagonal"

    def __check_init__(self) -> None:
        """Everything in range."""
        check_sampler(self)
        check_count("num_steps", self.num_steps)
        check_precondition(self.precondition, self.kernel)

    @property
    def transitions_per_draw(self) -> int:
        """`num_steps`."""
        return self.num_steps

    def run(self, target: CoordinateEnergy, key: PRNGKey, num_chains: int, num_draws: int, condition: Any) -> Record:
        """The core of `ebm.sample`, from starts found without host code."""
        start_key, key = jax.random.split(key)
        starts = _starts(target, condition, start_key, num_chains=num_chains, gradient=self.kernel.uses_gradient)
        kernel = with_step_size(self.kernel, jnp.asarray(self.kernel.step_size, starts.dtype))
        positions, stats, _ = run_chains(
            target,
            kernel,
            starts,
            key=key,
            num_warmup=self.num_warmup,
            num_samples=num_draws,
            thinning=self.num_steps,
            condition=condition,
            precondition=self.precondition,
        )
        return Record(positions, stats)

    def _tempering(self, record: Record, target: CoordinateEnergy) -> None:
        return None


@eqx.filter_jit
def _starts(target: CoordinateEnergy, condition: Any, key: PRNGKey, *, num_chains: int, gradient: bool) -> Array:
    """For every chain, of some uniform positions the first that is finite, its gradient too, and not absurdly high.

    The least energy of all would be the best start, but chains that start apart tell of modes that one start hides.
    """

    def height(u: Array) -> Array:
        value, slope = jax.value_and_grad(target)(u, condition) if gradient else (target(u, condition), u)
        return jnp.where(jnp.isfinite(value) & jnp.all(jnp.isfinite(slope)), value, jnp.inf)

    def one(key: Array) -> Array:
        tries = jax.random.uniform(key, (START_TRIES, *target.event_shape), minval=-RADIUS, maxval=RADIUS)
        heights = jax.vmap(height)(tries)
        return tries[jnp.argmax(heights <= jnp.min(heights) + ABSURD)]

    return jax.vmap(one)(jax.random.split(key, num_chains))
