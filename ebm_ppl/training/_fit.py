"""`fit`: the optimisation loop, seen from the host."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ebm_ppl._checks import check_count, check_key
from ebm_ppl.errors import TrainingDivergedError, warn_problems
from ebm_ppl.objectives import AbstractObjective
from ebm_ppl.training._chunks import Callback, run_chunks
from ebm_ppl.training._inputs import check_batch, partition
from ebm_ppl.training._loop import Setup, start
from ebm_ppl.training._result import FitResult

DEFAULT_OPTIMIZER = optax.adam(1e-3)  # one object: a new one, even if equal, would be compiled anew


def fit(
    model: Any,
    data: Any,
    objective: AbstractObjective,
    *,
    key: Any,
    optimizer: optax.GradientTransformation = DEFAULT_OPTIMIZER,
    num_steps: int = 1000,
    batch_size: int | None = None,
    condition: Any = None,
    trainable: Any = None,
    ema_decay: float | None = None,
    callbacks: Iterable[Callback] = (),
    progress_bar: bool = True,
    strict: bool = False,
) -> FitResult:
    r"""Train a model: minimise an objective over mini-batches with an optax optimiser.

        theta <- theta + optimizer(grad_theta objective(model_theta, batch))        num_steps times

    Each epoch goes through the data in a fresh random order, without replacement, on the device. The loop is one
    compiled program that is called about once a second; between two calls progress is shown, callbacks run and
    Ctrl-C takes effect. The result does not depend on how the steps fall into those calls. A second call with the
    same kinds of arguments compiles nothing: *build the optimiser once* and pass the same object, for optax
    optimisers are closures, and an equal `optax.adam(1e-2)` built anew is another program to JAX. `num_steps`,
    hyperparameters that are arrays, and all array values may change freely.

    Args:
        model: an energy, or a pytree that holds one; its floating arrays are trained.
        data: floating array `(n, *event_shape)`.
        objective: what to minimise, e.g. `ebm.objectives.DenoisingScoreMatching(0.1)`.
        key: a JAX key; the same key gives the same result.
        optimizer: any optax gradient transformation; `optax.adam(1e-3)` by default. Clipping, schedules, weight decay
            and skipping of bad steps (`optax.apply_if_finite`) are its business: nothing of that kind is built in.
        num_steps: number of gradient steps.
        batch_size: events per step, at most n; min(n, 256) by default.
        condition: floating array `(n, *condition_shape)` for a conditional energy, row i belonging to data row i.
        trainable: which leaves to train: a callable leaf -> bool, or a pytree of bools that is a prefix of `model`
            (as for `eqx.partition`). By default all floating arrays.
        ema_decay: if given, `result.model` is the exponential average of the iterates, in (0, 1), e.g. 0.999; weights
            are normalised, so that the start of training is not favoured.
        callbacks: each called as `callback(step, model, metrics)`, about once a second (sooner at the start). An
            exception in one is reported as a warning, once, and training goes on.
        progress_bar: show steps done and the mean loss of the last 100 steps.
        strict: raise `TrainingDivergedError` instead of recording `TRAINING_DIVERGED`.

    Returns:
        A `FitResult`. If loss, gradient or parameters become non-finite, training ends there: `result.model` is the
        last good one, `result.ok` is False, and the problem `TRAINING_DIVERGED` names step and term. After
        Ctrl-C the result so far is returned with the problem `INTERRUPTED`; a second Ctrl-C raises.

    Raises:
        InvalidDataError: if data or condition are empty or not finite (count and first index are named).
        EnergyShapeError: if data or condition have not the shapes that the energy declares.
        EnergyDtypeError: if data or condition are not floating-point.
        NonDifferentiableEnergyError: if JAX cannot trace the energy (it calls NumPy, or needs values in Python).
        KeyArgumentError: if `key` is not one JAX key.
        ValueError: if a setting is out of range, or nothing is trainable.
        TypeError: if `model` holds no energy, or `objective` or `optimizer` is not one.
        TrainingDivergedError: with `strict=True`; carries the result.

    Example:
        >>> import jax, jax.numpy as jnp, optax, ebm_ppl as ebm
        >>> data = 2 + jax.random.normal(jax.random.key(0), (1000, 1))
        >>> energy = ebm.energies.Gaussian(mean=jnp.zeros(1), covariance=jnp.eye(1))
        >>> result = ebm.fit(energy, data, ebm.objectives.DenoisingScoreMatching(0.5), key=jax.random.key(1),
        ...                  optimizer=optax.sgd(0.05), num_steps=300, progress_bar=False)
        >>> result.ok, bool(jnp.abs(result.model.mean[0] - 2) < 0.3)
        (True, True)
    """
    key = check_key(key)
    num_steps = check_count("num_steps", num_steps)
    _check_arguments(objective, optimizer, ema_decay)
    batch = check_batch(model, objective, data, condition)
    num_data = jax.tree.leaves(batch)[0].shape[0]
    batch_size = min(num_data, 256) if batch_size is None else check_count("batch_size", batch_size)
    if batch_size > num_data:
        raise ValueError(f"`batch_size` must be at most the number of data, {num_data}; got {batch_size}.")
    params, static = partition(model, trainable)

    init_key, shuffle_key, step_key = jax.random.split(key, 3)
    objective_state = objective.init(model, batch, key=init_key)
    decay = None if ema_decay is None else jnp.asarray(ema_decay, jnp.result_type(float))
    setup = Setup(static, objective, optimizer, batch, shuffle_key, step_key, decay)
    settings = {
        "model": type(model).__name__,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "objective": _describe(objective),
        "num_steps": num_steps,
        "batch_size": batch_size,
        "num_data": num_data,
        "ema_decay": ema_decay,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "device": ", ".join(sorted(device.device_kind for device in shuffle_key.devices())),
        "jax": jax.__version__,
    }
    state = start(optimizer, params, objective_state, average=ema_decay is not None)
    result = run_chunks(setup, state, settings, tuple(callbacks), progress_bar=progress_bar)
    if strict and any(problem.code == "TRAINING_DIVERGED" for problem in result.problems):
        raise TrainingDivergedError("; ".join(map(str, result.problems)), result)
    warn_problems(result.problems)
    return result


def _check_arguments(objective: Any, optimizer: Any, ema_decay: Any) -> None:
    if not isinstance(objective, AbstractObjective):
        raise TypeError(
            f"`objective` must be an objective such as ebm.objectives.DenoisingScoreMatching(0.1); got {objective!r}."
        )
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise TypeError(f"`optimizer` must be an optax optimiser such as optax.adam(1e-3); got {optimizer!r}.")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"`ema_decay` must lie strictly between 0 and 1; got {ema_decay!r}.")


def _describe(objective: AbstractObjective) -> str:
    """Class and hyperparameters; arrays with their values where they are few, other objects by their class."""
    fields = {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}
    return f"{type(objective).__name__}({', '.join(f'{name}={_show(value)}' for name, value in fields.items())})"


def _show(value: Any) -> str:
    if isinstance(value, (jax.Array, np.ndarray)) and value.size <= 16:
        return np.array2string(np.asarray(value), precision=4, separator=", ", max_line_width=1000)
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__
