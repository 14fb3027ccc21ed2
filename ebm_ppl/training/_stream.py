"""Data that come batch by batch from any iterable: checked, and fetched while the device is at work."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ebm_ppl.errors import EnergyDtypeError, EnergyShapeError, InvalidDataError, Problem
from ebm_ppl.objectives import Batch
from ebm_ppl.training._loop import Chunk, Setup, TrainState, advance_by, open_chunk
from ebm_ppl.training._programs import Programs

IN_FLIGHT = 4  # batches that may wait on the device: bounds its memory


def is_stream(data: Any) -> bool:
    """Whether `data` are batches to come rather than an array: iterable, but neither array, sequence nor text."""
    if hasattr(data, "shape") or hasattr(data, "__array__") or isinstance(data, list | tuple | str | bytes | dict):
        return False
    return isinstance(data, Iterable)


class StreamEndedError(Exception):
    """No more batches; carries the problem that says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.advice)
        self.problem = problem


class Stream:
    """Checked batches on the device, the next one fetched in a thread meanwhile.

    An iterable that can be gone through again (a data loader) is, once it ends; an iterator ends for good.

    Args:
        source: the user's iterable of `data` or `(data, condition)`.
        check: turns what it gives into a batch, or raises.
        place: puts a batch on the device or devices.
    """

    def __init__(self, source: Iterable[Any], check: Callable[[Any], Batch], place: Callable[[Batch], Batch]) -> None:
        self._source, self._check, self._place = source, check, place
        self._iterator: Iterator[Any] = iter(source)
        self._again = self._iterator is not source
        self._count = 0
        self._first: Batch | None = None
        self._executor = ThreadPoolExecutor(1, "ebm_ppl-batches")
        self._pending: Future[Batch] | None = None

    def peek(self) -> Batch:
        """The first batch, which is not used up by this. What is wrong with it is raised.

        Raises:
            InvalidDataError: if there is none.
        """
        if self._first is None:
            try:
                raw = next(self._iterator)
            except StopIteration:
                raise InvalidDataError("`data` is an iterable without batches.") from None
            self._first = self._check(raw)
        return self._first

    def skip(self, count: int) -> None:
        """Pass over the first batches: a resumed run has used them."""
        for _ in range(count):
            self._fetch(use=False)

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            StreamEndedError: there is none, or it cannot be used.
        """
        pending = self._executor.submit(self._fetch) if self._pending is None else self._pending
        self._pending = None
        batch = pending.result()
        self._pending = self._executor.submit(self._fetch)
        return batch

    def close(self) -> None:
        """Let go of the thread; a batch that is being fetched is waited for."""
        self._executor.shutdown(cancel_futures=True)

    def _fetch(self, *, use: bool = True) -> Any:
        """The next batch, checked and placed; passed over where it is not to be used."""
        index = self._count
        self._count += 1
        if index == 0 and self._first is not None:
            return self._place(self._first) if use else None
        try:
            raw = self._next_raw()
            return self._place(self._same_kind(self._check(raw))) if use else None
        except StopIteration:
            advice = (
                f"`data` ended after {index} batches, and with it training. Pass an iterable that can be gone through "
                "again (with __iter__, not a generator), or an endless iterator (itertools.cycle)."
            )
            raise StreamEndedError(Problem("DATA_EXHAUSTED", advice, value=index)) from None
        except Exception as error:  # the user's code may raise anything; what was learned until then is kept
            advice = (
                f"batch {index} of `data` cannot be used, and training ended there: {type(error).__name__}: {error}"
            )
            raise StreamEndedError(Problem("DATA_FAILED", advice, value=index)) from error

    def _next_raw(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            if not self._again:
                raise
            self._iterator = iter(self._source)
            return next(self._iterator)

    def _same_kind(self, batch: Batch) -> Batch:
        found, first = jax.tree.leaves(batch), jax.tree.leaves(self._first)
        for one, other in zip(found, first, strict=True):
            if one.dtype != other.dtype:
                raise EnergyDtypeError(f"its dtype is {one.dtype}, that of the first batch {other.dtype}.")
        return batch


def batch_from(raw: Any, check: Callable[[Any, Any], Batch]) -> Batch:
    """What an iterable gave, as a batch: `data`, `(data,)` or `(data, condition)`; lists of arrays count as tuples."""
    parts = raw if isinstance(raw, list | tuple) and all(np.ndim(part) > 0 for part in raw) else (raw,)
    if isinstance(raw, dict) or not 1 <= len(parts) <= 2:
        raise EnergyShapeError(f"a batch must be `data` or (data, condition); got {type(raw).__name__} of {len(raw)}.")
    return check(parts[0], parts[1] if len(parts) == 2 else None)


def advance_along(
    programs: Programs, stream: Stream, setup: Setup, state: TrainState, stop: Array
) -> tuple[Chunk | None, tuple[Problem, ...]]:
    """Steps `state.step` to `stop`, a batch of the stream each; why there were fewer."""
    first, chunk = state.step, None
    waiting: collections.deque[Array] = collections.deque()
    for _ in range(int(stop) - int(first)):
        try:
            batch = next(stream)
        except StreamEndedError as ended:
            return chunk, (ended.problem,)
        chunk = programs(open_chunk, setup, state, batch) if chunk is None else chunk
        chunk = programs(advance_by, setup, chunk, first, stop, batch)
        waiting.append(chunk.finite)
        if len(waiting) > IN_FLIGHT:
            waiting.popleft().block_until_ready()
    return chunk, ()
