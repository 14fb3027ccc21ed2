"""The draws do not depend, up to rounding, on how many devices or processes hold the chains."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm

SCRIPT = pathlib.Path(__file__).parent / "mesh_script.py"


def run(tmp_path, devices, processes=1):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = pathlib.Path(ebm.__file__).parent.parent
    flags = f"--xla_force_host_platform_device_count={devices}"
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


def assert_same_draws(one, other):
    """The layout changes the shapes that XLA vectorises, hence rounding, which the chains then amplify slowly."""
    for name in one:
        np.testing.assert_allclose(one[name][:, :3], other[name][:, :3], rtol=1e-4, atol=1e-4)
    assert np.abs(one["mala"] - other["mala"]).max() < 1e-3
    # ... and the same program in law: other draws of the same key would be far off
    assert not np.allclose(one["mala"][0, :3], one["mala"][1, :3], rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_one_eight_and_two_times_four_devices(tmp_path):
    one = run(tmp_path, 1)
    assert_same_draws(one, run(tmp_path, 8))
    assert_same_draws(one, run(tmp_path, 4, processes=2))


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
