"""Slowest ESS and worst R-hat while a run is going on: on the host, from sums, at a price that no one notices."""

import numpy as np

from ebm_ppl.sampling._problems import ZERO_ACCEPTANCE_STEPS

MAX_CHAINS = MAX_COORDINATES = 16  # looked at, evenly spread over all there are
MAX_BATCHES = 128  # neighbours are merged beyond it: memory does not grow with the run
MIN_BATCHES = 16  # before that many there is nothing to say


class LiveDiagnostics:
    """Batch means of a few coordinates of a few chains, with batches that double in length as the run grows.

    The effective sample size of a chain is n s^2 / (b v): s^2 the variance of its n draws, v that of the means of its
    batches of b. It is too large while batches are shorter than the chain's memory; `ebm.diagnose` judges afterwards.
    R-hat is the classic split one, of means only.
    """

    def __init__(self) -> None:
        self._length, self._pending, self._chains, self._draws = 1, 0, 1.0, 0
        self._accepted: np.ndarray | None = None
        self._sums = self._squares = self._pending_sum = self._pending_square = np.zeros((0, 1, 1))

    def add(self, positions: np.ndarray, acceptance_rate: np.ndarray | None = None) -> None:
        """Draws `(draw, chain, *event)` that follow those seen before, and their acceptance rates."""
        self._draws += len(positions)
        if acceptance_rate is not None:
            accepted = (acceptance_rate > 0).any(0)
            self._accepted = accepted if self._accepted is None else self._accepted | accepted
        columns = positions.reshape(*positions.shape[:2], -1)
        chains, coordinates = _spread(columns.shape[1], MAX_CHAINS), _spread(columns.shape[2], MAX_COORDINATES)
        self._chains = columns.shape[1] / len(chains)
        rows = columns[:, chains][:, :, coordinates].astype(np.float64)
        if not self._sums.size and not self._pending:
            self._sums = self._squares = np.zeros((0, *rows.shape[1:]))
            self._pending_sum = self._pending_square = np.zeros(rows.shape[1:])
        while len(rows):
            space = (2 * MAX_BATCHES - len(self._sums)) * self._length - self._pending
            self._fill(rows[:space])
            rows = rows[space:]
            if len(self._sums) >= 2 * MAX_BATCHES:
                self._merge()

    def facts(self) -> dict[str, str]:
        """What a progress line shows; nothing where it is too early to tell."""
        facts = {}
        if self._accepted is not None and self._draws >= ZERO_ACCEPTANCE_STEPS and not self._accepted.all():
            facts["chains without acceptance"] = f"{(~self._accepted).sum()} of {len(self._accepted)}"
        if len(self._sums) < MIN_BATCHES:
            return facts
        ess, rhat = self.slowest_ess, self.worst_rhat
        return facts | {"slowest ESS": f"{ess:.0f}", "worst R-hat": f"{rhat:.2f}" if np.isfinite(rhat) else "undefined"}

    @property
    def slowest_ess(self) -> float:
        """Effective draws of all chains together, of the coordinate that has fewest; 0 where one did not move."""
        length, count = self._length, len(self._sums) * self._length
        mean = self._sums.sum(0) / count
        variance = np.maximum(self._squares.sum(0) / count - mean**2, 0)
        between = (self._sums / length).var(0, ddof=1)
        moved = (variance > 0) & (between > 0)
        per_chain = np.where(moved, count * variance / np.where(moved, length * between, 1), 0)
        return float(per_chain.sum(0).min() * self._chains)

    @property
    def worst_rhat(self) -> float:
        """Of the coordinate whose half-chains agree least; NaN where nothing moved."""
        half = len(self._sums) // 2
        count = half * self._length
        parts = [slice(0, half), slice(half, 2 * half)]
        means = np.concatenate([self._sums[part].sum(0) / count for part in parts])
        squares = np.concatenate([self._squares[part].sum(0) / count for part in parts])
        within = np.maximum(squares - means**2, 0).mean(0)
        between = means.var(0, ddof=1)
        moved = within > 0
        return float(np.where(moved, np.sqrt(1 + between / np.where(moved, within, 1)), np.nan).max())

    def _fill(self, rows: np.ndarray) -> None:
        """Complete the pending batch, then whole batches, then a new pending one."""
        need = self._length - self._pending
        head, rest = rows[:need], rows[need:]
        self._pending_sum = self._pending_sum + head.sum(0)
        self._pending_square = self._pending_square + (head**2).sum(0)
        self._pending += len(head)
        if self._pending < self._length:
            return
        whole = len(rest) // self._length * self._length
        batches = rest[:whole].reshape(-1, self._length, *rest.shape[1:])
        self._sums = np.concatenate([self._sums, self._pending_sum[None], batches.sum(1)])
        self._squares = np.concatenate([self._squares, self._pending_square[None], (batches**2).sum(1)])
        tail = rest[whole:]
        self._pending_sum, self._pending_square, self._pending = tail.sum(0), (tail**2).sum(0), len(tail)

    def _merge(self) -> None:
        shape = (-1, 2, *self._sums.shape[1:])
        self._sums, self._squares = self._sums.reshape(shape).sum(1), self._squares.reshape(shape).sum(1)
        self._length *= 2


def _spread(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
