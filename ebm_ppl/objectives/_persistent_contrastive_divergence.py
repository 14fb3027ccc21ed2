"""Persistent contrastive divergence: negatives from chains that go on from step to step."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import AbstractEnergy, TemperedEnergy
from ebm_ppl.energies._parameters import as_parameter, as_positive, concrete
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.objectives._base import AbstractObjective, Batch, Metrics, energy_of
from ebm_ppl.objectives._negatives import Advanced, advance, as_kernel, check_kernel, contrast
from ebm_ppl.objectives._noise import Noise, check_noise
from ebm_ppl.objectives._replay_buffer import ReplayBuffer


def _as_rate(value: Any) -> Array:
    return as_parameter("refresh_rate", value, 0)


def _as_ladder(value: Any) -> Array | None:
    return None if value is None else as_positive("inverse_temperatures", value, 1)


class PersistentContrastiveDivergence(AbstractObjective[ReplayBuffer]):
    r"""Persistent contrastive divergence (PCD): data against chains that are kept in a replay buffer and go on.

        loss = mean E(x) - mean E(x'),   x ~ data,   x' ~ chains drawn from the buffer, num_steps transitions on

    As the model changes little in one step, the chains stay near its law, and few transitions a step suffice: the
    gradient is that of the negative log likelihood as long as the chains mix faster than the model moves. Lower the
    learning rate with time, and average (`fit(..., ema_decay=0.999)`). Every step draws a batch of slots, all equally
    probable, moves their chains, and writes them back into the same slots. The kernel's state is made anew at every
    step, because the energy has changed.

    `refresh_rate` starts chains afresh now and then, which carries them out of modes they would never leave, and biases
    the gradient towards where they start. Tempered chains mix without that bias: with `inverse_temperatures`, every
    slot holds a ladder of replicas of exp(-b E), which exchange their places, and the replica at b = 1 is the negative.

    Of a conditional energy each chain keeps the condition of the datum it was started with, until it is refreshed.

    Args:
        kernel: any kernel, e.g. `ebm.MALA(0.1)`; its step size is not adapted, and the same for all temperatures: watch
            `acceptance_rate` and choose it near the kernel's `target_acceptance_rate`.
        num_steps: transitions of each drawn chain per step, >= 1.
        num_particles: slots of the buffer, >= 1.
        refresh_rate: probability that a drawn chain starts afresh, in [0, 1]. An array field.
        num_negatives: chains drawn per step; as many as the batch has rows by default, at most `num_particles`.
        initial: where chains start: None, at data drawn at random; or a distribution as `NoiseContrastive` takes it.
        inverse_temperatures: ladder b, descending from 1, e.g. `[1.0, 0.7, 0.4]`; each level costs as much.

    Returns:
        `loss(model, batch, *, key)`, in nats, from a fresh buffer; its value means nothing, its gradient does. The
        state is a `ReplayBuffer`: `fit(...).objective_state`. Metrics: `energy_gap` (the loss), `acceptance_rate` where
        the kernel rejects (of the chains at b = 1), `nonfinite_negatives` (chains that met an energy or gradient that
        is not finite), `buffer_age` (transitions since the chains' start, mean over the slots), `buffer_coverage`
        (share of slots drawn at least once) and, with a ladder, `swap_rate`.

    Raises:
        TypeError: if `kernel` is not a kernel, or `initial` no distribution.
        ValueError: if a count is not >= 1, `refresh_rate` is not in [0, 1], `num_negatives` exceeds `num_particles`,
            or `inverse_temperatures` do not descend from 1.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> objective = ebm.objectives.PersistentContrastiveDivergence(ebm.MALA(0.5), num_particles=64)
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))
        >>> buffer = objective.init(energy, jnp.ones((16, 2)), key=jax.random.key(0))
        >>> step = eqx.filter_jit(objective)
        >>> loss, (buffer, metrics) = step(energy, buffer, jnp.ones((16, 2)), key=jax.random.key(1))
        >>> float(metrics["buffer_coverage"]), float(metrics["buffer_age"])
        (0.25, 0.25)

    References:
        Tieleman (2008). Training restricted Boltzmann machines using approximations to the likelihood gradient.
        International Conference on Machine Learning, 1064-1071. doi:10.1145/1390156.1390290
        Desjardins, Courville, Bengio, Vincent, Delalleau (2010). Tempered Markov chain Monte Carlo for training of
        restricted Boltzmann machines. Artificial Intelligence and Statistics 9, 145-152.
        https://proceedings.mlr.press/v9/desjardins10a.html
    """

    kernel: AbstractKernel | Any = eqx.field(converter=as_kernel)
    num_steps: int = eqx.field(static=True, default=1)
    num_particles: int = eqx.field(static=True, default=1000)
    refresh_rate: Float[Array, ""] = eqx.field(converter=_as_rate, default=0.0)
    num_negatives: int | None = eqx.field(static=True, default=None, kw_only=True)
    initial: Any = eqx.field(default=None, kw_only=True)
    inverse_temperatures: Float[Array, " level"] | None = eqx.field(converter=_as_ladder, default=None, kw_only=True)
    comparable: ClassVar[bool] = False
    any_support: ClassVar[bool] = True

    def __check_init__(self) -> None:
        """A kernel, counts that fit each other, a probability, a ladder that begins at the model."""
        check_kernel(self.kernel)
        check_count("num_steps", self.num_steps)
        check_count("num_particles", self.num_particles)
        if self.num_negatives is not None and check_count("num_negatives", self.num_negatives) > self.num_particles:
            raise ValueError(f"`num_negatives` must be at most {self.num_particles}; got {self.num_negatives}.")
        if self.initial is not None:
            check_noise(self.initial, "initial")
        rate = concrete(self.refresh_rate)
        if rate is not None and not 0 <= rate <= 1:
            raise ValueError(f"`refresh_rate` must lie in [0, 1]; got {rate}.")
        ladder = None if self.inverse_temperatures is None else concrete(self.inverse_temperatures)
        if ladder is not None and not (ladder.size and ladder[0] == 1 and (ladder[1:] < ladder[:-1]).all()):
            raise ValueError(f"`inverse_temperatures` must descend strictly, the first being 1; got {ladder}.")

    def init(self, model: Any, batch: Batch, *, key: PRNGKey) -> ReplayBuffer:
        """Chains at their starting points; data are spread over them as evenly as they go."""
        x, condition = self.split_batch(model, batch)
        order_key, start_key = jax.random.split(key)
        rows = jnp.resize(jax.random.permutation(order_key, x.shape[0]), (self.num_particles,))
        condition = None if condition is None else condition[rows]
        return ReplayBuffer.start(self._starts(x, rows, start_key), condition)

    def __call__(
        self, model: Any, state: ReplayBuffer, batch: Batch, *, key: PRNGKey
    ) -> tuple[Scalar, tuple[ReplayBuffer, Metrics]]:
        """Mean energy of the data minus that of the drawn chains, which are constants to the gradient."""
        x, condition = self.split_batch(model, batch)
        energy = energy_of(model)
        slot_key, refresh_key, chain_key = jax.random.split(key, 3)
        count = min(x.shape[0], self.num_particles) if self.num_negatives is None else self.num_negatives
        slots = state.draw(count, key=slot_key)
        state = self._refresh(state, slots, x, condition, refresh_key)
        told = None if state.condition is None else state.condition[slots]

        def go_on(start: Array, condition: Array | None, key: Array) -> tuple[Advanced, Array | None]:
            if self.inverse_temperatures is None:
                return advance(self.kernel, energy, start, condition, self.num_steps, key=key), None
            return self._exchange(energy, start, condition, key)

        moved, swaps = jax.vmap(go_on)(state.positions[slots], told, jax.random.split(chain_key, count))
        state = state.write(slots, moved.position, self.num_steps)
        negatives = moved.position if swaps is None else moved.position[:, 0]
        loss, metrics = contrast(energy, (x, condition), (negatives, told), moved.acceptance_rate, moved.nonfinite)
        metrics |= {"buffer_age": state.mean_age, "buffer_coverage": state.coverage}
        if swaps is not None:
            metrics["swap_rate"] = jnp.mean(swaps, dtype=loss.dtype)
        return loss, (state, metrics)

    def _refresh(
        self, buffer: ReplayBuffer, slots: Array, x: Array, condition: Array | None, key: PRNGKey
    ) -> ReplayBuffer:
        """Some of the drawn chains start afresh."""
        choice_key, row_key, start_key = jax.random.split(key, 3)
        fresh = jax.random.bernoulli(choice_key, self.refresh_rate, slots.shape)
        rows = jax.random.randint(row_key, slots.shape, 0, x.shape[0])
        starts = self._starts(x, rows, start_key)
        return buffer.refresh(slots, fresh, starts, None if condition is None else condition[rows])

    def _starts(self, x: Array, rows: Array, key: PRNGKey) -> Array:
        """Where new chains start: at these rows of the data, or at draws from `initial`; all levels alike."""
        starts = x[rows]
        if self.initial is not None:
            starts = Noise(self.initial, x.shape[1:], "initial").sample(key, rows.shape[0]).astype(x.dtype)
        starts = jax.lax.stop_gradient(starts)
        if self.inverse_temperatures is None:
            return starts
        levels = self.inverse_temperatures.shape[0]
        return jnp.broadcast_to(starts[:, None], (rows.shape[0], levels, *x.shape[1:]))

    def _exchange(
        self, energy: AbstractEnergy, starts: Array, condition: Array | None, key: PRNGKey
    ) -> tuple[Advanced, Array]:
        """One ladder: every replica moves at its own temperature, then neighbours exchange, the hottest pair first."""
        ladder: Any = self.inverse_temperatures
        levels = ladder.shape[0]
        swap_key, chain_key = jax.random.split(key)

        def at_level(start: Array, inverse_temperature: Array, key: Array) -> Advanced:
            tempered = TemperedEnergy(energy, inverse_temperature)
            return advance(self.kernel, tempered, start, condition, self.num_steps, key=key)

        moved = jax.vmap(at_level)(starts, ladder, jax.random.split(chain_key, levels))
        energies = jax.vmap(lambda x: energy(x, condition))(moved.position)
        order, swaps = exchange_order(ladder.astype(energies.dtype), jax.lax.stop_gradient(energies), swap_key)
        rate = None if moved.acceptance_rate is None else moved.acceptance_rate[0]
        return Advanced(moved.position[order], rate, jnp.any(moved.nonfinite)), swaps


def exchange_order(
    inverse_temperatures: Float[Array, " level"], energies: Float[Array, " level"], key: PRNGKey
) -> tuple[Array, Array]:
    """Which replica each level takes after one Metropolis exchange of every pair of neighbours; and which exchanged.

    An exchange of levels i and j is accepted with probability min(1, exp((b_i - b_j)(E_i - E_j))).
    """
    levels = energies.shape[0]
    log_uniforms = jnp.log(jax.random.uniform(key, (levels - 1,), energies.dtype))
    order, swaps = jnp.arange(levels), []
    for cold in reversed(range(levels - 1)):
        pair = jnp.array([cold, cold + 1])
        (b, hot_b), (e, hot_e) = inverse_temperatures[pair], energies[order[pair]]
        swap = log_uniforms[cold] < (b - hot_b) * (e - hot_e)
        order = order.at[pair].set(jnp.where(swap, order[pair[::-1]], order[pair]))
        swaps.append(swap)
    return order, jnp.stack(swaps) if swaps else jnp.zeros(0, bool)
