"""Flow-contrastive estimation: an energy and a flow, each other's opponent."""

import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from flowjax.distributions import AbstractDistribution, VmapMixture
from jaxtyping import Array, Float, Int

from ebm_ppl._checks import check_count, check_key
from ebm_ppl._types import PRNGKey, Scalar
from ebm_ppl.energies import AbstractEnergy, ShiftedEnergy
from ebm_ppl.energies._parameters import cast_floating
from ebm_ppl.errors import EnergyShapeError
from ebm_ppl.objectives._base import AbstractObjective, Batch, Metrics
from ebm_ppl.objectives._noise_contrastive import check_constant


class Players(NamedTuple):
    """Who plays: the energy would tell data from draws of the flow, the flow would not have them told apart."""

    energy: AbstractEnergy
    flow: AbstractDistribution


class FlowContrastive(AbstractObjective[Int[Array, ""]]):
    r"""Flow-contrastive estimation (FCE): noise-contrastive estimation whose noise is a flow that learns as well.

        V = E_x softplus(-G(x)) + noise_ratio * E_y softplus(G(y)),   x ~ data, y ~ flow
        G(u) = -E(u) - log q(u) - log(noise_ratio),                   q the density of the flow
        energy: minimise V;   flow: maximise V

    The model is the pair `(energy, flow)`; `fit` returns both, trained, as `result.model`. The energy's step is that
    of `NoiseContrastive`, log Z included. The flow's goes through its reparametrised draws; against an energy that has
    become the data's, it reduces the Jensen-Shannon divergence between flow and data (noise_ratio 1). So the noise
    follows the data, which is what `NoiseContrastive` with fixed noise lacks in more than a few dimensions or between
    far modes. Where the flow still has no mass the energy is not told anything: start from a flow that is as wide as
    the data, or was fitted to them (`flowjax.train.fit_to_data`).

    The loss is V; its gradient in the flow's parameters is returned with its sign turned, so that one optimiser
    *minimises* for both. Two learning rates: `ebm.training.two_player_optimizer`, e.g. with
    `optax.adam(1e-3)` for the energy and `optax.adam(3e-4)` for the flow. At a saddle point V is neither small nor
    large: it cannot be compared between steps. Compare `flow_negative_log_likelihood`, or log densities on held-out
    data, or look at `accuracy`: near .5 neither player has anything left to learn from the other.

    Args:
        noise_ratio: draws of the flow per datum, >= 1.
        alternation: `(energy_steps, flow_steps)`: the energy learns for that many steps, then the flow, in turn; None:
            both at every step. The player who rests has gradient zero, under which Adam goes on from momentum alone;
            `two_player_optimizer` lets it rest.
        self_normalized: the energy owns its constant without a `ShiftedEnergy`, or is known to be normalised.

    Returns:
        `loss(model, batch, *, key)`, in nats per datum; batch `(n, *event_shape)` or `(data, condition)`. It is
        2 log 2 where data, energy and flow agree (noise_ratio 1). A flow with a `cond_shape` is given the energy's
        condition. Metrics: `accuracy` (share of data and draws told apart), `flow_negative_log_likelihood` (of the
        data, nats) and, for a `ShiftedEnergy`, `log_normalizer`.

    Raises:
        ValueError: if `noise_ratio` or an entry of `alternation` is not a count >= 1.
        TypeError: if the model is not the pair of an energy and a FlowJAX distribution.
        NotImplementedError: if the flow holds a mixture, whose draws are not differentiable in its weights.
        MissingLogNormalizerError: if the energy has no constant to hold log Z.
        EnergyShapeError: if the flow's events or conditions are not those of the energy.

    Example:
        >>> import jax, jax.numpy as jnp, optax, ebm_ppl as ebm
        >>> from flowjax.distributions import Normal
        >>> data = 2 + jax.random.normal(jax.random.key(0), (1000, 1))
        >>> energy = ebm.ShiftedEnergy(ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1)))
        >>> optimizer = ebm.training.two_player_optimizer(optax.adam(0.02), optax.adam(0.01))
        >>> result = ebm.fit((energy, Normal(jnp.zeros(1), 2.0)), data, ebm.objectives.FlowContrastive(),
        ...                  key=jax.random.key(1), optimizer=optimizer, num_steps=500, progress_bar=False)
        >>> energy, flow = result.model
        >>> bool(jnp.abs(energy.energy.mean[0] - 2) < 0.3), bool(jnp.abs(flow.bijection.loc[0] - 2) < 0.3)
        (True, True)

    References:
        Gao, Nijkamp, Kingma, Xu, Dai, Wu (2020). Flow contrastive estimation of energy-based models. Computer Vision
        and Pattern Recognition, 7518-7528. doi:10.1109/CVPR42600.2020.00754
        Gutmann, Hyvärinen (2012). Noise-contrastive estimation of unnormalized statistical models, with applications
        to natural image statistics. Journal of Machine Learning Research 13, 307-361.
        https://jmlr.org/papers/v13/gutmann12a.html
    """

    noise_ratio: int = eqx.field(static=True, default=1)
    alternation: tuple[int, int] | None = eqx.field(static=True, default=None, kw_only=True)
    self_normalized: bool = eqx.field(static=True, default=False, kw_only=True)
    comparable: ClassVar[bool] = False

    def __check_init__(self) -> None:
        """At least one draw per datum, and turns of at least one step."""
        check_count("noise_ratio", self.noise_ratio)
        if self.alternation is not None:
            if len(self.alternation) != 2:
                raise ValueError(f"`alternation` must be (energy_steps, flow_steps); got {self.alternation}.")
            for name, steps in zip(("energy_steps", "flow_steps"), self.alternation, strict=True):
                check_count(f"{name}` of `alternation", steps)

    def init(self, model: Any, batch: Batch, *, key: PRNGKey) -> Int[Array, ""]:
        """No steps taken yet; a model that is not a pair that fits together is refused."""
        players = _players(model, self_normalized=self.self_normalized)
        self.split_batch(players.energy, batch)
        return jnp.zeros((), jnp.int32)

    def __call__(
        self, model: Any, state: Int[Array, ""], batch: Batch, *, key: PRNGKey
    ) -> tuple[Scalar, tuple[Int[Array, ""], Metrics]]:
        """V of one mini-batch, whose gradient is the energy's descent and the flow's ascent; steps taken; metrics."""
        players = _players(model, self_normalized=self.self_normalized)
        x, condition = self.split_batch(players.energy, batch)
        energy_turn, flow_turn = self._turns(state)
        learning = Players(scale_gradient(players.energy, energy_turn), scale_gradient(players.flow, -flow_turn))
        keys = jax.random.split(check_key(key), x.shape[0])
        rows = jax.vmap(lambda x, condition, key: self._row(learning, x, condition, key))
        losses, right, surprise = rows(x, condition, keys)
        metrics = {"accuracy": jnp.mean(right), "flow_negative_log_likelihood": jnp.mean(surprise)}
        if isinstance(players.energy, ShiftedEnergy):
            metrics["log_normalizer"] = players.energy.log_normalizer
        return jnp.mean(losses), (state + 1, metrics)

    def _turns(self, step: Int[Array, ""]) -> tuple[Scalar, Scalar]:
        """1 for a player who learns in this step, 0 for one who rests."""
        if self.alternation is None:
            return jnp.ones(()), jnp.ones(())
        energy_turn = (step % sum(self.alternation) < self.alternation[0]).astype(jnp.result_type(float))
        return energy_turn, 1 - energy_turn

    def _row(
        self, players: Players, x: Float[Array, "..."], condition: Array | None, key: Array
    ) -> tuple[Scalar, Scalar, Scalar]:
        """Loss of one datum against its own draws, the share told apart, and -log q(x)."""
        energy, flow = players
        told = () if flow.cond_shape is None else (condition,)
        keys = jax.random.split(key, self.noise_ratio)
        draws, log_noise = jax.vmap(lambda key: flow.sample_and_log_prob(key, (), *told))(keys)
        draws, log_noise = draws.astype(x.dtype), log_noise.astype(x.dtype)
        log_flow = flow.log_prob(x, *told).astype(x.dtype)
        offset = math.log(self.noise_ratio)
        of_the_datum = -energy(x, condition) - log_flow - offset
        of_the_draws = -jax.vmap(lambda y: energy(y, condition))(draws) - log_noise - offset
        of_the_truth = jnp.concatenate([of_the_datum[None], -of_the_draws])
        return jnp.sum(jax.nn.softplus(-of_the_truth)), jnp.mean(of_the_truth > 0, dtype=x.dtype), -log_flow


def scale_gradient(tree: Any, scale: Scalar) -> Any:
    """`tree` itself, through which gradients pass multiplied by `scale`: -1 makes a descent an ascent."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda leaf: _scaled(leaf, scale), arrays), rest)


@jax.custom_jvp
def _scaled(leaf: Array, scale: Array) -> Array:
    return leaf


@_scaled.defjvp
def _scaled_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    leaf, scale = primals
    return leaf, scale.astype(leaf.dtype) * tangents[0]


def _players(model: Any, *, self_normalized: bool) -> Players:
    """The pair, checked; the flow in JAX's default dtype, in which FlowJAX draws and evaluates."""
    if not (isinstance(model, (tuple, list)) and len(model) == 2 and isinstance(model[0], AbstractEnergy)):
        raise TypeError(f"`model` must be the pair (energy, flow); got {_names(model)}.")
    energy, flow = model
    if not isinstance(flow, AbstractDistribution):
        raise TypeError(
            f"the flow must be a FlowJAX distribution, e.g. flowjax.flows.coupling_flow; got {type(flow).__name__}."
        )
    nodes = jax.tree.leaves(flow, is_leaf=lambda node: isinstance(node, VmapMixture))
    if any(isinstance(node, VmapMixture) for node in nodes):
        raise NotImplementedError(
            "FlowContrastive differentiates the flow's draws, and those of a VmapMixture have no derivative in its "
            "weights: use one flow, or the mixture as fixed noise with NoiseContrastive."
        )
    if flow.shape != energy.event_shape:
        raise EnergyShapeError(
            f"the flow's events must have shape {energy.event_shape}, the energy's; got {flow.shape}."
        )
    if flow.cond_shape not in (None, energy.condition_shape):
        raise EnergyShapeError(
            f"the flow's condition must have shape {energy.condition_shape}, the energy's; got {flow.cond_shape}."
        )
    check_constant(energy, "FlowContrastive", self_normalized=self_normalized)
    return Players(energy, cast_floating(flow, jnp.result_type(float)))


def _names(model: Any) -> str:
    if isinstance(model, (tuple, list)):
        return f"({', '.join(type(part).__name__ for part in model)})"
    return type(model).__name__
