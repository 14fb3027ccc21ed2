"""What the metrics of a finished run say against it, by the names that objectives report them under.

`acceptance_rate`, `nonfinite_negatives` and `energy_gap` are those of contrastive and persistent contrastive
divergence; an objective that reports metrics of these names is judged by them too.
"""

import numpy as np

from ebm_ppl.errors import Problem

MIN_STEPS = 20  # shorter runs show no trend
LOWEST_ACCEPTANCE = 0.01
DRIFT_NATS = 10.0  # an energy gap that grows is let pass below this


def metric_problems(metrics: dict[str, np.ndarray]) -> tuple[Problem, ...]:
    """Problems found in metrics `(step,)`: `NEGATIVES_STUCK`, `ENERGIES_DRIFTING_APART`."""
    if len(metrics["loss"]) < MIN_STEPS:
        return ()
    found = (_not_accepted(metrics), _not_finite(metrics), _drifting_apart(metrics))
    return tuple(problem for problem in found if problem is not None)


def _last_tenth(values: np.ndarray) -> np.ndarray:
    return values[-max(MIN_STEPS // 2, len(values) // 10) :]


def _not_accepted(metrics: dict[str, np.ndarray]) -> Problem | None:
    if "acceptance_rate" not in metrics:
        return None
    rate = float(np.mean(_last_tenth(metrics["acceptance_rate"])))
    if not rate < LOWEST_ACCEPTANCE:
        return None
    advice = (
        f"the chains of the negatives accepted {100 * rate:.2g} % of their proposals in the last tenth of training: "
        "they stood still, and show nothing of the model. Lower the kernel's step_size, or the learning rate."
    )
    return Problem("NEGATIVES_STUCK", advice, value=rate)


def _not_finite(metrics: dict[str, np.ndarray]) -> Problem | None:
    if "nonfinite_negatives" not in metrics:
        return None
    counts = _last_tenth(metrics["nonfinite_negatives"])
    if not np.mean(counts > 0) > 0.5:
        return None
    advice = (
        f"in the last tenth of training {np.mean(counts):.3g} chains of the negatives a step met an energy or gradient "
        "that is not finite. Lower the kernel's step_size; look at the energy far from the data."
    )
    return Problem("NEGATIVES_STUCK", advice, value=float(np.mean(counts)))


def _drifting_apart(metrics: dict[str, np.ndarray]) -> Problem | None:
    """Over the last half of training the gap kept its sign and grew from fifth to fifth, by half at least."""
    gap = metrics.get("energy_gap")
    if gap is None:
        return None
    gap = gap.astype(np.float64)  # where training ends in overflow, sums in single precision would too
    fifths = np.array([np.mean(part) for part in np.array_split(gap[len(gap) // 2 :], 5)])
    size = np.abs(fifths)
    one_sided = bool(np.all(np.sign(fifths) == np.sign(fifths[-1])))
    if not (one_sided and np.all(np.diff(size) > 0) and size[-1] > max(DRIFT_NATS, 1.5 * size[0])):
        return None
    advice = (
        f"the mean energies of data and negatives went further and further apart, to {fifths[-1]:.3g} nats at the end: "
        "the chains do not follow the model, or it has no lower bound. Lower the learning rate, take more num_steps or "
        "a larger step_size, or add an explicit penalty (EnergyMagnitudePenalty, weight decay)."
    )
    return Problem("ENERGIES_DRIFTING_APART", advice, value=float(fifths[-1]))
