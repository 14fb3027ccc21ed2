"""Held-out data: values that compare, the best parameters kept, training ended in time; refused where meaningless."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ebm_ppl as ebm
from ebm_ppl.objectives import AbstractStatelessObjective, DenoisingScoreMatching, ExactScoreMatching
from tests.compilation import count_lowerings
from tests.objectives.estimation import isotropic_energy
from tests.training.test_fit_faults import FailsAt

FAST = optax.sgd(0.05)
DATA = np.random.default_rng(0).normal(size=(60, 1)).astype(np.float32)


def fit(data=DATA, objective=None, model=None, **settings):
    model = isotropic_energy(0.3) if model is None else model
    settings = {"key": jax.random.key(3), "optimizer": FAST, "num_steps": 40, "progress_bar": False} | settings
    return ebm.fit(model, data, ExactScoreMatching() if objective is None else objective, **settings)


def exact_loss(precision, data):
    """E = a x^2 / 2: a^2 mean(x^2) / 2 - a."""
    return precision**2 * np.mean(data**2) / 2 - precision


def test_values_are_those_of_the_held_out_rows_in_any_batch_size():
    """23 held-out rows in batches of 10, 10 and 3; every 7 steps of 40."""
    held_out = DATA[:23] * 2
    iterates = []
    result = fit(
        DATA,
        batch_size=10,
        validation=held_out,
        validate_every=7,
        num_steps=40,
        callbacks=[lambda step, model, metrics: iterates.append(metrics["validation_loss"])],
    )
    assert result.validation["step"].tolist() == [7, 14, 21, 28, 35]
    assert np.array_equal(np.concatenate(iterates), result.validation["loss"])
    for step, loss in zip(*result.validation.values(), strict=True):
        precision = float(fit(DATA, batch_size=10, num_steps=int(step)).last_model.params)
        np.testing.assert_allclose(loss, exact_loss(precision, held_out), rtol=1e-5)
    assert set(result.metrics) == {"loss", "gradient_norm"}
    assert "lowest" in repr(result)


def test_validation_changes_nothing_about_training():
    """Up to rounding: it is another program."""
    with_it, without = fit(validation=DATA, validate_every=3), fit()
    np.testing.assert_allclose(with_it.metrics["loss"], without.metrics["loss"], rtol=1e-5)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_patience_ends_training_and_the_best_parameters_come_back(ema_decay):
    """Held out: variance 9, optimum 1/9; trained on variance 1 from a = .01, the value falls, then rises for ever."""
    settings = {"validation": 3 * DATA, "validate_every": 5, "ema_decay": ema_decay, "num_steps": 1000}
    result = fit(model=isotropic_energy(0.01), patience=3, **settings)
    losses, steps = result.validation["loss"], result.validation["step"]
    best = int(np.argmin(losses))
    assert result.ok
    assert result.stopped_early
    assert result.num_steps == steps[-1] == result.best_step + 15 < 1000
    assert result.best_step == steps[best] == 5 * (best + 1)
    assert np.all(np.diff(losses[best:]) > 0)
    until_best = fit(model=isotropic_energy(0.01), num_steps=result.best_step, ema_decay=ema_decay)
    assert result.model.params == until_best.model.params
    assert result.last_model.params > result.model.params
    assert "stopped early" in repr(result)
    assert len(fit(model=isotropic_energy(0.01), **settings).validation["loss"]) == 200  # without patience: to the end


def test_where_it_stops_does_not_depend_on_the_chunks(monkeypatch):
    settings = {"model": isotropic_energy(0.01), "validation": 3 * DATA, "validate_every": 4, "patience": 2}
    one = fit(num_steps=500, **settings)
    monkeypatch.setattr("ebm_ppl.training._chunks._next_length", lambda length, seconds: 3)
    other = fit(num_steps=500, **settings)
    assert eqx.tree_equal(one.model, other.model)
    assert one.num_steps == other.num_steps
    assert np.array_equal(one.validation["loss"], other.validation["loss"])


def test_a_fraction_is_drawn_by_the_key_and_never_trained_on():
    """Powers of two tell which rows a sum holds."""

    class Rows(AbstractStatelessObjective):
        comparable = True

        def evaluate(self, model, batch, *, key):
            return jax.vmap(model)(batch), {"code": jnp.sum(batch)}

    data = 2.0 ** np.arange(10, dtype=np.float32)[:, None]
    # E = 1e-9 x^2 / 2, so that the mean of E over the held-out rows tells which they are as well
    results = [
        fit(data, Rows(), isotropic_energy(1e-9), validation=0.3, num_steps=1, key=jax.random.key(k)) for k in (0, 0, 1)
    ]
    trained = [int(result.metrics["code"][0]) for result in results]
    assert trained[0] == trained[1] != trained[2]
    assert all(bin(code).count("1") == 7 for code in trained)
    assert all(result.settings["num_validation"] == 3 for result in results)
    for code, result in zip(trained, results, strict=True):
        held_out = [row for row in range(10) if not code >> row & 1]
        precision = float(result.last_model.params)
        expected = np.mean([precision * 4.0**row / 2 for row in held_out])
        np.testing.assert_allclose(result.validation["loss"][-1], expected, rtol=1e-4)


def test_the_same_random_numbers_every_time():
    """A model that does not move has one value, though the objective draws noise."""
    frozen = optax.sgd(0.0)
    result = fit(objective=DenoisingScoreMatching(0.5), optimizer=frozen, validation=0.2, validate_every=1)
    assert len(np.unique(result.validation["loss"])) == 1
    assert len(np.unique(result.metrics["loss"])) > 1
    assert result.best_step == 1


class Incomparable(ExactScoreMatching):
    comparable = False


def test_an_objective_without_a_value_is_refused_unless_another_judges():
    with pytest.raises(
        ValueError, match=r"values of `Incomparable` do not compare between steps.*`validation_objective`"
    ):
        fit(objective=Incomparable(), validation=0.2, patience=2)
    result = fit(objective=Incomparable(), validation=0.2, validation_objective=ExactScoreMatching(), patience=2)
    assert result.settings["validation_objective"].startswith("ExactScoreMatching(")
    assert result.best_step is not None


def test_a_value_that_is_not_finite_is_named_and_never_best():
    held_out = np.full((3, 1), 1e30, np.float32)  # its square overflows
    with pytest.warns(
        ebm.SamplingWarning, match="VALIDATION_NOT_FINITE: 8 of 8 validations were not finite, the first"
    ):
        result = fit(validation=held_out, validate_every=5)
    assert result.best_step is None
    assert result.model.params == result.last_model.params == fit().model.params


def test_divergence_keeps_the_best():
    with pytest.warns(ebm.SamplingWarning, match="TRAINING_DIVERGED: loss became non-finite at step 9"):
        result = fit(
            objective=FailsAt(9, "loss"),
            validation=DATA,
            validate_every=2,
            validation_objective=ExactScoreMatching(),
            optimizer=optax.sgd(0.1),
        )
    assert result.validation["step"].tolist() == [2, 4, 6, 8]
    assert result.best_step in (2, 4, 6, 8)


def test_a_second_call_compiles_nothing():
    """How often, how patient and which rows are values."""
    fit(validation=0.2, validate_every=5, patience=100)
    with count_lowerings() as lowerings:
        fit(DATA + 1, validation=0.2, validate_every=3, patience=7, num_steps=50, key=jax.random.key(8))
    assert lowerings == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"patience": 3}, ValueError, "`patience` needs `validation`"),
        ({"validate_every": 3}, ValueError, "`validate_every` needs `validation`"),
        ({"validation": 0.0}, ValueError, "`validation` must be a fraction between 0 and 1, or data; got 0.0"),
        ({"validation": 1.5}, ValueError, "`validation` must be a fraction"),
        ({"validation": True}, ValueError, "`validation` must be a fraction"),
        ({"validation": 0.001}, ValueError, "leaves 0 to validate"),
        ({"validation": 0.5, "batch_size": 31}, ValueError, "`batch_size` must be at most the number of data, 30"),
        ({"validation": 0.5, "patience": 0}, ValueError, "`patience` must be an integer >= 1; got 0"),
        ({"validation": 0.5, "validate_every": 41}, ValueError, "nothing would be validated in `num_steps` 40"),
        ({"validation": 0.5, "batch_size": 1, "num_steps": 9}, ValueError, "`validate_every` is 30, one epoch"),
        ({"validation": 0.5, "validate_every": 0}, ValueError, "`validate_every` must be an integer >= 1; got 0"),
        ({"validation": DATA[:, 0]}, ebm.EnergyShapeError, r"`validation data` must have shape \(n, 1\)"),
        ({"validation": DATA * np.nan}, ebm.InvalidDataError, "`validation data` has 60 non-finite"),
        ({"validation": (DATA, DATA)}, ValueError, "`validation condition` was given, but"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        fit(**settings)
