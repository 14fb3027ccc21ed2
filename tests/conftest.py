"""Session-wide settings: strict JAX, deterministic keys, one compilation cache."""

import os
import pathlib
import zlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import matplotlib as mpl
import numpyro  # noqa: F401  (before any `arviz` import: see docs/conventions.md)
import pytest

mpl.use("agg")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
# Programs of one operation too: eager code compiles thousands, and most of them are needed in several files.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
# XLA's optimisation takes a third of the suite's time and pays only where a long loop follows: there a test asks for it.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="rotates every test's key")


def pytest_collection_modifyitems(config, items):
    if config.option.markexpr:
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.fixture
def key(request):
    """A key that depends on the test's name and on --seed only."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()) ^ request.config.getoption("--seed"))
