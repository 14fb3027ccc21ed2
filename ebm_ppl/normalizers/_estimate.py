"""What every estimator of log Z returns."""

import dataclasses

import numpy as np
from scipy import stats

from ebm_ppl.errors import LogNormalizerError, Problem, warn_problems


@dataclasses.dataclass(frozen=True, eq=False)
class LogNormalizerEstimate:
    r"""\(\log Z = \log \int \exp(-E(x)) dx\) in nats, with its error and what speaks against it.

    For one condition (or none) the numbers are floats; for a batch of conditions they are arrays with one entry per
    condition, and `estimate[i]` is that of the i-th.

    Args:
        value: the estimate of log Z, nats.
        standard_error: of `value`, nats: Monte Carlo error for the random methods, a bound on the truncation error for
            `quadrature`; rounding is included.
        effective_sample_size: of the weights or draws behind `value`; NaN where the method has none.
        pareto_khat: tail index of the importance weights; above .7 their mean is not to be trusted. NaN where the
            method has no weights.
        method: the name of the function that made it.
        problems: named reasons not to trust it.
        degrees_of_freedom: of `standard_error`, where that is itself estimated from few replicates; `interval` then
            uses Student's t.
        bounds: (lower, upper): stochastic bounds of log Z where the method has them, nats. A sandwich, no interval:
            each holds in expectation.
        parts: the estimates that were compared, where there were several.

    Example:
        >>> import ebm_ppl as ebm
        >>> estimate = ebm.LogNormalizerEstimate(1.84, 0.01, 900.0, 0.2, "importance", ())
        >>> estimate
        log Z = 1.84 +- 0.01 nats (importance, effective sample size 900, k-hat 0.20)
        >>> low, high = estimate.interval(0.9)
        >>> print(f"{low:.4f} {high:.4f} {estimate.ok}")
        1.8236 1.8564 True

    References:
        Gelman, Meng (1998). Simulating normalizing constants: from importance sampling to bridge sampling to path
        sampling. Statistical Science 13(2), 163-185. doi:10.1214/ss/1028905934
    """

    value: float | np.ndarray
    standard_error: float | np.ndarray
    effective_sample_size: float | np.ndarray
    pareto_khat: float | np.ndarray
    method: str
    problems: tuple[Problem, ...] = ()
    degrees_of_freedom: float = float("inf")
    bounds: tuple[float | np.ndarray, float | np.ndarray] | None = None
    parts: tuple["LogNormalizerEstimate", ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found against it."""
        return not self.problems

    def interval(self, probability: float = 0.9) -> tuple[float | np.ndarray, float | np.ndarray]:
        """The central interval of this coverage: `value` -+ a quantile times `standard_error`, nats.

        Raises:
            ValueError: if `probability` is not between 0 and 1.
        """
        if not 0 < probability < 1:
            raise ValueError(f"`probability` must be between 0 and 1; got {probability!r}.")
        quantile = float(stats.t.isf((1 - probability) / 2, self.degrees_of_freedom))
        return self.value - quantile * self.standard_error, self.value + quantile * self.standard_error

    def __len__(self) -> int:
        """Number of conditions; a single estimate has no length."""
        if np.ndim(self.value) == 0:
            raise TypeError("an estimate for one condition has no len().")
        return len(np.asarray(self.value))

    def __getitem__(self, index: int) -> "LogNormalizerEstimate":
        """The estimate for one condition of a batch."""
        size = len(self)
        position = range(size)[index]

        def pick(numbers: float | np.ndarray) -> float:
            return float(np.asarray(numbers)[position])

        return dataclasses.replace(
            self,
            value=pick(self.value),
            standard_error=pick(self.standard_error),
            effective_sample_size=pick(self.effective_sample_size),
            pareto_khat=pick(self.pareto_khat),
            problems=tuple(
                dataclasses.replace(problem, condition=None)
                for problem in self.problems
                if problem.condition in (None, position)
            ),
            bounds=None if self.bounds is None else (pick(self.bounds[0]), pick(self.bounds[1])),
            parts=tuple(part if np.ndim(part.value) == 0 else part[index] for part in self.parts),
        )

    def __repr__(self) -> str:
        """Value, error, method, the weights' health, problems."""
        if np.ndim(self.value) > 0:
            lines = [f"{len(self)} conditions:"] + [f"  [{i}] {self[i]!r}" for i in range(min(len(self), 8))]
            return "\n".join(lines + (["  ..."] if len(self) > 8 else []))
        about = [self.method]
        if np.isfinite(self.effective_sample_size):
            about.append(f"effective sample size {self.effective_sample_size:.0f}")
        if np.isfinite(self.pareto_khat):
            about.append(f"k-hat {self.pareto_khat:.2f}")
        if self.bounds is not None:
            about.append(f"sandwich {self.bounds[0]:.6g} to {self.bounds[1]:.6g}")
        text = f"log Z = {self.value:.6g} +- {self.standard_error:.2g} nats ({', '.join(about)})"
        return "\n".join([text, *(f"  {problem}" for problem in self.problems)])


def finish(estimate: LogNormalizerEstimate, *, batched: bool, strict: bool) -> LogNormalizerEstimate:
    """Unbatch where one condition was asked for; warn once per kind of problem, or raise with `strict`."""
    estimate = estimate if batched else estimate[0]
    if estimate.problems and strict:
        raise LogNormalizerError("; ".join(map(str, estimate.problems)), estimate)
    warn_problems(estimate.problems, stacklevel=4)
    return estimate
