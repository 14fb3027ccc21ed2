"""Batches from any iterable: the same steps as from memory, ends and faults by name."""

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ebm_ppl as ebm
from ebm_ppl.objectives import AbstractStatelessObjective, ExactScoreMatching
from ebm_ppl.training._stream import Stream, is_stream
from tests.compilation import count_lowerings
from tests.objectives.estimation import isotropic_energy

OPTIMIZER = optax.sgd(0.1)
DATA = np.random.default_rng(0).normal(size=(24, 1))  # float64, as loaders often give it
BATCHES = np.split(DATA, 6)


class Loader:
    """Goes through its batches as often as it is asked to, as a data loader does."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def fit(data, **settings):
    model = settings.pop("model", isotropic_energy(0.3))
    settings = {"key": jax.random.key(7), "optimizer": OPTIMIZER, "num_steps": 12, "progress_bar": False} | settings
    return ebm.fit(model, data, settings.pop("objective", ExactScoreMatching()), **settings)


def expected_path(batches, steps, start=0.3):
    """Gradient descent on a^2 mean(x^2) / 2 - a."""
    path = [start]
    for batch in itertools.islice(itertools.cycle(batches), steps):
        path.append(path[-1] - 0.1 * (path[-1] * np.mean(np.square(batch)) - 1))
    return np.array(path)


def losses(batches, steps):
    path = expected_path(batches, steps)
    squares = [np.mean(np.square(batch)) for batch in itertools.islice(itertools.cycle(batches), steps)]
    return path[:-1] ** 2 * squares / 2 - path[:-1]


def test_every_batch_once_and_in_order_pass_after_pass():
    loader = Loader(BATCHES)
    result = fit(loader, num_steps=20)
    assert result.ok
    np.testing.assert_allclose(result.metrics["loss"], losses(BATCHES, 20), rtol=1e-4)
    np.testing.assert_allclose(result.model.params, expected_path(BATCHES, 20)[-1], rtol=1e-5)
    assert loader.passes == 4
    assert "batch 4 of a stream" in repr(result)


def test_an_endless_iterator_is_not_asked_for_more_than_one_batch_too_many():
    given = []

    def endless():
        for batch in itertools.cycle(BATCHES):
            given.append(threading.current_thread())
            yield batch

    result = fit(endless())
    np.testing.assert_allclose(result.metrics["loss"], losses(BATCHES, 12), rtol=1e-4)
    assert 12 <= len(given) <= 13
    assert threading.main_thread() not in given[1:]  # fetched while the device works
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ebm_ppl-batches")]


def test_an_iterator_that_ends_ends_training_by_name():
    with pytest.warns(ebm.SamplingWarning, match="DATA_EXHAUSTED: `data` ended after 6 batches.*itertools.cycle"):
        result = fit(iter(BATCHES))
    assert result.num_steps == 6
    assert result.problems[0].value == 6
    np.testing.assert_allclose(result.model.params, expected_path(BATCHES, 6)[-1], rtol=1e-5)
    assert fit(iter(BATCHES), num_steps=6).ok  # exactly enough


def faulty(fault, after=4):
    yield from itertools.islice(itertools.cycle(BATCHES), after)
    if isinstance(fault, Exception):
        raise fault
    yield fault


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (DATA[:4] * np.nan, "InvalidDataError: `data` has 4 non-finite of 4 values"),
        (DATA[:4, 0], r"EnergyShapeError: `data` must have shape \(n, 1\); got \(4,\)"),
        (DATA[:4].astype(np.float16), "EnergyDtypeError: its dtype is float16, that of the first batch float32"),
        (DATA[:0], "InvalidDataError: `data` is empty"),
        ({"x": DATA[:4]}, r"EnergyShapeError: a batch must be `data` or \(data, condition\); got dict"),
        ((DATA[:4], DATA[:4]), "ValueError: `condition` was given, but the energy takes none"),
        (OSError("the share is gone"), "OSError: the share is gone"),
    ],
)
def test_a_bad_batch_ends_training_and_keeps_what_was_learned(fault, message):
    with pytest.warns(ebm.SamplingWarning, match=f"DATA_FAILED: batch 4 of `data` cannot be used.*{message}"):
        result = fit(faulty(fault))
    assert result.num_steps == 4
    np.testing.assert_allclose(result.model.params, expected_path(BATCHES, 4)[-1], rtol=1e-5)


@pytest.mark.parametrize(
    ("data", "settings", "error", "message"),
    [
        (iter([DATA[:, 0]]), {}, ebm.EnergyShapeError, "`data` must have shape"),
        (iter([DATA * np.nan]), {}, ebm.InvalidDataError, "non-finite"),
        (iter([]), {}, ebm.InvalidDataError, "`data` is an iterable without batches"),
        (Loader(BATCHES), {"condition": DATA}, ValueError, "`condition` comes with every batch"),
        (Loader(BATCHES), {"batch_size": 5}, ValueError, "`batch_size` is that of the iterable's batches, 4; got 5"),
        (Loader(BATCHES), {"validation": 0.1}, ValueError, "no fraction of an iterable can be held out"),
        (Loader(BATCHES), {"validation": DATA}, ValueError, "give `validate_every`, in steps"),
    ],
)
def test_what_cannot_work_is_refused_at_once(data, settings, error, message):
    with pytest.raises(error, match=message):
        fit(data, **settings)


def conditional(slope, x, condition):
    return jnp.sum((x - slope * condition) ** 2)


class Pairs(AbstractStatelessObjective):
    comparable = True

    def evaluate(self, model, batch, *, key):
        x, condition = self.split_batch(model, batch)
        return jax.vmap(model)(x, condition), {}


def test_conditions_come_beside_the_data():
    """Lists of two arrays, as PyTorch's loaders give them."""
    energy = ebm.FunctionEnergy(conditional, (1,), 0.5, condition_shape=(1,))
    batches = [[batch, 2 * batch] for batch in BATCHES]
    result = fit(Loader(batches), model=energy, objective=Pairs(), optimizer=optax.sgd(0.0))
    np.testing.assert_allclose(result.metrics["loss"], 0.0, atol=1e-6)
    assert fit(Loader([[batch] for batch in BATCHES]), num_steps=2).ok  # TensorDataset of one tensor


def test_a_smaller_last_batch_is_used_as_it_is_and_each_size_compiles_once():
    batches = [DATA[:10], DATA[10:20], DATA[20:]]
    fit(Loader(batches))
    with count_lowerings() as lowerings:
        result = fit(Loader(batches))
    np.testing.assert_allclose(result.metrics["loss"], losses(batches, 12), rtol=1e-4)
    assert lowerings == []


def test_validation_and_patience_work_as_in_memory():
    held_out = 3 * DATA.astype(np.float32)
    settings = {"validation": held_out, "validate_every": 2, "patience": 3, "num_steps": 300}
    loader = Loader([DATA])
    streamed = fit(loader, model=isotropic_energy(0.01), **settings)
    in_memory = fit(DATA, model=isotropic_energy(0.01), batch_size=24, **settings)
    assert streamed.stopped_early
    assert (streamed.num_steps, streamed.best_step) == (in_memory.num_steps, in_memory.best_step)
    np.testing.assert_allclose(streamed.validation["loss"], in_memory.validation["loss"], rtol=1e-5)


def test_divergence_stops_at_its_step():
    batches = [DATA[:4]] * 5 + [np.full((4, 1), 1e30)] + [DATA[:4]] * 20
    with pytest.warns(ebm.SamplingWarning, match="TRAINING_DIVERGED: loss became non-finite at step 5"):
        result = fit(iter(batches), num_steps=20)
    assert result.num_steps == 5


def test_a_run_goes_on_where_it_stopped(tmp_path):
    whole = fit(Loader(BATCHES), num_steps=20)
    fit(Loader(BATCHES), num_steps=8, checkpoint=tmp_path)
    resumed = fit(Loader(BATCHES), num_steps=20, checkpoint=tmp_path)
    assert resumed.model.params == whole.model.params
    assert np.array_equal(resumed.metrics["loss"], whole.metrics["loss"])
    with pytest.raises(ebm.CheckpointError, match="differs in data"):
        fit(Loader(BATCHES[::-1]), num_steps=20, checkpoint=tmp_path)
    with pytest.raises(ebm.CheckpointError, match="has 20 steps, and `data` ended after 6 batches"):
        fit(iter(BATCHES), num_steps=30, checkpoint=tmp_path)


def test_the_next_batch_is_fetched_meanwhile():
    """Nobody asks for the second batch, and it is made."""
    made = threading.Event()

    def two():
        yield DATA
        made.set()
        yield DATA

    stream = Stream(two(), lambda raw: jnp.asarray(raw, jnp.float32), lambda batch: batch)
    stream.peek()
    next(stream)
    assert made.wait(30)
    stream.close()


def test_arrays_and_lists_are_no_streams():
    assert not any(map(is_stream, (DATA, jnp.zeros(3), [[1.0], [2.0]], (1.0, 2.0), "data", 3)))
    assert all(map(is_stream, (iter([DATA]), Loader([]), (batch for batch in BATCHES), {1, 2})))
