"""Held-out data: the value that decides which parameters are kept, and when to stop."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ebm_ppl._checks import check_count
from ebm_ppl._types import Scalar
from ebm_ppl.objectives import AbstractObjective, Batch


class Validation(NamedTuple):
    """What is evaluated every `every` steps: always the same data with the same key, so that values compare."""

    objective: AbstractObjective
    batch: Batch
    state: Any
    key: Array
    every: Int[Array, ""]
    patience: Int[Array, ""]
    batch_size: int


class Best(NamedTuple):
    """The parameters of lowest validation loss, the step they are from (0: none yet), and failures to improve since."""

    params: Any
    loss: Float[Array, ""]
    step: Int[Array, ""]
    failures: Int[Array, ""]


def no_best(params: Any) -> Best:
    """Before the first validation."""
    zero = jnp.zeros((), jnp.int32)
    return Best(params, jnp.asarray(jnp.inf, jax.tree.leaves(params)[0].dtype), zero, zero)


def validation_loss(validation: Validation, model: Any) -> Scalar:
    """Mean over the held-out rows, taken in batches so that they need not fit beside each other."""
    num_rows = jax.tree.leaves(validation.batch)[0].shape[0]
    size = min(validation.batch_size, num_rows)
    full, rest = divmod(num_rows, size)

    def mean(part: tuple[Batch, Array]) -> Scalar:
        rows, index = part
        key = jax.random.fold_in(validation.key, index)
        return validation.objective(model, validation.state, rows, key=key)[0]

    parts = jax.tree.map(lambda rows: rows[: full * size].reshape(full, size, *rows.shape[1:]), validation.batch)
    total = jnp.sum(jax.lax.map(mean, (parts, jnp.arange(full)))) * size
    if rest:
        tail = jax.tree.map(lambda rows: rows[full * size :], validation.batch)
        total += mean((tail, jnp.asarray(full))) * rest
    return total / num_rows


def update_best(validation: Validation, best: Best, params: Any, static: Any, step: Array) -> tuple[Best, Scalar]:
    """`best` after the parameters of this step were tried, and their validation loss. NaN is no improvement."""
    loss = validation_loss(validation, eqx.combine(params, static)).astype(best.loss.dtype)
    better = loss < best.loss
    kept = Best(params, loss, step, jnp.zeros_like(best.failures))
    failed = best._replace(failures=best.failures + 1)
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), kept, failed), loss


def is_exhausted(validation: Validation | None, best: Best | None) -> Array:
    """Whether patience has run out."""
    if validation is None or best is None:
        return jnp.zeros((), bool)
    return best.failures >= validation.patience


def check_validation(
    validation: Any, judge: AbstractObjective, validate_every: Any, patience: Any
) -> tuple[int | None, int | None]:
    """`validate_every` and `patience` as numbers, where there is something to validate and values that compare.

    Raises:
        ValueError: if a number is out of range, a setting is given without `validation`, or the objective's values do
            not compare.
    """
    if validation is None:
        for name, value in (("validate_every", validate_every), ("patience", patience)):
            if value is not None:
                raise ValueError(f"`{name}` needs `validation`: a fraction such as 0.1, or held-out data.")
        return None, None
    if not judge.comparable:
        raise ValueError(
            f"values of `{type(judge).__name__}` do not compare between steps, so neither the best parameters nor a "
            "time to stop can be read off them: pass a `validation_objective` whose values do, such as "
            "ebm.objectives.DenoisingScoreMatching(0.1), or leave out `validation` and `patience`."
        )
    every = None if validate_every is None else check_count("validate_every", validate_every)
    return every, None if patience is None else check_count("patience", patience)


def split(batch: Batch, fraction: Any, key: Array) -> tuple[Batch, Batch]:
    """Rows for training and rows held out, at random; both in their old order."""
    num_rows = jax.tree.leaves(batch)[0].shape[0]
    if isinstance(fraction, bool) or not 0 < fraction < 1:
        raise ValueError(f"`validation` must be a fraction between 0 and 1, or data; got {fraction!r}.")
    held_out = round(float(fraction) * num_rows)
    if not 0 < held_out < num_rows:
        raise ValueError(f"`validation` = {fraction!r} of {num_rows} data leaves {held_out} to validate: none or all.")
    order = np.asarray(jax.random.permutation(key, num_rows))
    rest, chosen = np.sort(order[held_out:]), np.sort(order[:held_out])
    return jax.tree.map(lambda rows: rows[rest], batch), jax.tree.map(lambda rows: rows[chosen], batch)
