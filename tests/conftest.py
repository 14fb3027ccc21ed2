"""Session-wide settings: strict JAX, deterministic keys, one compilation cache."""

import gc
import os
import pathlib
import zlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import matplotlib as mpl
import numpyro  # noqa: F401  (before any `arviz` import: see docs/conventions.md)
import pytest

from tests import checked_once

checked_once.install()
mpl.use("agg")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
# Programs of one operation too: eager code compiles thousands, and most of them are needed in several files.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
# XLA's optimisation takes a third of the suite's time, and pays only where a long loop follows: tests ask for it there.
jax.config.update("jax_disable_most_optimizations", True)
# Traces are large and live long: to look through them for garbage as often as usual takes a tenth of the time.
gc.set_threshold(50_000, 20, 20)


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="rotates every test's key")


# What takes longest goes first, and two processes end together: files of a minute or more on one core.
LONGEST = [
    "infer/test_workflow",
    "test_contract",
    "distributions/test_samplers",
    "infer/test_matrix",
    "infer/test_blackjax_kernel",
    "test_examples",
    "test_example_exchange",
    "test_example_transfer",
    "normalizers/test_estimates",
    "infer/test_exchange_kernel",
    "diagnostics/test_detailed_balance",
    "objectives/test_persistent_contrastive_divergence",
    "objectives/test_score_matching",
    "kernels/test_targets",
    "infer/test_generalized_bayes",
    "sampling/test_sample",
    "infer/test_simulation_based_calibration",
    "test_project",
]
PLACE = {pathlib.Path(__file__).parent / f"{name}.py": place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: PLACE.get(item.path, len(PLACE)))  # stable; the whole suite alike in every process
    if config.option.markexpr:
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Before the fixtures of whatever scope: what is marked `optimized` is compiled to run fast, and nothing else.

    JAX finds a program in memory however it was compiled, hence the clearing; on disk the two ways are told apart.
    """
    plain = item.get_closest_marker("optimized") is None
    if jax.config.read("jax_disable_most_optimizations") != plain:
        jax.config.update("jax_disable_most_optimizations", plain)
        jax.clear_caches()
    return (yield)


@pytest.fixture
def key(request):
    """A key that depends on the test's name and on --seed only."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()) ^ request.config.getoption("--seed"))
