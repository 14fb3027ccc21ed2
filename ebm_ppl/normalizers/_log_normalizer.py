"""Two independent estimates of log Z, compared."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from scipy import stats

from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import Problem, SamplingWarning
from ebm_ppl.normalizers._annealed_importance import annealed_importance
from ebm_ppl.normalizers._bridge import bridge
from ebm_ppl.normalizers._estimate import LogNormalizerEstimate, finish
from ebm_ppl.normalizers._importance import importance
from ebm_ppl.normalizers._inputs import check_rows
from ebm_ppl.normalizers._quadrature import quadrature
from ebm_ppl.normalizers._sequential_monte_carlo import sequential_monte_carlo
from ebm_ppl.normalizers._thermodynamic_integration import thermodynamic_integration

METHODS: dict[str, Callable[..., LogNormalizerEstimate]] = {
    "quadrature": quadrature,
    "importance": importance,
    "annealed_importance": annealed_importance,
    "sequential_monte_carlo": sequential_monte_carlo,
    "bridge": bridge,
    "thermodynamic_integration": thermodynamic_integration,
}
FROM_REFERENCE = ("annealed_importance", "sequential_monte_carlo", "thermodynamic_integration")
WITH_PROGRESS = ("bridge", "thermodynamic_integration")
SIGNIFICANCE = 1e-3  # two-sided: how often two right estimates are called in disagreement


def log_normalizer(
    energy: AbstractEnergy | Any,
    reference: Any = None,
    *,
    key: Array | Any,
    methods: Sequence[str] | Any = None,
    options: Mapping[str, Mapping[str, Any]] | Any = None,
    condition: Any = None,
    progress_bar: bool = True,
    strict: bool = False,
) -> LogNormalizerEstimate:
    r"""Log Z by two independent methods, each with its error, compared.

    The methods are chosen to fail differently. In one or two dimensions: quadrature, which misses narrow spikes, and
    sequential Monte Carlo, which misses what its reference does not cover. Above: sequential Monte Carlo and a bridge
    from chains that never saw that reference. If they differ by more than their errors allow (at the .1 % level), the
    result carries the problem `DISAGREEMENT`, and neither is to be trusted.

    Args:
        energy: E, nats.
        reference: where the annealing methods start: a reference energy, a NumPyro distribution or a FlowJAX flow; by
            default N(0, 3^2) in every coordinate. With one of bounded support they integrate over that support only.
        key: one JAX key.
        methods: names of two or more functions of `ebm.normalizers`; for modes that a plain chain cannot travel
            between, `("sequential_monte_carlo", "thermodynamic_integration")`.
        options: keyword arguments by method, e.g. `{"bridge": {"num_samples": 5000}}`.
        condition: for conditional energies: one condition, or several along a leading axis.
        progress_bar: of the methods that run chains.
        strict: raise `LogNormalizerError` (carrying the estimate) instead of warning when there is a problem.

    Returns:
        The `LogNormalizerEstimate` of the method with the smaller error, those with problems last; `parts` holds all,
        `problems` those of all.

    Raises:
        KeyArgumentError: `key` is not one JAX key.
        ValueError: an unknown method, or fewer than two.
        LogNormalizerError: `strict=True` and there is a problem.

    Example:
        >>> import jax, ebm_ppl as ebm
        >>> energy = ebm.energies.DoubleWell(2.0, dim=1)
        >>> estimate = ebm.log_normalizer(energy, key=jax.random.key(0))
        >>> print(f"{estimate.value:.4f} {estimate.ok}")
        0.3442 True
        >>> [part.method for part in estimate.parts]
        ['quadrature', 'sequential_monte_carlo']

    References:
        Gelman, Meng (1998). Simulating normalizing constants: from importance sampling to bridge sampling to path
        sampling. Statistical Science 13(2), 163-185. doi:10.1214/ss/1028905934
    """
    rows = check_rows(energy, key, condition)
    names = _check_methods(methods, rows.energy)
    options = {} if options is None else dict(options)
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise ValueError(f"`options` must be keyed by the methods {', '.join(names)}; got {', '.join(unknown)}.")
    parts = []
    for index, name in enumerate(names):
        settings: dict[str, Any] = {"key": jax.random.fold_in(rows.keys[0], index), "condition": condition}
        if name in FROM_REFERENCE:
            settings["reference"] = reference
        if name == "importance":
            settings["proposal"] = reference
        if name in WITH_PROGRESS:
            settings["progress_bar"] = progress_bar
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)  # said once, below, for all methods together
            parts.append(METHODS[name](energy, **(settings | dict(options.get(name, {})))))
    return finish(compared(parts), batched=rows.batched, strict=strict)


def _check_methods(methods: Any, energy: AbstractEnergy) -> tuple[str, ...]:
    if methods is None:
        low = math.prod(energy.event_shape) <= 2
        return ("quadrature", "sequential_monte_carlo") if low else ("sequential_monte_carlo", "bridge")
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    for name in names:
        if name not in METHODS:
            raise ValueError(f"`methods` must be among {', '.join(METHODS)}; got {name!r}.")
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ValueError(f"`methods` must name two or more different methods; got {methods!r}.")
    return names


def compared(parts: Sequence[LogNormalizerEstimate]) -> LogNormalizerEstimate:
    """The best part for every condition, with the problems of all and every disagreement."""
    values = np.stack([np.atleast_1d(part.value) for part in parts])
    errors = np.stack([np.atleast_1d(part.standard_error) for part in parts])
    problems: list[Problem] = []
    chosen = np.zeros(values.shape[1], int)
    for row in range(values.shape[1]):
        own = [[p for p in part.problems if p.condition in (None, row)] for part in parts]
        for part, found in zip(parts, own, strict=True):
            problems += [Problem(p.code, f"{part.method}: {p.advice}", p.chain, p.value, row) for p in found]
        rank = [
            (bool(found), np.inf if np.isnan(error) else error)
            for found, error in zip(own, errors[:, row], strict=True)
        ]
        chosen[row] = min(range(len(parts)), key=rank.__getitem__)
        problems += _disagreements(parts, values[:, row], errors[:, row], row)

    def pick(name: str) -> np.ndarray:
        return np.stack([np.atleast_1d(getattr(part, name)) for part in parts])[chosen, np.arange(len(chosen))]

    first = parts[int(chosen[0])]
    others = [part.method for part in parts if part is not first]
    one_choice = (chosen == chosen[0]).all()
    return LogNormalizerEstimate(
        pick("value"),
        pick("standard_error"),
        pick("effective_sample_size"),
        pick("pareto_khat"),
        f"{first.method}, checked by {', '.join(others)}" if one_choice else " or ".join(part.method for part in parts),
        tuple(problems),
        degrees_of_freedom=min(parts[index].degrees_of_freedom for index in set(chosen.tolist())),
        parts=tuple(parts),
    )


def _disagreements(
    parts: Sequence[LogNormalizerEstimate], values: np.ndarray, errors: np.ndarray, condition: int
) -> list[Problem]:
    found = []
    for i in range(len(parts)):
        for j in range(i + 1, len(parts)):
            freedom = min(parts[i].degrees_of_freedom, parts[j].degrees_of_freedom)
            limit = float(stats.t.isf(SIGNIFICANCE / 2, freedom)) * float(np.hypot(errors[i], errors[j]))
            gap = float(values[j] - values[i])
            if not abs(gap) <= limit:
                advice = (
                    f"{parts[i].method} gives {values[i]:.4g} +- {errors[i]:.2g}, {parts[j].method} gives "
                    f"{values[j]:.4g} +- {errors[j]:.2g}: more apart than their errors allow: one is wrong, or both; "
                    "look for modes that one of them misses, and run both longer."
                )
                found.append(Problem("DISAGREEMENT", advice, None, gap, condition))
    return found
