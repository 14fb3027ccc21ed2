"""One process compiles thousands of programs here; without this it runs out of memory maps and dies in the compiler."""

import jax


def pytest_runtest_teardown(item, nextitem):
    """Free the compiled programs of a file when its last test has run; the disk cache keeps what others share."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()
