"""Checkpoints: a killed run goes on to the same bits; anything else than the same run is refused."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl._progress import Interruption
from ebm_ppl.sampling import _checkpoint, _driver, _pace, _store
from ebm_ppl.sampling._fingerprint import describe

SETTINGS = {"num_chains": 3, "num_warmup": 60, "num_samples": 50, "progress_bar": False}


def energy():
    return ebm.energies.Gaussian(jnp.zeros(2), jnp.diag(jnp.array([1.0, 4.0])))


class Killed(BaseException):
    pass


@pytest.fixture
def often(monkeypatch):
    """Small chunks, a save after each."""
    monkeypatch.setattr(_checkpoint, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(_pace, "FIRST_CHUNK", 7)
    monkeypatch.setattr(_pace, "CHUNK_SECONDS", 1e-9)


def kill_after(monkeypatch, saves):
    """Die right after the given number of saves."""
    save, count = _checkpoint.Checkpoint.save, iter(range(10**6))

    def counted(self, *args):
        save(self, *args)
        if next(count) + 1 == saves:
            raise Killed

    monkeypatch.setattr(_checkpoint.Checkpoint, "save", counted)


@pytest.fixture(scope="module")
def whole():
    return ebm.sample(energy(), key=jax.random.key(5), **SETTINGS)


def assert_same(draws, expected):
    assert np.array_equal(draws.positions, expected.positions)
    assert draws.stats.keys() == expected.stats.keys()
    assert all(np.array_equal(draws.stats[name], values) for name, values in expected.stats.items())
    assert np.array_equal(draws.scale, expected.scale)
    ignored = {"seconds"}
    assert {k: v for k, v in draws.settings.items() if k not in ignored} == {
        k: v for k, v in expected.settings.items() if k not in ignored
    }


@pytest.mark.parametrize("saves", [1, 20, 40, 61, 80])
def test_a_killed_run_goes_on_to_the_same_bits(saves, whole, often, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, saves)
        with pytest.raises(Killed):
            ebm.sample(energy(), key=jax.random.key(5), checkpoint=tmp_path / "run", **SETTINGS)
    assert_same(ebm.resume(tmp_path / "run", energy(), progress_bar=False), whole)
    assert_same(ebm.resume(tmp_path / "run", energy(), progress_bar=False), whole)  # complete by now
    assert len(list((tmp_path / "run").glob("state-*.npz"))) <= 2


@pytest.mark.parametrize("saves", [20, 75])
def test_a_killed_run_that_streams_to_disk_goes_on_to_the_same_bits(saves, whole, often, tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "CHUNK_BYTES", 5 * 8)
    path, again = tmp_path / "draws.zarr", {"progress_bar": False}
    with monkeypatch.context() as patch:
        kill_after(patch, saves)
        with pytest.raises(Killed):
            ebm.sample(energy(), key=jax.random.key(5), checkpoint=tmp_path / "run", store=path, **SETTINGS)
    with pytest.raises(ebm.CheckpointError, match="unfinished"):
        ebm.Draws.load(path)
    if saves == 75:  # draws that were saved are verified before the run goes on
        file = path / "posterior/x/c/0/0/0"
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(ebm.CheckpointError, match="damaged"):
            ebm.resume(tmp_path / "run", energy(), **again)
        file.write_bytes(content)
    assert_same(ebm.resume(tmp_path / "run", energy(), **again), whole)
    assert_same(ebm.resume(tmp_path / "run", energy(), **again), whole)  # complete by now
    assert_same(ebm.Draws.load(path), whole)
    assert not list((tmp_path / "run").glob("draws-*"))


def test_checkpointing_changes_nothing(whole, tmp_path):
    assert_same(ebm.sample(energy(), key=jax.random.key(5), checkpoint=tmp_path / "run", **SETTINGS), whole)


def test_another_run_is_refused_and_the_difference_named(tmp_path):
    ebm.sample(energy(), key=jax.random.key(5), checkpoint=tmp_path / "run", **SETTINGS)
    other = ebm.energies.Gaussian(jnp.ones(2), jnp.diag(jnp.array([1.0, 4.0])))
    with pytest.raises(ebm.CheckpointError, match=r"energy\.arrays"):
        ebm.resume(tmp_path / "run", other, progress_bar=False)
    with pytest.raises(ebm.CheckpointError, match=r"energy\.program"):
        ebm.resume(tmp_path / "run", ebm.FunctionEnergy(jnp.sum, (2,)), progress_bar=False)
    with pytest.raises(ebm.CheckpointError, match=r"kernel\.step_size"):
        ebm.resume(tmp_path / "run", energy(), kernel=ebm.MALA(0.3), progress_bar=False)
    with pytest.raises(ebm.CheckpointError, match="already"):
        ebm.sample(energy(), key=jax.random.key(5), checkpoint=tmp_path / "run", **SETTINGS)
    with pytest.raises(ebm.CheckpointError, match="no checkpoint"):
        ebm.resume(tmp_path / "nowhere", energy())


def test_another_version_is_refused(tmp_path, monkeypatch):
    ebm.sample(energy(), key=jax.random.key(5), checkpoint=tmp_path / "run", **SETTINGS)
    versions = dict(_checkpoint.library_versions(), jax="0.0.1")
    monkeypatch.setattr("ebm_ppl.sampling._resume.library_versions", lambda: versions)
    with pytest.raises(ebm.CheckpointError, match=r"versions\.jax"):
        ebm.resume(tmp_path / "run", energy())


def test_functions_of_one_name_are_told_apart(tmp_path):
    def make(power, scale):
        return ebm.FunctionEnergy(lambda x: scale * jnp.sum(x**2) ** power, (2,))

    ebm.sample(make(1, 0.5), key=jax.random.key(5), checkpoint=tmp_path / "run", **SETTINGS)
    ebm.resume(tmp_path / "run", make(1, 0.5), progress_bar=False)
    with pytest.raises(ebm.CheckpointError, match=r"energy\.program"):
        ebm.resume(tmp_path / "run", make(2, 0.5), progress_bar=False)


@pytest.mark.parametrize("victim", ["manifest.json", "state-*.npz", "draws-*.npz"])
def test_damage_falls_back_or_is_refused_and_is_never_silent(victim, whole, often, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 80)
        with pytest.raises(Killed):
            ebm.sample(energy(), key=jax.random.key(5), checkpoint=tmp_path, **SETTINGS)
    path = max(tmp_path.glob(victim))
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), max(1, len(content) // 12)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            with pytest.warns(UserWarning, match="going on from the checkpoint before"):
                saved = _checkpoint.load_checkpoint(tmp_path)
        except ebm.CheckpointError:
            refused += 1
            continue
        assert saved.manifest["warmed"] == 60
    path.write_bytes(content)
    assert_same(ebm.resume(tmp_path, energy(), progress_bar=False), whole)


def test_a_run_with_a_damaged_manifest_goes_on_from_the_one_before(whole, often, tmp_path, monkeypatch):
    """The damaged manifest becomes the previous one: the next save must not stumble over it."""
    with monkeypatch.context() as patch:
        kill_after(patch, 40)
        with pytest.raises(Killed):
            ebm.sample(energy(), key=jax.random.key(5), checkpoint=tmp_path, **SETTINGS)
    (tmp_path / "manifest.json").write_bytes(b"{")
    with pytest.warns(UserWarning, match="going on from the checkpoint before"):
        assert_same(ebm.resume(tmp_path, energy(), progress_bar=False), whole)


def test_a_path_that_cannot_be_written_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ebm.CheckpointError):
        ebm.sample(energy(), key=jax.random.key(5), checkpoint=tmp_path / "file", **SETTINGS)


def test_conditional_and_dense_runs_resume_too(often, tmp_path, monkeypatch):
    target = ebm.FunctionEnergy(lambda x, y: jnp.sum((x - y) ** 2), (2,), condition_shape=(2,))
    settings = SETTINGS | {"condition": jnp.arange(6.0).reshape(3, 2), "precondition": "dense", "pool_warmup": True}
    expected = ebm.sample(target, ebm.HMC(), key=jax.random.key(2), **settings)
    with monkeypatch.context() as patch:
        kill_after(patch, 30)
        with pytest.raises(Killed):
            ebm.sample(target, ebm.HMC(), key=jax.random.key(2), checkpoint=tmp_path, **settings)
    assert_same(ebm.resume(tmp_path, target, condition=settings["condition"], progress_bar=False), expected)
    with pytest.raises(ebm.CheckpointError, match="condition"):
        ebm.resume(tmp_path, target, condition=jnp.zeros((3, 2)), progress_bar=False)


SCRIPT = """
import sys, jax, jax.numpy as jnp, numpy as np
import ebm_ppl as ebm
from ebm_ppl.sampling import _checkpoint
_checkpoint.MIN_SECONDS = 0.02
energy = ebm.energies.Gaussian(jnp.zeros(20), jnp.eye(20))
path, out = sys.argv[1:]
import pathlib
print("ready", flush=True)
if (pathlib.Path(path) / "manifest.json").exists():
    draws = ebm.resume(path, energy, progress_bar=False)
else:
    settings = {"num_chains": 64, "num_samples": 20000, "num_warmup": 2000, "progress_bar": False}
    draws = ebm.sample(energy, key=jax.random.key(0), checkpoint=path, **settings)
np.save(out, draws.positions)
"""


@pytest.mark.slow
def test_sigkill_at_random_times(tmp_path):
    """Twenty SIGKILLs, then the run is finished: the bytes are those of a run that nobody touched."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = dict(os.environ, PYTHONPATH=str(pathlib.Path(ebm.__file__).parent.parent))

    def start(path, out):
        return subprocess.Popen([sys.executable, script, path, out], env=environment, stdout=subprocess.PIPE)

    def finish(path, out):
        process = start(path, out)
        process.communicate(timeout=300)
        assert process.returncode == 0

    finish(tmp_path / "whole", tmp_path / "whole.npy")
    delays = np.random.default_rng(0).uniform(0.2, 3.0, 20)
    for delay in delays:
        process = start(tmp_path / "killed", tmp_path / "killed.npy")
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(tmp_path / "killed", tmp_path / "killed.npy")
    assert (tmp_path / "killed.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


INTERRUPTS = """
import os, signal, threading, time, warnings, jax, jax.numpy as jnp, numpy as np
import ebm_ppl as ebm
warnings.simplefilter("ignore", ebm.SamplingWarning)
energy = ebm.energies.Gaussian(jnp.zeros(20), jnp.eye(20))

def run():
    settings = {"num_chains": 16, "num_samples": 20000, "num_warmup": 2000, "progress_bar": False}
    return ebm.sample(energy, key=jax.random.key(0), **settings)

run()
started = time.perf_counter()
whole = run()
seconds = time.perf_counter() - started
lengths = []
for delay in np.random.default_rng(0).uniform(0.1, 0.9, 100) * seconds:
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        part = run()
        timer.join()
    except KeyboardInterrupt:
        continue  # it came before the first chunk or after the last
    if part.num_draws == 20000:
        continue
    assert [problem.code for problem in part.problems] == ["INTERRUPTED"]
    count = part.num_draws
    assert part.positions.tobytes() == whole.positions[:, :count].tobytes()
    assert all(part.stats[name].tobytes() == rows[:, :count].tobytes() for name, rows in whole.stats.items())
    lengths.append(count)
    if len(lengths) == 20:
        break
print(lengths)
assert len(lengths) == 20
"""


@pytest.mark.slow
def test_sigint_at_random_times():
    """Twenty partial results, each a byte-equal prefix of the whole."""
    environment = dict(os.environ, PYTHONPATH=str(pathlib.Path(ebm.__file__).parent.parent))
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTS], env=environment, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr
    lengths = list(map(int, run.stdout.strip("[]\n").split(",")))
    assert len(set(lengths)) > 5  # interrupted at different stages


def test_an_interrupted_run_is_saved_and_goes_on(whole, tmp_path, monkeypatch):
    pressed = Interruption()
    pressed.requested = True
    with monkeypatch.context() as patch:
        patch.setattr(_driver, "deferred_interrupt", lambda: contextlib.nullcontext(pressed))
        with pytest.warns(ebm.SamplingWarning, match="INTERRUPTED"):
            part = ebm.sample(energy(), key=jax.random.key(5), checkpoint=tmp_path, **SETTINGS)
    assert part.positions.shape == (3, 0, 2)
    assert_same(ebm.resume(tmp_path, energy(), progress_bar=False), whole)


def test_whatever_an_energy_closes_over_is_part_of_it():
    """Else a checkpoint would go on with another energy: dictionaries of parameters, modules, names of parameters."""
    parameters = {"a": jnp.ones(2), "b": jnp.zeros(2)}

    def of(held, name="a"):
        return describe(lambda x: jnp.sum(held[name] * x))

    def recursive(n):
        return 1 if n == 0 else recursive(n - 1)

    assert of(parameters) == of(dict(parameters))
    assert of(parameters) != of(parameters | {"a": jnp.full(2, 2.0)})
    assert of(parameters) != of(parameters, "b")
    assert describe(lambda x: parameters["a"] * x) != describe(lambda x: parameters["b"] * x)
    normals = [ebm.energies.Gaussian(jnp.full(1, mean), jnp.eye(1)) for mean in (0.0, 0.0, 1.0)]
    texts = [describe(lambda x, normal=normal: normal(x)) for normal in normals]
    assert texts[0] == texts[1] != texts[2]
    assert describe(np.float32(1)) != describe(np.float32(2))
    assert " at 0x" not in describe(recursive)
