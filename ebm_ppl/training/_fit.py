"""`fit`: the optimisation loop, seen from the host."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ebm_ppl._checkpoints import has_versions
from ebm_ppl._checks import check_count, check_key
from ebm_ppl.errors import CheckpointError, TrainingDivergedError, warn_problems
from ebm_ppl.objectives import AbstractObjective
from ebm_ppl.training._checkpoint import (
    TrainingCheckpoint,
    library_versions,
    load_training,
    refuse_differences,
    restore,
)
from ebm_ppl.training._chunks import Callback, Course, run_chunks
from ebm_ppl.training._fingerprint import arrays_fingerprint, describe, tree_fingerprint
from ebm_ppl.training._inputs import partition, without_nonfinite
from ebm_ppl.training._loop import Setup, start
from ebm_ppl.training._material import Material, gather, make_validation
from ebm_ppl.training._mesh import replicate
from ebm_ppl.training._programs import Programs
from ebm_ppl.training._result import FitResult
from ebm_ppl.training._stream import StreamEndedError, is_stream
from ebm_ppl.training._validation import check_validation

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
    validation: Any = None,
    validate_every: int | Any | None = None,
    validation_objective: AbstractObjective | None = None,
    patience: int | Any | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    mesh: Any = None,
    drop_nonfinite: bool = False,
    callbacks: Iterable[Callback] = (),
    progress_bar: bool = True,
    strict: bool = False,
) -> FitResult:
    r"""Train a model: minimise an objective over mini-batches with an optax optimiser.

        theta <- theta + optimizer(grad_theta objective(model_theta, batch))        num_steps times

    Each epoch goes through the data in a fresh random order, without replacement, on the device. The loop is one
    compiled program that is called about once a second; between two calls progress is shown, callbacks run and
    Ctrl-C takes effect. The result does not depend on how the steps fall into those calls. The step is
    traced at every call, and compiled code is looked up by the traced program: a model, an objective or an optimiser
    that is defined afresh compiles nothing where it computes the same. `num_steps`, hyperparameters that are arrays,
    and all array values may change freely.

    Args:
        model: an energy, or a pytree that holds one; its floating arrays are trained.
        data: floating array `(n, *event_shape)`; or, where that is larger than memory, any iterable of batches: arrays
            `(rows, *event_shape)` or pairs `(data, condition)`, shuffled by whoever made them. The next batch is
            fetched, checked and moved while the device works on this one, in a thread, so one more may be taken than
            is used. An iterable that can be gone through again starts again when it ends; a generator or other
            iterator that ends, ends training, with the problem `DATA_EXHAUSTED`. Every new number of rows compiles
            once. Lists count as arrays.
        objective: what to minimise, e.g. `ebm.objectives.DenoisingScoreMatching(0.1)`.
        key: a JAX key; the same key gives the same result.
        optimizer: any optax gradient transformation; `optax.adam(1e-3)` by default. Clipping, schedules and weight
            decay are its business: nothing of that kind is built in. To clip:
            `optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))`. A gradient that is not finite ends
            training before the optimiser is asked: `optax.apply_if_finite` has nothing to skip.
        num_steps: number of gradient steps.
        batch_size: events per step, at most n; min(n, 256) by default. Not for iterables, whose batches have a size.
        condition: floating array `(n, *condition_shape)` for a conditional energy, row i belonging to data row i.
        trainable: which leaves to train: a callable leaf -> bool, or a pytree of bools that is a prefix of `model`
            (as for `eqx.partition`). By default all floating arrays.
        ema_decay: if given, `result.model` is the exponential average of the iterates, in (0, 1), e.g. 0.999; weights
            are normalised, so that the start of training is not favoured.
        validation: held-out data: a fraction of `data` such as 0.1, drawn at random by `key`; or data of their own, an
            array or `(data, condition)`. The objective is evaluated on them every `validate_every` steps, with the same
            random numbers every time, for the averaged parameters where there are such; `result.model` is then the one
            of lowest value (`result.best_step`), and `result.validation` holds all values.
        validate_every: steps between two validations; one epoch by default. Needed where `data` is an iterable.
        validation_objective: another objective to judge by: needed where values of `objective` do not compare
            (contrastive divergence, games).
        patience: end training once this many validations in a row were no improvement on the best.
        checkpoint: directory to save to, about once a second (less often where that would cost more than 5 % of the
            time). **The same call goes on** from what is saved there, after a kill, Ctrl-C or a power cut, and returns
            bit for bit what an undisturbed one does, on the same machine and versions; a larger `num_steps` prolongs a
            finished run. Anything else that differs is refused by name. Iterables must give the same batches again:
            those used before are passed over. Nothing is executed from the files.
        mesh: a `jax.sharding.Mesh`: every batch is spread over its devices, parameters, optimiser state and data in
            memory are on each. The result is that of one device up to rounding.
        drop_nonfinite: leave out rows with a NaN or an infinity in data or condition instead of refusing them;
            `result.settings["num_dropped"]` says how many. Not for iterables.
        callbacks: each called as `callback(step, model, metrics)`, about once a second (sooner at the start). An
            exception in one is reported as a warning, once, and training goes on.
        progress_bar: show steps done and the mean loss of the last 100 steps.
        strict: raise `TrainingDivergedError` instead of recording `TRAINING_DIVERGED`.

    Returns:
        A `FitResult`. If loss, gradient or parameters become non-finite, training ends there: `result.model` is the
        last good one, `result.ok` is False, and the problem `TRAINING_DIVERGED` names step and term. Where negatives
        come from Markov chains, `NEGATIVES_STUCK` says that these stood still or met energies that are not finite, and
        `ENERGIES_DRIFTING_APART` that they and the data part without bound. After
        Ctrl-C the result so far is returned with the problem `INTERRUPTED`; a second Ctrl-C raises. A batch of an
        iterable that cannot be used ends training too, `DATA_FAILED`; a full disk does not, `CHECKPOINT_FAILED`.

    Raises:
        CheckpointError: if `checkpoint` holds another run (what differs is named), is damaged beyond its last two
            versions, or cannot be written to at the start.
        InvalidDataError: if data or condition are empty or not finite (count and first index are named).
        EnergyShapeError: if data or condition have not the shapes that the energy declares.
        EnergyDtypeError: if data or condition are not floating-point.
        NonDifferentiableEnergyError: if JAX cannot trace the energy (it calls NumPy, or needs values in Python).
        KeyArgumentError: if `key` is not one JAX key.
        ValueError: if a setting is out of range, nothing is trainable, or values that do not compare are validated.
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
    judge = objective if validation_objective is None else validation_objective
    every, patience = check_validation(validation, judge, validate_every, patience)
    init_key, shuffle_key, step_key, split_key, validation_key = jax.random.split(key, 5)
    num_dropped = 0
    if drop_nonfinite:
        if is_stream(data):
            raise ValueError("`drop_nonfinite` is for data in memory; filter the batches of an iterable yourself.")
        data, condition, num_dropped = without_nonfinite(data, condition)
    material = gather(
        model, objective, data, condition, validation=validation, batch_size=batch_size, mesh=mesh, key=split_key
    )
    validating = make_validation(model, judge, material, every, patience, validation_key)
    if validating is not None and int(validating.every) > num_steps:
        raise ValueError(
            f"nothing would be validated in `num_steps` {num_steps}: `validate_every` is {int(validating.every)}"
            f"{'' if every else ', one epoch'}."
        )
    params, static = partition(model, trainable)
    objective_state = objective.init(model, material.batch, key=init_key)
    decay = None if ema_decay is None else jnp.asarray(ema_decay, jnp.result_type(float))
    in_memory = material.batch if material.stream is None else None
    setup = Setup(static, objective, optimizer, in_memory, shuffle_key, step_key, decay, validating, material.sharding)
    programs, flags = Programs(), {"average": ema_decay is not None, "validated": validating is not None}
    state = programs(start, optimizer, params, objective_state, **flags)
    setup, state = replicate((setup, state), material.sharding)
    settings = {
        "model": type(model).__name__,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "objective": _describe(objective),
        "num_steps": num_steps,
        "batch_size": material.batch_size,
        "num_data": None if material.stream is not None else material.num_rows,
        "num_dropped": num_dropped,
        "ema_decay": ema_decay,
        "validate_every": None if validating is None else int(validating.every),
        "validation_objective": None if validating is None else _describe(judge),
        "num_validation": None if validating is None else jax.tree.leaves(validating.batch)[0].shape[0],
        "patience": patience,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "device": ", ".join(sorted(device.device_kind for device in shuffle_key.devices())),
        "num_devices": 1 if material.sharding is None else material.sharding.mesh.devices.size,
        "jax": jax.__version__,
    }
    course = Course(programs, setup, settings, tuple(callbacks), state, stream=material.stream)
    if checkpoint is not None:
        _attach(course, pathlib.Path(checkpoint), _fingerprint(model, params, material, settings, setup))
    result = run_chunks(course, progress_bar=progress_bar)
    if strict and any(problem.code == "TRAINING_DIVERGED" for problem in result.problems):
        raise TrainingDivergedError("; ".join(map(str, result.problems)), result)
    warn_problems(result.problems)
    return result


def _fingerprint(model: Any, params: Any, material: Material, settings: dict[str, Any], setup: Setup) -> dict[str, Any]:
    """Everything that decides the result of a run but `num_steps`, as JSON: a run may be prolonged."""
    kept = ("batch_size", "ema_decay", "validate_every", "patience", "key", "num_devices")
    validation = setup.validation
    return {
        "model": tree_fingerprint(model),
        "trainable": describe([jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]),
        "objective": tree_fingerprint(setup.objective),
        "optimizer": tree_fingerprint(setup.optimizer),
        "data": arrays_fingerprint(material.batch),
        "validation": None
        if validation is None
        else {"data": arrays_fingerprint(validation.batch), "objective": tree_fingerprint(validation.objective)},
        **{name: settings[name] for name in kept},
        "versions": library_versions(),
    }


def _attach(course: Course, directory: pathlib.Path, fingerprint: dict[str, Any]) -> None:
    """Go on from what is saved there, if anything; save there from now on."""
    if jax.process_count() > 1:
        raise NotImplementedError("`checkpoint` needs a single process: save `result.model` yourself, by a callback.")
    course.checkpoint = TrainingCheckpoint(directory, fingerprint)
    if not has_versions(directory):
        course.checkpoint.create()
        return
    saved = load_training(directory)
    refuse_differences(saved.manifest["fingerprint"], fingerprint, directory)
    step, asked = saved.manifest["step"], course.settings["num_steps"]
    if step > asked:
        raise CheckpointError(f"{directory} has {step} steps already; got `num_steps` {asked}.")
    course.state = restore(saved, course.state)
    course.history = saved.history
    course.checkpoint.saved_steps, course.checkpoint.files = step, list(saved.manifest["metrics"])
    if course.stream is not None:
        try:
            course.stream.skip(step)
        except StreamEndedError as ended:
            raise CheckpointError(f"{directory} has {step} steps, and {ended}") from ended


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
