"""What tests of examples share: a short run as a user would start it, and the file as a module."""

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
FAST = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # nearly all of a short run is compilation
}


@functools.cache
def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_short(name, output):
    """The finished process; a warning is an error in it."""
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py"), "--short", "--output", str(output)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT, env=os.environ | FAST
    )
    assert run.returncode == 0, run.stderr
    assert "short mode" in run.stdout
    return run.stdout


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
