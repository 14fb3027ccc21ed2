"""Chunks of about a second: long enough to cost nothing, short enough for progress and Ctrl-C."""

import contextlib
import time
from collections.abc import Iterator

CHUNK_SECONDS = 1.0
FIRST_CHUNK = 16  # steps of the first chunk, whose time is spent on compilation and says nothing


class Pace:
    """How many steps fill about a second, learnt from the chunks already run."""

    def __init__(self) -> None:
        self.count, self._compiled = FIRST_CHUNK, False

    @contextlib.contextmanager
    def timed(self, count: int) -> Iterator[None]:
        """Time one chunk of `count` steps; the first one compiles and says nothing."""
        started = time.perf_counter()
        yield
        if self._compiled:
            seconds = max(time.perf_counter() - started, 1e-6)
            self.count = max(1, min(int(count * CHUNK_SECONDS / seconds), 8 * self.count))
        self._compiled = True
