"""Training spread over devices is training on one, up to rounding."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import ebm_ppl as ebm
from ebm_ppl.objectives import DenoisingScoreMatching
from tests.objectives.estimation import isotropic_energy

SCRIPT = pathlib.Path(__file__).parent / "mesh_script.py"
DATA = np.linspace(-2, 2, 40, dtype=np.float32)[:, None]
OPTIMIZER = optax.sgd(0.1)


def fit(**settings):
    settings = {"key": jax.random.key(7), "optimizer": OPTIMIZER, "num_steps": 30, "progress_bar": False} | settings
    return ebm.fit(isotropic_energy(0.3), settings.pop("data", DATA), DenoisingScoreMatching(0.5), **settings)


@pytest.mark.slow
def test_four_devices_learn_what_one_does(tmp_path):
    flags = "--xla_force_host_platform_device_count=4"
    root = str(pathlib.Path(ebm.__file__).parent.parent)
    environment = dict(os.environ, PYTHONPATH=root, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    command = [sys.executable, "-W", "error", str(SCRIPT), "4", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_a_mesh_of_one_device_changes_nothing():
    """Also a mesh with explicit axes, which `jax.make_mesh` makes, and one of two axes."""
    alone = fit()
    for mesh in (jax.make_mesh((1,), ("batch",)), jax.make_mesh((1, 1), ("a", "b"))):
        spread = fit(mesh=mesh, validation=None)
        np.testing.assert_allclose(spread.metrics["loss"], alone.metrics["loss"], rtol=1e-5)
        assert spread.settings["num_devices"] == 1


def test_a_bad_mesh_is_refused():
    with pytest.raises(TypeError, match=r"`mesh` must be a jax.sharding.Mesh, e.g. jax.make_mesh"):
        fit(mesh=jax.devices())
