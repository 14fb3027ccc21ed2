"""The host side of `sample`: chunks, progress, checkpoints, and where the draws are gathered."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ebm_ppl._progress import Interruption, Progress, deferred_interrupt
from ebm_ppl.energies._support import describe_support
from ebm_ppl.errors import Problem
from ebm_ppl.kernels import AbstractKernel
from ebm_ppl.kernels._base import with_step_size
from ebm_ppl.sampling._checkpoint import Checkpoint, Piece
from ebm_ppl.sampling._draws import Draws
from ebm_ppl.sampling._fingerprint import kernel_fingerprint
from ebm_ppl.sampling._live import LiveDiagnostics
from ebm_ppl.sampling._mesh import agreed, place_chains, to_host
from ebm_ppl.sampling._pace import Pace
from ebm_ppl.sampling._problems import find_problems
from ebm_ppl.sampling._run_chains import (
    Chains,
    ChainTarget,
    chain_keys,
    chunk_capacity,
    close_slow_window,
    close_warmup,
    draw,
    learnt_scales,
    start_chains,
    tunes,
    warm_up,
)
from ebm_ppl.sampling._store import DrawStore
from ebm_ppl.sampling._warmup import warmup_windows


@dataclasses.dataclass
class Journey:
    """Where a run stands: all that is needed to go on, and what it has brought so far."""

    chains: Chains
    warmed: int = 0
    warm: bool = False
    pieces: list[Piece] = dataclasses.field(default_factory=list)
    stored: int = 0  # draws of each chain that are on disk instead

    @property
    def drawn(self) -> int:
        """Draws of each chain so far."""
        return self.stored + sum(len(positions) for positions, _ in self.pieces)


@dataclasses.dataclass
class Run:
    """One call of `sample` or `resume`."""

    kernel: AbstractKernel
    target: ChainTarget
    positions: Array
    key: Array
    precondition: str
    pool_warmup: bool
    num_chains: int
    num_warmup: int
    num_samples: int
    thinning: int
    redrawn_starts: int = 0
    checkpoint: Checkpoint | None = None
    store: DrawStore | None = None
    init_strategy: str = "uniform"
    unfinished_searches: int = 0

    def begin(self) -> Journey:
        """All chains at their starting positions."""
        positions = place_chains(self.positions, self.target.mesh)
        chains = start_chains(
            self.kernel, self.target, positions, self._keys, tune=self._tune, precondition=self.precondition
        )
        return Journey(chains, warm=not self._tune and self.num_warmup == 0)

    def go(self, journey: Journey | None = None, *, progress_bar: bool) -> Draws:
        """Warm up, draw, judge; from `journey` on where one is given."""
        started = time.perf_counter()
        keys = self._keys
        total = self.num_warmup + self.num_samples * self.thinning
        progress = Progress(
            total, "warm-up" if self.num_warmup else "sampling", enabled=progress_bar and jax.process_index() == 0
        )
        try:
            with deferred_interrupt() as interruption:
                journey = self.begin() if journey is None else journey
                progress.update(journey.warmed + journey.drawn * self.thinning)
                self._warm_up(journey, keys, progress, interruption)
                if journey.warm:
                    self._draw(journey, keys, progress, interruption)
                self._save(journey, force=True)
        finally:
            progress.close()
        return self._judge(journey, time.perf_counter() - started)

    @property
    def _keys(self) -> Array:
        return place_chains(chain_keys(self.key, self.num_chains), self.target.mesh)

    @property
    def _tune(self) -> bool:
        return tunes(self.kernel, self.num_warmup)

    def _warm_up(self, journey: Journey, keys: Array, progress: Progress, interruption: Interruption) -> None:
        pace, end = Pace(), 0
        for window in warmup_windows(self.num_warmup):
            end += window.num_steps
            slow = window.slow and self._tune and self.precondition != "none"
            while journey.warmed < end:
                count, stop = agreed(min(end - journey.warmed, pace.count), interruption.requested, self.target.mesh)
                if stop:
                    return
                with pace.timed(count):
                    first, steps = _int32(journey.warmed), _int32(count)
                    journey.chains, rate = warm_up(
                        self.kernel, self.target, journey.chains, keys, first, steps, jnp.asarray(slow)
                    )
                    rate = to_host(rate)
                journey.warmed += count
                if slow and journey.warmed == end:
                    journey.chains = close_slow_window(
                        self.kernel, self.target, journey.chains, keys, _int32(end), pool=self.pool_warmup
                    )
                self._save(journey)
                step_size = float(np.mean(to_host(journey.chains.chain.step_size)))
                progress.update(count, acceptance=f"{rate.mean():.2f}", step_size=f"{step_size:.2e}")
        if not journey.warm:
            if self._tune:
                journey.chains = close_warmup(self.kernel, journey.chains, pool=self.pool_warmup)
            journey.warm = True

    def _draw(self, journey: Journey, keys: Array, progress: Progress, interruption: Interruption) -> None:
        progress.relabel("sampling")
        pace, done = Pace(), journey.drawn
        nonfinite = sum(int(stats["nonfinite_proposal"].sum()) for _, stats in journey.pieces)
        live = LiveDiagnostics()
        while done < self.num_samples:
            most = min(self.num_samples - done, pace.count, self._capacity)
            count, stop = agreed(most, interruption.requested, self.target.mesh)
            if stop:
                break
            with pace.timed(count):
                piece = self._chunk(journey, keys, done, count)
            journey.pieces.append(piece)
            done += count
            self._save(journey)
            _, stats = piece
            facts = {"step_size": f"{stats['step_size'][-1].mean():.2e}"}
            nonfinite += int(stats["nonfinite_proposal"].sum())
            facts["non-finite"] = str(nonfinite)
            if "acceptance_rate" in stats:
                facts["acceptance"] = f"{stats['acceptance_rate'].mean():.2f}"
            if progress.enabled:
                live.add(piece[0], stats.get("acceptance_rate"))
                facts |= live.facts()
            progress.update(count * self.thinning, **facts)

    @property
    def _device(self) -> str:
        mesh = self.target.mesh
        if mesh is None:
            return str(next(iter(self.positions.devices())))
        return f"{mesh.devices.size} {mesh.devices.flat[0].platform} devices of {jax.process_count()} process(es)"

    @property
    def _capacity(self) -> int:
        shape, itemsize = self.target.density.coordinates.packed_shape, self.positions.dtype.itemsize
        return chunk_capacity(self.num_samples, self.num_chains, shape, itemsize)

    def _chunk(self, journey: Journey, keys: Array, done: int, count: int) -> Piece:
        """`count` more draws, on the host, as `(draw, chain, ...)`."""
        journey.chains, positions, stats = draw(
            self.kernel,
            self.target,
            journey.chains,
            keys,
            _int32(self.num_warmup + done * self.thinning),
            _int32(count),
            capacity=self._capacity,
            thinning=self.thinning,
        )
        copy = self.store is None  # what is kept must not keep the whole buffer; what is written need not be copied
        return jax.tree.map(lambda rows: np.array(to_host(rows)[:count], copy=copy or None), (positions, stats))

    def _save(self, journey: Journey, *, force: bool = False) -> None:
        if self.store is not None:
            for piece in journey.pieces:
                self.store.append(*piece)
            journey.pieces, journey.stored = [], self.store.drawn
        if self.checkpoint is not None and (force or self.checkpoint.due):
            if self.store is not None:
                self.store.sync()
                self.checkpoint.store = self.store.record()
            self.checkpoint.save(journey.chains, journey.warmed, journey.warm, journey.pieces)

    def _judge(self, journey: Journey, seconds: float) -> Draws:
        chains, warmed = journey.chains, journey.warmed
        # Interrupted before the first chunk: an empty result of the right shapes.
        if journey.drawn == 0:
            journey.pieces = [self._chunk(Journey(chains), self._keys, 0, 0)]
        gathered, stats = self._gather(journey)
        problems = find_problems(gathered, stats, self.kernel, num_warmup=self.num_warmup, thinning=self.thinning)
        if gathered.shape[1] < self.num_samples:
            advice = f"stopped by the user after {warmed} of {self.num_warmup} warm-up steps "
            advice += f"and {gathered.shape[1]} of {self.num_samples} draws."
            problems.append(Problem("INTERRUPTED", advice, None, gathered.shape[1]))
        step_size = to_host(chains.chain.step_size).mean()
        kernel = with_step_size(self.kernel, float(step_size))
        scale, settings = to_host(learnt_scales(chains)), self._settings(seconds)
        if self.store is not None:
            facts = {"settings": settings, "problems": [dataclasses.asdict(problem) for problem in problems]}
            self.store.close(facts | {"kernel": kernel_fingerprint(kernel)}, scale)
            gathered, stats = self.store.maps()
        positions = self.target.density.coordinates.unpack(gathered)
        return Draws(positions, stats, kernel, tuple(problems), settings, scale)

    def _gather(self, journey: Journey) -> tuple[Any, dict[str, Any]]:
        """All draws and statistics as `(chain, draw, ...)`; with a store, read where they are looked at."""
        if self.store is None:
            return jax.tree.map(lambda *parts: np.swapaxes(np.concatenate(parts), 0, 1), *journey.pieces)
        self._save(journey)
        return self.store.arrays()

    def _settings(self, seconds: float) -> dict[str, Any]:
        return {
            "num_chains": self.num_chains,
            "num_warmup": self.num_warmup,
            "num_samples": self.num_samples,
            "thinning": self.thinning,
            "precondition": self.precondition,
            "pool_warmup": self.pool_warmup,
            "kernel": type(self.kernel).__name__,
            "adjusted": self.kernel.adjusted,
            "energy": self.target.density.name.split("(", maxsplit=1)[0],
            "event_shape": _as_json(self.target.density.coordinates.event_shape),
            "support": describe_support(self.target.density.coordinates.support),
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "device": self._device,
            "seconds": round(seconds, 3),
            "init_strategy": self.init_strategy,
            "redrawn_starts": self.redrawn_starts,
            "unfinished_searches": self.unfinished_searches,
        } | ({} if self.kernel.stated_bias is None else {"stated_bias": self.kernel.stated_bias})


def _as_json(event_shape: Any) -> Any:
    if isinstance(event_shape, Mapping):
        return [[name, list(shape)] for name, shape in event_shape.items()]  # JSON objects lose their order
    return list(event_shape)


def _int32(value: int) -> Array:
    return jnp.asarray(value, jnp.int32)
