"""The replay buffer: persistent chains between the steps of training."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ebm_ppl._types import PRNGKey, Scalar


class ReplayBuffer(eqx.Module):
    """Positions of persistent chains, one per slot, and what became of every slot.

    Only positions are kept, never a kernel's state: that would cache the log density of an energy which training has
    changed since. The counters tell whether the buffer does its work: slots that are never drawn, or chains that are
    always young.

    Attributes:
        positions: shape `(slot, *event_shape)`; `(slot, level, *event_shape)` for tempered chains, level 0 the model.
        condition: shape `(slot, *condition_shape)`, the condition that each chain is run at; None where there is none.
        age: transitions of each chain since it was started afresh.
        visits: how often each slot was drawn.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> buffer = ebm.objectives.ReplayBuffer.start(jnp.zeros((4, 2)))
        >>> slots = buffer.draw(2, key=jax.random.key(0))
        >>> buffer = buffer.write(slots, jnp.ones((2, 2)), num_steps=10)
        >>> float(buffer.coverage), float(buffer.mean_age), float(buffer.positions.sum())
        (0.5, 5.0, 4.0)

    References:
        Tieleman (2008). Training restricted Boltzmann machines using approximations to the likelihood gradient.
        International Conference on Machine Learning, 1064-1071. doi:10.1145/1390156.1390290
        Du, Mordatch (2019). Implicit generation and modeling with energy-based models. NeurIPS 32. arXiv:1903.08689
    """

    positions: Float[Array, "slot ..."]
    condition: Float[Array, "slot ..."] | None
    age: Int[Array, " slot"]
    visits: Int[Array, " slot"]

    @staticmethod
    def start(positions: Float[Array, "slot ..."], condition: Float[Array, "slot ..."] | None = None) -> "ReplayBuffer":
        """A buffer of chains that have not moved yet.

        Args:
            positions: shape `(slot, *event_shape)`.
            condition: shape `(slot, *condition_shape)`, or None.
        """
        zeros = jnp.zeros(positions.shape[0], jnp.int32)
        return ReplayBuffer(positions, condition, zeros, zeros)

    def draw(self, count: int, *, key: PRNGKey) -> Int[Array, " count"]:
        """`count` different slots, every subset equally probable.

        Args:
            count: at most the number of slots.
            key: a JAX key.
        """
        return jax.random.permutation(key, self.age.shape[0])[:count]

    def refresh(
        self,
        slots: Int[Array, " count"],
        fresh: Bool[Array, " count"],
        positions: Float[Array, "count ..."],
        condition: Float[Array, "count ..."] | None = None,
    ) -> "ReplayBuffer":
        """The chains of those `slots` that are `fresh` are replaced by new ones, of age 0.

        Args:
            slots: from `draw`.
            fresh: which of them start afresh.
            positions: where those start.
            condition: the condition they are run at, where the buffer has conditions.
        """

        def replace(old: Array, new: Array) -> Array:
            chosen = fresh.reshape(-1, *(1 for _ in old.shape[1:]))
            return old.at[slots].set(jnp.where(chosen, new, old[slots]), unique_indices=True)

        return dataclasses.replace(
            self,
            positions=replace(self.positions, positions),
            condition=None if self.condition is None or condition is None else replace(self.condition, condition),
            age=replace(self.age, jnp.zeros_like(slots, self.age.dtype)),
        )

    def write(
        self, slots: Int[Array, " count"], positions: Float[Array, "count ..."], num_steps: int
    ) -> "ReplayBuffer":
        """Chains that were drawn go back into their slots.

        Args:
            slots: from `draw`.
            positions: where the chains are now.
            num_steps: transitions they have made.
        """
        return dataclasses.replace(
            self,
            positions=self.positions.at[slots].set(positions, unique_indices=True),
            age=self.age.at[slots].add(num_steps, unique_indices=True),
            visits=self.visits.at[slots].add(1, unique_indices=True),
        )

    @property
    def coverage(self) -> Scalar:
        """Share of slots that were drawn at least once."""
        return jnp.mean(self.visits > 0, dtype=self.positions.dtype)

    @property
    def mean_age(self) -> Scalar:
        """Transitions since the start of a chain, mean over the slots."""
        return jnp.mean(self.age, dtype=self.positions.dtype)
