"""The device side of `fit`: one program that takes any number of steps, mini-batches included; see `_programs`."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from ebm_ppl._types import Scalar
from ebm_ppl.objectives import AbstractObjective
from ebm_ppl.training._mesh import hold, spread
from ebm_ppl.training._validation import Best, Validation, is_exhausted, no_best, update_best

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
    validation: Validation | None = None
    sharding: Any = None


class TrainState(NamedTuple):
    """What one step hands to the next. `step` counts those taken."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    objective_state: Any
    average: Any
    best: Best | None = None


class Chunk(NamedTuple):
    """The state after a chunk, whether each of `term_names` was finite at its last step, and metrics by step."""

    state: TrainState
    finite: Bool[Array, " term"]
    records: dict[str, Array]


def start(
    optimizer: optax.GradientTransformation,
    params: Any,
    objective_state: Any,
    *,
    average: bool,
    validated: bool = False,
) -> TrainState:
    """The state before the first step."""
    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimizer.init(params)
    average_now, best = params if average else None, no_best(params) if validated else None
    state = TrainState(jnp.zeros((), jnp.int32), params, opt_state, objective_state, average_now, best)
    # A weak type, as of `jnp.full(2, 0.1)`, is lost on the way through the loop, which would then be compiled anew.
    return jax.tree.map(
        lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype) if _is_number(leaf) else leaf, state
    )


def _is_number(leaf: Any) -> bool:
    return eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.number)


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
        rows = jax.lax.dynamic_slice_in_dim(order, carry.state.step % per_epoch * batch_size, batch_size)
        batch = jax.tree.map(lambda column: column.at[rows].get(mode="promise_in_bounds"), setup.data)
        return _take_step(setup, rest, first, batch, carry)

    def take_epoch(carry: Chunk) -> Chunk:
        epoch = carry.state.step // per_epoch
        order = jax.random.permutation(jax.random.fold_in(setup.shuffle_key, epoch), num_rows)
        end = jnp.minimum((epoch + 1) * per_epoch, stop)
        return jax.lax.while_loop(
            lambda carry: _goes_on(setup, carry, end), lambda carry: take_step(order, carry), carry
        )

    empty = _empty_chunk(setup, state, jax.tree.map(lambda column: column[:batch_size], setup.data))
    chunk = jax.lax.while_loop(lambda carry: _goes_on(setup, carry, stop), take_epoch, empty._replace(state=arrays))
    return chunk._replace(state=eqx.combine(chunk.state, rest))


def open_chunk(setup: Setup, state: TrainState, batch: Any) -> Chunk:
    """A chunk of no steps yet; `batch` tells shapes only."""
    return _empty_chunk(setup, state, batch)


def advance_by(setup: Setup, chunk: Chunk, first: Int[Array, ""], stop: Int[Array, ""], batch: Any) -> Chunk:
    """One more step of a chunk that began at step `first`, on a batch from outside; none once training has ended."""
    arrays, rest = eqx.partition(chunk.state, eqx.is_array)
    carry = chunk._replace(state=arrays)
    carry = jax.lax.cond(
        _goes_on(setup, carry, stop), lambda: _take_step(setup, rest, first, batch, carry), lambda: carry
    )
    return carry._replace(state=eqx.combine(carry.state, rest))


def _goes_on(setup: Setup, carry: Chunk, stop: Array) -> Array:
    exhausted = is_exhausted(setup.validation, carry.state.best)
    return (carry.state.step < stop) & jnp.all(carry.finite) & ~exhausted


def _empty_chunk(setup: Setup, state: TrainState, batch: Any) -> Chunk:
    _, finite, record = jax.eval_shape(lambda: _step(setup, state, batch))
    records = {name: jnp.zeros(MAX_CHUNK, value.dtype) for name, value in record.items()}
    if state.best is not None:
        records["validation_loss"] = jnp.zeros(MAX_CHUNK, state.best.loss.dtype)
    return Chunk(state, jnp.ones(finite.shape, bool), records)


def _take_step(setup: Setup, rest: Any, first: Array, batch: Any, carry: Chunk) -> Chunk:
    """`carry` one step on, its state the old one if the step was not finite; validated where that is due."""
    state = eqx.combine(carry.state, rest)
    new_state, finite, record = _step(setup, state, spread(batch, setup.sharding))
    good = jnp.all(finite)
    new_arrays = eqx.filter(new_state, eqx.is_array)
    kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), new_arrays, carry.state)
    validation = setup.validation
    if validation is not None and kept.best is not None:
        candidate = kept.params if kept.average is None else kept.average
        kept_best = kept.best
        best, loss = jax.lax.cond(
            good & (kept.step % validation.every == 0),
            lambda: update_best(validation, kept_best, candidate, setup.static, kept.step),
            lambda: (kept_best, jnp.full_like(kept_best.loss, jnp.nan)),
        )
        kept, record = kept._replace(best=best), record | {"validation_loss": loss}
    records = {name: carry.records[name].at[state.step - first].set(value) for name, value in record.items()}
    return Chunk(kept, finite, records)


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
    params = hold(optax.apply_updates(state.params, updates), setup.sharding)
    average = _running_average(state.average, params, state.step, setup.ema_decay)
    terms = [loss, *jax.tree.leaves(gradient), *jax.tree.leaves(params)]
    finite = jnp.stack([jnp.all(jnp.isfinite(term)) for term in terms])
    record = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    _check_metrics(("loss", "gradient_norm", "validation_loss"), metrics)
    new_state = TrainState(state.step + 1, params, opt_state, objective_state, average, state.best)
    return new_state, finite, record | metrics


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


def _check_metrics(reserved: tuple[str, ...], metrics: dict[str, Scalar]) -> None:
    for name, value in metrics.items():
        if name in reserved:
            raise ValueError(f"an objective may not report a metric named {name!r}: `fit` does.")
        if jnp.shape(value) != ():
            raise ValueError(f"metrics must be scalars; got {name!r} of shape {jnp.shape(value)}.")
