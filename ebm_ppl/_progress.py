"""Progress and interruption of long work: one mechanism, the chunk, for sampling and for training."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm

PLAIN_INTERVAL = 10.0  # seconds between plain lines where there is no terminal


def _interactive(stream: Any) -> bool:
    notebook = "ipykernel" in sys.modules
    return notebook or (stream.isatty() and not os.environ.get("CI"))


class Progress:
    """A bar in a terminal or notebook; one plain line per 10 s, without control codes, elsewhere.

    Args:
        total: units of work.
        label: what is being done.
        unit: one unit of work.
        enabled: False shows nothing.
        stream: where to write; standard error by default.
    """

    def __init__(self, total: int, label: str, *, unit: str = "step", enabled: bool = True, stream: Any = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total, self._label, self._unit, self._done = total, label, unit, 0
        self._started = self._last = time.monotonic()
        self._plain = enabled and not _interactive(self._stream)
        self._bar = None
        if enabled and not self._plain:
            self._bar = tqdm(total=total, desc=label, unit=unit, file=self._stream, dynamic_ncols=True)

    @property
    def enabled(self) -> bool:
        """Whether anything is shown."""
        return self._plain or self._bar is not None

    def update(self, count: int, **facts: str) -> None:
        """`count` more units are done; `facts` are shown beside the bar."""
        self._done += count
        text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(count)
        elif self._plain and time.monotonic() - self._last >= PLAIN_INTERVAL:
            self._last = time.monotonic()
            left = (self._last - self._started) / max(self._done, 1) * (self._total - self._done)
            line = f"{self._label}: {self._done}/{self._total} {self._unit}s, {left:.0f} s left"
            self._stream.write(f"{line}, {text}\n" if text else f"{line}\n")
            self._stream.flush()

    def relabel(self, label: str) -> None:
        """Another phase of the same work."""
        self._label = label
        if self._bar is not None:
            self._bar.set_description_str(label, refresh=False)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()


class Interruption:
    """Set once Ctrl-C was pressed; work stops at the next chunk and returns what it has."""

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Interruption]:
    """Turn the first Ctrl-C into a request to stop after the current chunk; the second one raises.

    Outside the main thread signals cannot be caught: there the request is simply never made.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def handle(signum: int, frame: object) -> None:
        if interruption.requested:
            raise KeyboardInterrupt
        interruption.requested = True

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, previous)
