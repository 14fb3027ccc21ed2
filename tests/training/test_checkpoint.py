"""Checkpoints of `fit`: the same call goes on to the same bits; any other call is refused and told why."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ebm_ppl as ebm
from ebm_ppl import _checkpoints
from ebm_ppl.objectives import AbstractObjective, DenoisingScoreMatching, NoiseContrastive
from ebm_ppl.training import _checkpoint
from ebm_ppl.training._fingerprint import describe, tree_fingerprint
from tests.objectives.estimation import isotropic_energy

DATA = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)


class Remembering(AbstractObjective[tuple]):
    """Denoising with a state of several dtypes, a key among them."""

    inner: DenoisingScoreMatching
    comparable = True

    def init(self, model, batch, *, key):
        return key, jnp.zeros(2, jnp.bfloat16), jnp.zeros((), jnp.int32)

    def __call__(self, model, state, batch, *, key):
        own, total, count = state
        loss = self.inner.loss(model, batch, key=jax.random.fold_in(own, count))
        drawn = jax.random.uniform(own, (2,), jnp.bfloat16)
        return loss, ((jax.random.split(own)[0], total + drawn, count + 1), {"count": count.astype(loss.dtype)})


OBJECTIVE = Remembering(DenoisingScoreMatching(0.5))


def optimizer():
    """Built anew at every call, as in a script that is started again."""
    schedule = optax.cosine_decay_schedule(0.1, 60)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_learning_rate(schedule))


OPTIMIZER = optimizer()


def fit(path=None, **settings):
    settings = {
        "model": isotropic_energy(0.3),
        "data": DATA,
        "objective": OBJECTIVE,
        "key": jax.random.key(5),
        "optimizer": OPTIMIZER,
        "num_steps": 60,
        "batch_size": 8,
        "ema_decay": 0.9,
        "validation": 0.2,
        "patience": 50,
        "progress_bar": False,
        "checkpoint": path,
    } | settings
    return ebm.fit(**settings)


class Killed(BaseException):
    pass


@pytest.fixture
def often(monkeypatch):
    """Small chunks, a save after each."""
    monkeypatch.setattr(_checkpoint, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(_checkpoint, "PRICE", 0.0)
    monkeypatch.setattr("ebm_ppl.training._chunks._next_length", lambda length, seconds: 7)


def kill_after(monkeypatch, saves):
    """Die right after the given number of saves."""
    save, count = _checkpoint.TrainingCheckpoint.save, iter(range(10**6))

    def counted(self, *args):
        save(self, *args)
        if next(count) + 1 == saves:
            raise Killed

    monkeypatch.setattr(_checkpoint.TrainingCheckpoint, "save", counted)


@pytest.fixture(scope="module")
def whole():
    return fit()


def plain(leaf):
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_same(result, expected):
    """Bit for bit: models, optimiser, objective, every metric and validation."""

    def parts(result):
        states = (result.model, result.last_model, result.opt_state, result.objective_state)
        arrays = eqx.filter(states, eqx.is_array)
        return [plain(leaf) for leaf in jax.tree.leaves((arrays, result.metrics, result.validation))]

    found, wanted = parts(result), parts(expected)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()
    assert list(result.metrics) == list(expected.metrics)
    assert (result.best_step, result.num_steps, result.ok) == (expected.best_step, expected.num_steps, expected.ok)


@pytest.mark.parametrize("saves", [1, 4, 8])
def test_a_killed_run_goes_on_to_the_same_bits(saves, whole, often, tmp_path, monkeypatch):
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_after(patch, saves)
        with pytest.raises(Killed):
            fit(path)
    assert_same(fit(path, optimizer=optimizer()), whole)
    assert_same(fit(path), whole)  # complete by now: returned as it is
    assert len(list(path.glob("state-*.npz"))) <= 2


def test_a_finished_run_is_prolonged(whole, tmp_path):
    fit(tmp_path, num_steps=25)
    assert_same(fit(tmp_path), whole)
    with pytest.raises(ebm.CheckpointError, match="has 60 steps already; got `num_steps` 25"):
        fit(tmp_path, num_steps=25)


def test_an_interrupted_run_is_saved_and_goes_on(whole, tmp_path):
    def press(step, model, metrics):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.warns(ebm.SamplingWarning, match="INTERRUPTED"):
        assert fit(tmp_path, callbacks=[press]).num_steps == 3
    assert_same(fit(tmp_path), whole)


class Halved(DenoisingScoreMatching):
    def evaluate(self, model, batch, *, key):
        losses, metrics = DenoisingScoreMatching.evaluate(self, model, batch, key=key)
        return losses / 2, metrics


def test_another_call_is_refused_and_the_difference_named(tmp_path, monkeypatch):
    fit(tmp_path, num_steps=5)
    clipped = optax.chain(optax.clip_by_global_norm(2.0), *[optax.scale_by_adam(), optax.scale(-0.1)])
    for settings, difference in [
        ({"model": isotropic_energy(0.4)}, r"differs in model\.values"),
        ({"model": ebm.FunctionEnergy(lambda a, x: a * jnp.sum(x**2), (1,), 0.3)}, r"model\.structure and code"),
        ({"data": DATA + 1}, r"differs in data, validation\.data"),
        ({"objective": Remembering(DenoisingScoreMatching(0.4))}, r"differs in objective\.values, validation"),
        ({"objective": Remembering(Halved(0.5))}, r"objective\.structure and code"),
        ({"optimizer": clipped}, r"differs in optimizer\.structure and code"),
        ({"key": jax.random.key(6)}, "key"),
        ({"batch_size": 9}, "batch_size"),
        ({"ema_decay": 0.8}, "ema_decay"),
        ({"patience": 40, "validate_every": 3}, "differs in patience, validate_every"),
        ({"validation": None, "patience": None}, "validation"),
    ]:
        with pytest.raises(ebm.CheckpointError, match=difference):
            fit(tmp_path, num_steps=5, **settings)
    versions = dict(_checkpoint.library_versions(), jax="0.0.1")
    monkeypatch.setattr("ebm_ppl.training._fit.library_versions", lambda: versions)
    with pytest.raises(ebm.CheckpointError, match=r"differs in versions\.jax"):
        fit(tmp_path, num_steps=5)


@pytest.mark.parametrize("victim", ["manifest.json", "state-*.npz", "metrics-*.npz"])
def test_damage_falls_back_or_is_refused_and_is_never_silent(victim, whole, often, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed):
            fit(tmp_path)
    path = max(tmp_path.glob(victim))
    content = path.read_bytes()
    for position in range(0, len(content), max(1, len(content) // 20)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        with pytest.warns(UserWarning, match="going on from the checkpoint before"):
            assert _checkpoint.load_training(tmp_path).manifest["step"] == 22
        path.write_bytes(content[:position])
        with pytest.warns(UserWarning, match="going on from the checkpoint before"):
            _checkpoint.load_training(tmp_path)
    with pytest.warns(UserWarning, match="going on from the checkpoint before"):
        assert_same(fit(tmp_path), whole)
    assert_same(fit(tmp_path), whole)


def test_both_versions_damaged_is_an_error(tmp_path):
    fit(tmp_path, num_steps=5)
    for path in tmp_path.glob("manifest*.json"):
        path.write_text("{}")
    with pytest.raises(ebm.CheckpointError, match=r"manifest\.json is damaged"):
        fit(tmp_path, num_steps=5)


def test_a_disk_that_fills_up_ends_nothing(whole, often, tmp_path, monkeypatch):
    write = _checkpoints.atomic_write

    def full(path, content, **settings):
        if "000000022" in path.name:
            raise ebm.CheckpointError(28, "No space left on device", str(path))
        return write(path, content, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(_checkpoints, "atomic_write", full)
        patch.setattr("ebm_ppl.training._chunks.Course.exhausted", property(lambda course: course.state.step >= 22))
        with pytest.warns(ebm.SamplingWarning, match="CHECKPOINT_FAILED: the last checkpoint could not be written"):
            result = fit(tmp_path)
        assert [problem.code for problem in result.problems] == ["CHECKPOINT_FAILED"]
        assert result.num_steps == 22
    assert_same(fit(tmp_path), whole)


def test_a_path_that_cannot_be_written_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ebm.CheckpointError, match="cannot create"):
        fit(tmp_path / "file")


def test_descriptions_do_not_depend_on_the_process():
    """Addresses would: everything that is described here holds functions, closures and arrays."""
    noise = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1))
    network = ebm.MLPEnergy((2,), width=4, depth=1, key=jax.random.key(0))
    things = (OPTIMIZER, network, NoiseContrastive(noise), optax.contrib.reduce_on_plateau(), lambda x: OPTIMIZER)
    for thing in things:
        assert " at 0x" not in describe(thing)
    assert describe(optimizer()) == describe(OPTIMIZER)
    closing = [
        tree_fingerprint(ebm.FunctionEnergy(lambda x, a=a: jnp.sum(a * x), (1,))) for a in (noise.mean, noise.mean + 1)
    ]
    assert closing[0] != closing[1]
    assert describe(lambda params: params["a"]) != describe(lambda params: params["b"])
    assert tree_fingerprint(NoiseContrastive(noise, 2)) != tree_fingerprint(NoiseContrastive(noise, 3))


NUM_KILLS = 20
SCRIPT = """
import sys, jax, numpy as np, optax, ebm_ppl as ebm
from ebm_ppl.training import _checkpoint
_checkpoint.MIN_SECONDS, _checkpoint.PRICE = 0.02, 0.0
path, out = sys.argv[1:]
energy = ebm.MLPEnergy((8,), width=64, depth=2, key=jax.random.key(1))
data = jax.random.normal(jax.random.key(2), (5000, 8))
print("ready", flush=True)
result = ebm.fit(energy, data, ebm.objectives.DenoisingScoreMatching(0.3), key=jax.random.key(0),
                 optimizer=optax.adamw(1e-3), num_steps=20000, batch_size=64, ema_decay=0.999, validation=0.1,
                 progress_bar=False, checkpoint=path)
leaves = jax.tree.leaves((result.model, result.last_model, result.opt_state, result.metrics, result.validation))
np.savez(out, *[np.asarray(leaf) for leaf in leaves if hasattr(leaf, "dtype")])
"""


@pytest.mark.slow
def test_sigkill_at_random_times(tmp_path):
    """Twenty SIGKILLs soon after a save, then the run is finished: the bytes of a run that nobody touched."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = dict(os.environ, PYTHONPATH=str(pathlib.Path(ebm.__file__).parent.parent))

    def start(path, out):
        return subprocess.Popen([sys.executable, script, path, out], env=environment, stdout=subprocess.PIPE)

    def finish(path, out):
        process = start(path, out)
        process.communicate(timeout=500)
        assert process.returncode == 0
        with np.load(out) as file:
            return [file[name].tobytes() for name in file.files]

    whole = finish(tmp_path / "whole", tmp_path / "whole.npz")
    manifest = tmp_path / "killed" / "manifest.json"
    for delay in np.random.default_rng(0).uniform(0.0, 0.5, NUM_KILLS):
        before = manifest.stat().st_mtime_ns if manifest.exists() else 0
        process = start(tmp_path / "killed", tmp_path / "killed.npz")
        process.stdout.readline()
        while process.poll() is None and (manifest.stat().st_mtime_ns if manifest.exists() else 0) == before:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert finish(tmp_path / "killed", tmp_path / "killed.npz") == whole
