"""The example of the learned noise as a user runs it, and the parts of it that could be wrong unseen."""

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import ebm_ppl as ebm

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "03_learned_noise.py"
FAST = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # nearly all of a short run is compilation
}


@functools.cache
def example():
    spec = importlib.util.spec_from_file_location("learned_noise", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_short_run_compares_refuses_and_concludes_nothing(tmp_path):
    command = [sys.executable, str(EXAMPLE), "--short", "--output", str(tmp_path / "new")]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT, env=os.environ | FAST
    )
    assert run.returncode == 0, run.stderr
    for text in (
        "refused: MissingLogNormalizerError",
        "Learned noise minus rival",
        "Pareto k",
        "verdict: ",
        "short mode",
    ):
        assert text in run.stdout
    assert "Against" not in run.stdout  # no verdict on the rivals
    assert (tmp_path / "new" / "learned_noise.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    tree = ebm.diagnostics.load_datatree(tmp_path / "new" / "learned_noise.nc")
    assert tree["log_likelihood"]["wait"].shape == (4, example().SHORT.num_samples, 148)


def test_small_and_uncertain_differences_say_nothing():
    verdict = example().verdict
    assert verdict(30.0, 8.0).endswith("better")
    assert verdict(-30.0, 8.0).endswith("worse")
    assert verdict(30.0, 16.0) == verdict(-3.9, 0.1) == "no difference"


def test_the_transform_is_the_distribution_function_at_the_middle_of_a_minute():
    module = example()
    density = np.tile(np.where(module.GRID < 60.5, 1.0, 0.0), (2, 1))  # uniform on the minutes 20.5 to 59.5
    pit = module.probability_integral_transform(density, np.array([40.0, 200.0]))
    assert pit == pytest.approx([20 / 40, 1.0])
