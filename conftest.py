"""One process compiles thousands of programs here; without this it runs out of memory maps and dies in the compiler."""

import gc
import pathlib

import jax

MAPS = pathlib.Path("/proc/self/maps")
MAX_MAPS = 6_000  # of 65,530 that Linux allows a process; then it holds about 3 GiB


def pytest_runtest_teardown(item, nextitem):
    """Free the compiled programs when many have come together; elsewhere than on Linux, after each file.

    What is kept is hidden from the garbage collector, which would look through millions of objects again and again.
    """
    if nextitem is not None and nextitem.path == item.path:
        return
    if not MAPS.exists() or MAPS.read_bytes().count(b"\n") > MAX_MAPS:
        jax.clear_caches()
        gc.unfreeze()
    gc.collect()
    gc.freeze()
