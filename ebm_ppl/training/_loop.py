"""The device side of `fit`: one compiled program that takes any number of steps, mini-batches included."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from ebm_ppl._types import Scalar
from ebm_ppl.objectives import AbstractObjective

MAX_CHUNK = 4096  # steps whose metrics one chunk has room for; how many it takes is decided at run time


class Setup(NamedTuple):
    """What stays the same over the steps."""

    static: Any
    objective: AbstractObjective
    optimizer: optax.GradientTransformation
    data: Any
    shuffle_key: Array
    step_key: Array
    ema_decay: Array | None


class TrainState(NamedTuple):
    """What one step hands to the next. `step` counts those taken."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    objective_state: Any
    average: Any


class Chunk(NamedTuple):
    """The state after a chunk, whether each of `term_names` was finite at its last step, and metrics by step."""

    state: TrainState
    finite: Bool[Array, " term"]
    records: dict[str, Array]


@eqx.filter_jit
def start(optimizer: optax.GradientTransformation, params: Any, objective_state: Any, *, average: bool) -> TrainState:
    """The state before the first step."""
    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimizer.init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, objective_state, params if average else None)


@eqx.filter_jit
def advance(setup: Setup, state: TrainState, stop: Int[Array, ""], *, batch_size: int) -> Chunk:
    """Steps `state.step` to `stop` (at most `MAX_CHUNK` of them), ending before the first that is not finite.

    Every epoch is a permutation of the rows, cut into batches; the rows left over sit this epoch out. Permutation and
    noise depend on the epoch and the step only, never on where a chunk begins.
    """
    first = state.step
    num_rows = jax.tree.leaves(setup.data)[0].shape[0]
    per_epoch = num_rows // batch_size
    arrays, rest = eqx.partition(state, eqx.is_array)

    def take_step(order: Array, carry: Chunk) -> Chunk:
        state = eqx.combine(carry.state, rest)
        rows = jax.lax.dynamic_slice_in_dim(order, state.step % per_epoch * batch_size, batch_size)
        batch = jax.tree.map(lambda column: column.at[rows].get(mode="promise_in_bounds"), setup.data)
        new_state, finite, record = _step(setup, state, batch)
        new_arrays = eqx.filter(new_state, eqx.is_array)
        kept = jax.tree.map(lambda new, old: jnp.where(jnp.all(finite), new, old), new_arrays, carry.state)
        records = {name: carry.records[name].at[state.step - first].set(value) for name, value in record.items()}
        return Chunk(kept, finite, records)

    def take_epoch(carry: Chunk) -> Chunk:
        epoch = carry.state.step // per_epoch
        order = jax.random.permutation(jax.random.fold_in(setup.shuffle_key, epoch), num_rows)
        end = jnp.minimum((epoch + 1) * per_epoch, stop)
        return jax.lax.while_loop(
            lambda carry: (carry.state.step < end) & jnp.all(carry.finite), lambda carry: take_step(order, carry), carry
        )

    first_rows = jax.tree.map(lambda column: column[:batch_size], setup.data)
    _, finite, record = jax.eval_shape(lambda: _step(setup, state, first_rows))
    records = {name: jnp.zeros(MAX_CHUNK, value.dtype) for name, value in record.items()}
    chunk = jax.lax.while_loop(
        lambda carry: (carry.state.step < stop) & jnp.all(carry.finite),
        take_epoch,
        Chunk(arrays, jnp.ones(finite.shape, bool), records),
    )
    return chunk._replace(state=eqx.combine(chunk.state, rest))


def _step(setup: Setup, state: TrainState, batch: Any) -> tuple[TrainState, Array, dict[str, Scalar]]:
    """One gradient step, which of its terms are finite, and what to record."""
    key = jax.random.fold_in(setup.step_key, state.step)

    def loss_fn(params: Any) -> tuple[Scalar, Any]:
        model = eqx.combine(params, setup.static)
        return setup.objective(model, state.objective_state, batch, key=key)

    (loss, (objective_state, metrics)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    optimizer = optax.with_extra_args_support(setup.optimizer)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes; where the user forbids that, it is for their code
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, value=loss, grad=gradient)
    params = optax.apply_updates(state.params, updates)
    average = _running_average(state.average, params, state.step, setup.ema_decay)
    terms = [loss, *jax.tree.leaves(gradient), *jax.tree.leaves(params)]
    finite = jnp.stack([jnp.all(jnp.isfinite(term)) for term in terms])
    record = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    _check_metrics(record, metrics)
    return TrainState(state.step + 1, params, opt_state, objective_state, average), finite, record | metrics


def term_names(params: Any) -> list[str]:
    """Names of the terms that every step checks, in the order of `Chunk.finite`."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return ["loss", *(f"gradient of model{path}" for path in paths), *(f"parameter model{path}" for path in paths)]


def _running_average(average: Any, params: Any, step: Array, decay: Array | None) -> Any:
    """Exponential average of the iterates, normalised by the weights given so far: the first one is `params`."""
    if decay is None:
        return None
    weight = (1 - decay) / -jnp.expm1((step + 1).astype(decay.dtype) * jnp.log(decay))
    return jax.tree.map(lambda old, new: old + weight.astype(new.dtype) * (new - old), average, params)


def _check_metrics(record: dict[str, Scalar], metrics: dict[str, Scalar]) -> None:
    for name, value in metrics.items():
        if name in record:
            raise ValueError(f"an objective may not report a metric named {name!r}: `fit` does.")
        if jnp.shape(value) != ():
            raise ValueError(f"metrics must be scalars; got {name!r} of shape {jnp.shape(value)}.")
