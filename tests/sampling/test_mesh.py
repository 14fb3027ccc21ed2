"""The draws do not depend on how many devices or processes hold the chains.

Up to rounding, that is: into which products XLA's CPU compiler contracts `a * b + c * d` (one rounding less) depends on
the vector code it makes for the chains of one device. Without such instructions, `--xla_cpu_max_isa=AVX`, elementwise
energies give the same bits. Matrix products remain: libraries choose their order of summation by shape.
"""

import os
import pathlib
import platform
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm

SCRIPT = pathlib.Path(__file__).parent / "mesh_script.py"


def run(tmp_path, devices, processes=1, flags=""):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = pathlib.Path(ebm.__file__).parent.parent
    flags = f"--xla_force_host_platform_device_count={devices} {flags}"
    environment = dict(os.environ, PYTHONPATH=str(root), XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    out = tmp_path / f"{devices}x{processes}.npz"
    started = [
        subprocess.Popen([sys.executable, SCRIPT, *map(str, (processes, i, port, out))], env=environment)
        for i in range(processes)
    ]
    for process in started:
        assert process.wait(timeout=300) == 0
    with np.load(out) as file:
        return dict(file)


def assert_same_draws(one, other, names):
    """The layout changes the shapes that XLA vectorises, hence rounding, which the chains then amplify slowly."""
    for name in names:
        np.testing.assert_allclose(one[name][:, :3], other[name][:, :3], rtol=1e-4, atol=1e-4)
    for name in set(names) - {"nuts"}:
        assert np.abs(one[name] - other[name]).max() < 1e-3
    # ... and the same program in law: other draws of the same key would be far off
    assert not np.allclose(one["mala"][0, :3], one["mala"][1, :3], rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_one_eight_and_two_times_four_devices(tmp_path):
    one = run(tmp_path, 1)
    for other in (run(tmp_path, 8), run(tmp_path, 4, processes=2)):
        assert_same_draws(one, other, ("mala", "nuts", "mlp"))


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 has a flag for it")
def test_elementwise_energies_give_the_same_bits_without_contraction(tmp_path):
    flags = "--xla_cpu_max_isa=AVX"
    one = run(tmp_path, 1, flags=flags)
    for other in (run(tmp_path, 8, flags=flags), run(tmp_path, 4, processes=2, flags=flags)):
        for name in ("mala", "nuts", "warmed", "long", "blackjax"):
            assert one[name].tobytes() == other[name].tobytes(), name
        assert_same_draws(one, other, ("mlp",))
        # NumPyro's NUTS takes its inner products by matrix routines: rounding, amplified over warm-up
        assert np.median(np.abs(one["numpyro"] - other["numpyro"])) < 1e-3


RESUMED = """
import sys, jax, jax.numpy as jnp, numpy as np
import ebm_ppl as ebm
from ebm_ppl.sampling import _checkpoint
_checkpoint.MIN_SECONDS = 0.0
energy, mesh = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2)), jax.make_mesh((4,), ("chains",))
settings = {"num_chains": 8, "num_warmup": 60, "num_samples": 100, "progress_bar": False, "mesh": mesh}
whole = ebm.sample(energy, key=jax.random.key(0), **settings)
save, count = _checkpoint.Checkpoint.save, iter(range(1000))
def killed(self, *args):
    save(self, *args)
    if next(count) == 4:
        raise InterruptedError
_checkpoint.Checkpoint.save = killed
try:
    ebm.sample(energy, key=jax.random.key(0), checkpoint=sys.argv[1], **settings)
except InterruptedError:
    resumed = ebm.resume(sys.argv[1], energy, mesh=mesh, progress_bar=False)
    assert resumed.positions.tobytes() == whole.positions.tobytes()
    try:
        ebm.resume(sys.argv[1], energy, progress_bar=False)
    except ebm.CheckpointError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_killed_run_on_a_mesh_goes_on_to_the_same_bits_on_as_many_devices(tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(pathlib.Path(ebm.__file__).parent.parent), JAX_PLATFORMS="cpu")
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    command = [sys.executable, "-c", RESUMED, str(tmp_path / "run")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    assert "it differs in devices" in run.stdout


def test_a_mesh_of_one_device_changes_nothing():
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    settings = {"key": jax.random.key(0), "num_chains": 3, "num_warmup": 60, "num_samples": 20, "progress_bar": False}
    alone, meshed = ebm.sample(energy, **settings), ebm.sample(energy, mesh=jax.make_mesh((1,), ("a",)), **settings)
    np.testing.assert_allclose(meshed.positions, alone.positions, rtol=1e-5, atol=1e-5)
    assert meshed.settings["device"] == "1 cpu devices of 1 process(es)"


def test_a_bad_mesh_is_refused():
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    with pytest.raises(TypeError, match=r"make_mesh"):
        ebm.sample(energy, key=jax.random.key(0), mesh=jax.devices())
