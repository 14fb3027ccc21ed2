"""Errors that are raised, problems that are recorded, and the one warning per kind of problem.

Raised: nothing has been computed yet (misuse, unusable input, unusable file).
Recorded: a result exists, but cannot be vouched for; it carries `Problem` entries and its `.ok` is False.
Every error also subclasses the built-in that says it best, so that a plain `except ValueError` works.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Sequence


class EbmPplError(Exception):
    """Base of every error that `ebm_ppl` raises by its own name."""


class EnergyShapeError(EbmPplError, ValueError):
    """The energy is not a scalar per event, or an event does not have the energy's `event_shape`."""


class EnergyDtypeError(EbmPplError, TypeError):
    """Positions, data or parameters have an integer or otherwise unusable dtype."""


class NonFiniteEnergyError(EbmPplError, ValueError):
    """The energy or its gradient is NaN or infinite where it must be finite."""


class NonDifferentiableEnergyError(EbmPplError, TypeError):
    """The energy has no usable gradient (rounding, `stop_gradient`, NumPy calls, reverse-mode loops)."""


class InvalidDataError(EbmPplError, ValueError):
    """Data are empty, non-numeric, non-finite or outside the support."""


class KeyArgumentError(EbmPplError, TypeError):
    """`key` is missing or is not one JAX key."""


class InsufficientMemoryError(EbmPplError, MemoryError):
    """What was asked for would not fit into memory; said before anything is allocated."""


class MissingLogNormalizerError(EbmPplError, ValueError):
    """log Z is needed here (it depends on a latent variable, or densities are compared) and was not given."""


class CheckpointError(EbmPplError, OSError):
    """A file cannot be written, read or verified. Keeps `errno` where the system gave one."""


class TrainingDivergedError(EbmPplError, RuntimeError):
    """`strict=True` and training became non-finite. Carries `result`, whose model is the last good one."""

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class ChainFailedError(EbmPplError, RuntimeError):
    """`strict=True` and a chain is unusable. Carries `result`: nothing computed is lost."""

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class LogNormalizerError(EbmPplError, RuntimeError):
    """`strict=True` and an estimate of log Z cannot be vouched for. Carries `result`: nothing computed is lost."""

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


@dataclasses.dataclass(frozen=True)
class Problem:
    """One named reason not to trust a result.

    Args:
        code: what was found, e.g. `"STUCK_CHAIN"`.
        advice: one sentence: what was found, what it means, what to try.
        chain: the chain concerned, or None for the whole result.
        value: the number that triggered it, or None.
        condition: where many conditions were treated at once, the index of the one concerned.

    Example:
        >>> from ebm_ppl import Problem
        >>> print(Problem("STUCK_CHAIN", "the chain never moved; lower step_size.", chain=2, value=1.0))
        STUCK_CHAIN (chain 2, value 1): the chain never moved; lower step_size.
    """

    code: str
    advice: str
    chain: int | None = None
    value: float | int | None = None
    condition: int | None = None

    def __str__(self) -> str:
        """`CODE (condition, chain, value): advice`."""
        where = [f"condition {self.condition}"] if self.condition is not None else []
        where += [f"chain {self.chain}"] if self.chain is not None else []
        where += [f"value {self.value:.4g}"] if self.value is not None else []
        return f"{self.code}{' (' + ', '.join(where) + ')' if where else ''}: {self.advice}"


class SamplingWarning(UserWarning):
    """The one warning per kind of problem. Has `.code`, `.chain` (all chains concerned) and `.value`."""

    def __init__(
        self,
        message: str,
        code: str = "",
        chain: tuple[int, ...] = (),
        value: float | int | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.chain, self.value = code, chain, value


def warn_problems(problems: Iterable[Problem], num_chains: int | None = None, *, stacklevel: int = 3) -> None:
    """Issue one `SamplingWarning` per code: number of chains or conditions first, then cause and advice."""
    by_code: dict[str, list[Problem]] = {}
    for problem in problems:
        by_code.setdefault(problem.code, []).append(problem)
    for code, group in by_code.items():
        chains = tuple(problem.chain for problem in group if problem.chain is not None)
        first = group[0]
        conditions = tuple(problem.condition for problem in group if problem.condition is not None)
        head = f"{_count('condition', conditions)}: " if conditions else ""
        head += f"{_count('chain', chains, num_chains)}: " if chains else ""
        message = f"{head}{code}: {first.advice}"
        warnings.warn(SamplingWarning(message, code, chains, first.value), stacklevel=stacklevel)


def _count(what: str, indices: Sequence[int], total: int | None = None) -> str:
    shown = ", ".join(str(index) for index in indices[:8]) + (", ..." if len(indices) > 8 else "")
    of = f" of {total}" if total is not None else ""
    if len(indices) > 1:
        return f"{len(indices)}{of} {what}s ({what}s {shown})"
    return f"1{of} {what}s ({what} {shown})" if of else f"1 {what} ({what} {shown})"
