"""The tests of Gandy and Scott: fresh draws against draws after many steps, ranks along a chain, sequential control."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from ebm_ppl.diagnostics._family import Finding


def two_sample_test(
    after: Float[np.ndarray, "n feature"], fresh: Float[np.ndarray, "m feature"], names: Sequence[str]
) -> Finding:
    """Kolmogorov-Smirnov for every feature, Bonferroni over them: x_T against fresh draws (their algorithm 1).

    For composites and irreversible kernels: it needs nothing but invariance. arXiv:2001.06465 (2020).
    """
    if not (np.isfinite(after).all() and np.isfinite(fresh).all()):
        return Finding("two_sample", "invariance", np.inf, 0.0, detail="a statistic is not finite")
    results: list[Any] = [stats.ks_2samp(a, b, method="asymp") for a, b in zip(after.T, fresh.T, strict=True)]
    p_values = np.array([result.pvalue for result in results])
    best = int(p_values.argmin())
    p_value = min(1.0, len(p_values) * float(p_values[best]))
    detail = f"largest of {len(p_values)}: {names[best]}"
    return Finding("two_sample", "invariance", float(results[best].statistic), p_value, detail=detail)


def rank_test(
    start: Float[np.ndarray, "n feature"],
    one_way: Float[np.ndarray, "step n feature"],
    other_way: Float[np.ndarray, "step n feature"],
    names: Sequence[str],
    rng: np.random.Generator,
) -> Finding:
    """The place of x_0 in a stretch of a stationary reversible chain is uniform (their algorithm 2; Besag, Clifford).

    x_0 is put at a random place of L = 1 + number of steps; what lies before it comes from `one_way`, the rest from
    `other_way`. The rank of f(x_0) among the L is then uniform, ties broken at random: chi-squared over the pairs.
    """
    if not (np.isfinite(one_way).all() and np.isfinite(other_way).all()):
        return Finding("rank", "reversibility", np.inf, 0.0, detail="a statistic is not finite")
    num_steps, count, _ = one_way.shape
    place = rng.integers(0, num_steps + 1, count)
    step = np.arange(num_steps)[:, None]
    used = np.stack([step < place, step < num_steps - place])[..., None]
    paths = np.stack([one_way, other_way])
    below = ((paths < start) & used).sum(axis=(0, 1))
    ties = ((paths == start) & used).sum(axis=(0, 1))
    ranks = below + rng.integers(0, ties + 1)
    counts = np.stack([(ranks == rank).sum(axis=0) for rank in range(num_steps + 1)])
    expected = count / (num_steps + 1)
    chi2 = ((counts - expected) ** 2 / expected).sum(axis=0)
    best = int(chi2.argmax())
    p_value = min(1.0, len(chi2) * float(stats.chi2.sf(chi2[best], num_steps)))
    detail = f"largest of {len(chi2)}: {names[best]}; chi-squared, {num_steps} degrees of freedom"
    return Finding("rank", "reversibility", float(chi2[best]), p_value, detail=detail)


class SequentialControl:
    """Their algorithm 3: repeat the tests with fresh draws until they speak clearly; errs with probability `level`.

    With b = level / max_rounds and g = b^(1 / max_rounds), a round rejects if q = m min p <= b, ends without
    rejection if q > g + b, and is otherwise repeated with b / g in place of b; the second round has four times as
    many pairs. Under the hypothesis 1.7 rounds are needed on average.
    """

    growth = 4

    def __init__(self, level: float, max_rounds: int) -> None:
        self.threshold = level / max_rounds
        self._ratio = self.threshold ** (1 / max_rounds)
        self._max_rounds, self.round = max_rounds, 1

    def goes_on(self, p_values: Sequence[float] | Float[np.ndarray, " test"]) -> bool:
        """Whether another round is needed; `threshold` is what the last round was, or the next will be, judged by."""
        q = min(p_values, default=1.0) * len(p_values)
        if q <= self.threshold or q > self._ratio + self.threshold or self.round == self._max_rounds:
            return False
        self.round += 1
        self.threshold /= self._ratio
        return True
