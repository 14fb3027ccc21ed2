"""What `fit` does when something is wrong: with the input, with the numbers, with a callback, or Ctrl-C."""

import os
import signal
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ebm_ppl as ebm
from ebm_ppl.objectives import AbstractObjective, DenoisingScoreMatching, MultiscaleDenoisingScoreMatching
from ebm_ppl.training._fit import _check_arguments
from ebm_ppl.training._inputs import without_nonfinite
from tests.objectives.estimation import isotropic_energy

OBJECTIVE = DenoisingScoreMatching(0.5)
OPTIMIZER = optax.sgd(0.1)
DATA = np.linspace(-2, 2, 40, dtype=np.float32)[:, None]


def fit(model=None, data=DATA, objective=OBJECTIVE, **settings):
    model = isotropic_energy(0.3) if model is None else model
    settings = {"key": jax.random.key(7), "optimizer": OPTIMIZER, "num_steps": 30, "progress_bar": False} | settings
    return ebm.fit(model, data, objective, **settings)


class FailsAt(AbstractObjective[jax.Array]):
    """Denoising until the loss, or only its gradient, is not finite at step `when`."""

    when: int
    what: str
    comparable: ClassVar[bool] = True

    def init(self, model, batch, *, key):
        return jnp.zeros((), jnp.int32)

    def __call__(self, model, state, batch, *, key):
        loss = OBJECTIVE.loss(model, batch, key=key)
        zero = model.params - jax.lax.stop_gradient(model.params)
        bad = (lambda: zero + jnp.nan) if self.what == "loss" else (lambda: jnp.sqrt(zero))
        return loss + jax.lax.cond(state == self.when, bad, lambda: 0.0 * zero), (state + 1, {})


def broken_rate(step):
    return jnp.where(step == 5, jnp.inf, 0.1)


@pytest.mark.parametrize(
    ("settings", "term", "value"),
    [
        ({"objective": FailsAt(5, "loss")}, "loss", np.nan),
        ({"objective": FailsAt(5, "gradient")}, "gradient of model.params", None),
        ({"optimizer": optax.sgd(broken_rate)}, "parameter model.params", None),
    ],
    ids=["loss", "gradient", "parameter"],
)
def test_training_ends_before_the_first_step_that_is_not_finite(settings, term, value):
    with pytest.warns(ebm.SamplingWarning, match=f"TRAINING_DIVERGED: {term} became non-finite at step 5"):
        result = fit(**settings)
    assert not result.ok
    assert [problem.code for problem in result.problems] == ["TRAINING_DIVERGED"]
    assert value is None or np.isnan(result.problems[0].value)
    assert result.num_steps == len(result.metrics["gradient_norm"]) == 5
    until_then = fit(**settings, num_steps=5)
    assert until_then.ok
    assert result.model.params == result.last_model.params == until_then.model.params
    assert np.array_equal(result.metrics["loss"], until_then.metrics["loss"])
    assert np.all(np.isfinite(jax.tree.leaves(result.opt_state)))


def test_learning_rate_far_too_large_is_named():
    with pytest.warns(ebm.SamplingWarning, match="TRAINING_DIVERGED"):
        result = fit(optimizer=optax.sgd(1e3))
    assert 0 < result.num_steps < 30
    assert np.isfinite(result.model.params)
    assert np.all(np.isfinite(result.metrics["loss"]))


def test_strict_raises_and_loses_nothing():
    with pytest.raises(ebm.TrainingDivergedError, match="loss became non-finite at step 5") as caught:
        fit(objective=FailsAt(5, "loss"), strict=True)
    assert caught.value.result.num_steps == 5
    assert isinstance(caught.value, RuntimeError)


def test_divergence_at_the_first_step_returns_the_model_given():
    with pytest.warns(ebm.SamplingWarning, match="at step 0"):
        result = fit(objective=FailsAt(0, "loss"), ema_decay=0.9)
    assert result.num_steps == 0
    assert result.model.params == np.float32(0.3)
    assert "none recorded" in repr(result)


def test_ctrl_c_returns_what_there_is():
    before = signal.getsignal(signal.SIGINT)

    def press(step, model, metrics):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.warns(ebm.SamplingWarning, match="INTERRUPTED: stopped by Ctrl-C after 3 of 30 steps"):
        result = fit(callbacks=[press])
    assert [problem.code for problem in result.problems] == ["INTERRUPTED"]
    assert result.num_steps == 3
    assert result.model.params == fit(num_steps=3).model.params
    assert signal.getsignal(signal.SIGINT) is before


def test_second_ctrl_c_raises():
    def press_twice(step, model, metrics):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(callbacks=[press_twice])


def test_callbacks_see_every_step_once():
    seen = []
    fit(num_steps=20, callbacks=[lambda step, model, metrics: seen.append((step, float(model.params), metrics))])
    steps, params, metrics = zip(*seen, strict=True)
    assert steps == (1, 3, 7, 15, 20)
    assert np.array_equal(np.concatenate([values["loss"] for values in metrics]), fit(num_steps=20).metrics["loss"])
    assert params[-1] == fit(num_steps=20).model.params


def test_callback_that_raises_is_reported_once_and_changes_nothing():
    calls = []

    def broken(step, model, metrics):
        calls.append(step)
        raise ZeroDivisionError("no plot today")

    with pytest.warns(RuntimeWarning, match="callback broken raised ZeroDivisionError: no plot today") as caught:
        result = fit(callbacks=[broken])
    assert len(caught) == 1
    assert len(calls) > 1
    assert result.ok
    assert result.model.params == fit().model.params


def test_progress_is_plain_lines_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("ebm_ppl._progress.PLAIN_INTERVAL", 0.0)
    fit(progress_bar=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("fit: 1/30 steps, ")
    assert lines[-1].startswith("fit: 30/30 steps, 0 s left, loss ")
    fit(progress_bar=False)
    assert capsys.readouterr().err == ""


def test_repr_names_everything(key):
    result = fit()
    for text in (repr(result), result._repr_html_()):
        for fact in ("FunctionEnergy", "1 trained parameters", "DenoisingScoreMatching(noise_scale=0.5", "30 of 30"):
            assert fact in text
    assert "TRAINING" not in repr(result)
    with pytest.warns(ebm.SamplingWarning):
        assert "TRAINING_DIVERGED" in repr(fit(objective=FailsAt(5, "loss")))


def calls_numpy(a, x):
    return jnp.asarray(np.sum(np.square(x))) * a


def forgets_to_sum(a, x):
    return a * x**2


def bad(index, value):
    data = DATA.copy()
    data[index] = value
    return data


MULTISCALE = MultiscaleDenoisingScoreMatching([1.0, 0.5])
NOISE_CONDITIONED = ebm.MLPEnergy((1,), width=4, depth=1, condition_shape=(2,), key=jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data": bad(7, np.nan)}, ebm.InvalidDataError, "`data` has 1 non-finite of 40 values, the first at"),
        ({"data": bad(3, -np.inf)}, ebm.InvalidDataError, r"index \(3, 0\)"),
        ({"data": DATA[:0]}, ebm.InvalidDataError, "`data` is empty"),
        ({"data": DATA[:, 0]}, ebm.EnergyShapeError, r"`data` must have shape \(n, 1\); got \(40,\)"),
        ({"data": DATA.astype(int)}, ebm.EnergyDtypeError, "`data` must be floating-point; got dtype int"),
        ({"data": "data"}, ebm.EnergyDtypeError, "`data` must be"),
        ({"key": 0}, ebm.KeyArgumentError, r"pass jax.random.key\(0\)"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, ebm.KeyArgumentError, "must be one key"),
        ({"batch_size": 41}, ValueError, "`batch_size` must be at most the number of data, 40; got 41"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1; got 0"),
        ({"num_steps": 0}, ValueError, "`num_steps` must be an integer >= 1; got 0"),
        ({"num_steps": True}, ValueError, "`num_steps` must be an integer >= 1"),
        ({"ema_decay": 1.0}, ValueError, "`ema_decay` must lie strictly between 0 and 1; got 1.0"),
        ({"condition": DATA}, ValueError, "`condition` was given, but"),
        ({"model": NOISE_CONDITIONED}, ValueError, "`condition` is needed"),
        ({"model": NOISE_CONDITIONED, "condition": DATA}, ebm.EnergyShapeError, r"must have shape \(n, 2\)"),
        ({"model": NOISE_CONDITIONED, "objective": MULTISCALE, "condition": DATA[:3]}, ebm.EnergyShapeError, "got 3"),
        ({"model": ebm.FunctionEnergy(calls_numpy, (1,), 1.0)}, ebm.NonDifferentiableEnergyError, "calls NumPy"),
        ({"model": ebm.FunctionEnergy(forgets_to_sum, (1,), 1.0)}, ebm.EnergyShapeError, "one floating scalar"),
        ({"trainable": lambda leaf: False}, ValueError, "no floating array that `trainable` selects"),
        ({"model": {"flow": jnp.ones(3)}}, TypeError, "must be an energy or hold one"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        fit(**settings)


def test_models_without_arrays_are_refused():
    def constant(x):
        return jnp.sum(x**2)

    with pytest.raises(ValueError, match="nothing to train: FunctionEnergy has no floating array; Python floats are"):
        fit(ebm.FunctionEnergy(constant, (1,)))


def test_what_is_no_objective_or_optimiser_is_refused():
    """Called directly: under test the annotations of `fit` refuse them first."""
    with pytest.raises(TypeError, match="`objective` must be an objective such as"):
        _check_arguments(0.1, OPTIMIZER, None)
    with pytest.raises(TypeError, match="`optimizer` must be an optax optimiser such as"):
        _check_arguments(OBJECTIVE, 0.1, None)


def test_batch_of_one_and_data_of_one_work():
    assert fit(batch_size=1, num_steps=3).ok
    assert fit(data=DATA[:1], num_steps=3).num_steps == 3


def test_rows_with_nan_are_dropped_when_asked_and_counted():
    dirty = np.concatenate([[[np.nan]], DATA[:20], [[np.inf]], DATA[20:]])
    with pytest.raises(ebm.InvalidDataError, match="2 non-finite of 42 values, the first at index"):
        fit(data=dirty)
    dropped, clean = fit(data=dirty, drop_nonfinite=True), fit()
    assert dropped.settings["num_dropped"] == 2
    assert dropped.settings["num_data"] == 40
    assert clean.settings["num_dropped"] == 0
    np.testing.assert_array_equal(dropped.metrics["loss"], clean.metrics["loss"])
    with pytest.raises(ebm.InvalidDataError, match="empty"):
        fit(data=dirty[:1], drop_nonfinite=True)
    with pytest.raises(ValueError, match="`drop_nonfinite` is for data in memory"):
        fit(data=iter([DATA]), drop_nonfinite=True)


def test_conditions_are_dropped_with_their_rows():
    condition = np.zeros((40, 2), np.float32)
    condition[3, 1] = np.nan
    data, kept, count = without_nonfinite(DATA, condition)
    assert count == 1
    np.testing.assert_array_equal(data, np.delete(DATA, 3, axis=0))
    assert np.isfinite(kept).all()
