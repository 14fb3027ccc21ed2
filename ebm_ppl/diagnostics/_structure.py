"""Is the kernel a pure function of key, state and frozen parameters, and does its state belong to this energy?"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ebm_ppl.diagnostics._family import Finding
from ebm_ppl.diagnostics._transitions import Chains, Invariant, Step, advance, evaluate, start
from ebm_ppl.errors import Problem
from ebm_ppl.kernels import AbstractKernel

CACHES = ("logdensity", "log_likelihood", "grad", "energy")
MAX_MISMATCHES = 0.01  # share of lanes whose cached values may be off by more than the rounding allowed here


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """What holds exactly, or does not: findings, each failed one with its problem."""

    findings: tuple[Finding, ...]
    problems: tuple[Problem, ...]


def check_structure(
    kernel: AbstractKernel, target: Invariant, chains: Chains, auxiliary: tuple[int, ...], replay: tuple[Any, Any, Step]
) -> Structure:
    """Rows `finite`, `moves`, `cached_values`, `memory` and `replay`.

    Args:
        kernel: the kernel.
        target: its target.
        chains: lanes after two or more steps.
        auxiliary: leaves of the state that are random at the start.
        replay: states and keys of a step made before, and what came out.
    """
    rows = [
        _finite(chains, replay[2]),
        _moves(chains, replay[2]),
        _cached_values(kernel, target, chains),
        _memory(kernel, target, chains, auxiliary),
        _replay(kernel, target, *replay),
    ]
    return Structure(tuple(row for row, _ in rows), tuple(problem for _, problem in rows if problem is not None))


def _row(test: str, statistic: float, code: str, advice: str) -> tuple[Finding, Problem | None]:
    """A deterministic row: it fails unless the statistic is 0."""
    if statistic == 0:
        return Finding(test, "structure", 0.0), None
    return Finding(test, "structure", statistic, verdict="FAIL", detail=advice), Problem(code, advice, value=statistic)


def _finite(chains: Chains, first: Step) -> tuple[Finding, Problem | None]:
    bad = ~np.isfinite(chains.energy) | ~np.isfinite(first.energy)
    bad |= ~np.isfinite(chains.position.reshape(len(bad), -1)).all(axis=1)
    advice = "share of chains from draws of the target that reached a point where the energy is NaN or infinite: a "
    advice += "kernel must not go there, and one without rejections that does has diverged."
    return _row("finite", float(bad.mean()), "NONFINITE_STATE", advice)


def _moves(chains: Chains, first: Step) -> tuple[Finding, Problem | None]:
    frozen = _differ(chains.position, first.position) == 0
    advice = "no chain moved after the first step: the step size is far too large, or every proposal is unusable."
    return _row("moves", float(frozen), "STUCK_CHAIN", advice)


def _cached_values(kernel: AbstractKernel, target: Invariant, chains: Chains) -> tuple[Finding, Problem | None]:
    """What the state keeps for the next step against a fresh state here, and that against the energy itself."""
    fresh = _fresh(kernel, target, chains)
    energy, gradient = evaluate(target, _positions(chains), gradient=kernel.uses_gradient)
    pairs = [
        (kept, new)
        for (path, kept), new in zip(_named(chains.states), jax.tree.leaves(fresh), strict=True)
        if _is_cache(path)
    ]
    if hasattr(fresh, "logdensity"):
        pairs.append((fresh.logdensity, -energy))
    if gradient is not None and hasattr(fresh, "logdensity_grad"):
        pairs.append((fresh.logdensity_grad, gradient))
    worst = max((_mismatches(kept, new) for kept, new in pairs), default=0.0)
    advice = "share of chains whose cached log density or gradient is not that of the energy at their position: the "
    advice += "next proposal is made from a value of another point or another energy."
    return _row("cached_values", worst if worst > MAX_MISMATCHES else 0.0, "STALE_CACHE", advice)


def _memory(
    kernel: AbstractKernel, target: Invariant, chains: Chains, auxiliary: tuple[int, ...]
) -> tuple[Finding, Problem | None]:
    """Whatever else the state remembers of its past must not influence the next step."""
    fresh = jax.tree.leaves(_fresh(kernel, target, chains))
    kept, replaced = list(jax.tree.leaves(chains.states)), []
    for index, (path, leaf) in enumerate(_named(chains.states)):
        if index in auxiliary or _is_cache(path) or leaf.dtype == bool or jnp.array_equal(leaf, fresh[index]):
            continue
        constant = bool((fresh[index] == fresh[index][:1]).all())
        if constant or _mismatches(leaf, fresh[index]) > 0:
            kept[index] = fresh[index]
            replaced.append(path)
    if not replaced:
        return _row("memory", 0.0, "", "")
    forgetful = jax.tree.unflatten(jax.tree.structure(chains.states), kept)
    keys = chains.keys(2**20)
    outcomes = [advance(kernel, target, states, keys, ratio=None)[0] for states in (chains.states, forgetful)]
    differ = _differ(outcomes[0].position, outcomes[1].position)
    advice = f"share of chains whose next step depends on {', '.join(replaced)}, which the state carries from earlier "
    advice += "steps: adaptation is still on. Freeze it before drawing."
    return _row("memory", differ, "ADAPTATION_ON", advice)


def _replay(
    kernel: AbstractKernel, target: Invariant, states: Any, keys: Any, seen: Step
) -> tuple[Finding, Problem | None]:
    """The same state and key give the same step to the last bit, whatever happened in between."""
    again = advance(kernel, target, states, keys, ratio=None)[1]
    differ = _differ(np.asarray(again.position, np.float64), seen.position)
    advice = "share of chains whose step from the same state with the same key came out differently the second time: "
    advice += "the kernel keeps something outside its state."
    return _row("replay", differ, "NOT_A_FUNCTION", advice)


def _fresh(kernel: AbstractKernel, target: Invariant, chains: Chains) -> Any:
    return start(kernel, target, _positions(chains), chains.keys(0))


def _positions(chains: Chains) -> Any:
    return chains.states.position


def _named(states: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(states)[0]]


def _is_cache(path: str) -> bool:
    return any(name in path for name in CACHES)


def _differ(one: Any, other: Any) -> float:
    """Share of lanes that are not equal; NaN equals NaN."""
    one, other = np.asarray(one), np.asarray(other)
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    return float(1 - equal.reshape(len(one), -1).all(axis=1).mean())


def _mismatches(kept: Any, fresh: Any) -> float:
    """Share of lanes that differ by more than the square root of machine precision."""
    tolerance = float(np.sqrt(jnp.finfo(kept.dtype).eps)) if jnp.issubdtype(kept.dtype, jnp.floating) else 0.0
    kept, fresh = (np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in (kept, fresh))
    scale = 1 + np.max(np.abs(fresh), axis=1)
    with np.errstate(invalid="ignore"):
        close = (np.abs(kept - fresh).max(axis=1) <= tolerance * scale) | (kept == fresh).all(axis=1)
    both_nan = (np.isnan(kept) == np.isnan(fresh)).all(axis=1) & np.isnan(fresh).any(axis=1)
    return float(1 - (close | both_nan).mean())
