"""Everything the battery looks at, computed once: many independent lanes of one kernel, started from exact draws."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ebm_ppl.diagnostics._acceptance import acceptance_test
from ebm_ppl.diagnostics._accepted_flux import accepted_flux_test
from ebm_ppl.diagnostics._exchangeability import exchangeability_test
from ebm_ppl.diagnostics._family import Finding
from ebm_ppl.diagnostics._features import Features, auxiliary_features, auxiliary_leaves, features_of
from ebm_ppl.diagnostics._gandy_scott import rank_test, two_sample_test
from ebm_ppl.diagnostics._one_step import one_step_test
from ebm_ppl.diagnostics._transitions import Chains, Invariant, Ratio, Step, evaluate, start
from ebm_ppl.errors import InvalidDataError
from ebm_ppl.kernels import AbstractKernel


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """Features of `n` independent lanes; `part(i, m)` is the i-th of m equal shares, an experiment of its own.

    Args:
        names: of the features.
        before: at x_0, from the target.
        after: at x_1.
        proposed: at the proposal of the first step; None: not shown.
        fresh: of other draws from the target.
        auxiliary: auxiliary variables before and after the first step.
        path: along x_1, ..., x_T.
        other_path: along an independent chain from the same x_0; None where it is not needed.
        rate: reported acceptance; None: nothing is rejected.
        accepted: reported decision, None likewise.
        log_ratio: log Metropolis ratio, computed independently; None: unknown.
        change: difference of energies, x_0 less proposal; stands in for an unknown ratio.
        energy_change: the integrator's error, where the kernel reports it instead of a rate.
    """

    names: tuple[str, ...]
    before: Float[np.ndarray, "n feature"]
    after: Float[np.ndarray, "n feature"]
    proposed: Float[np.ndarray, "n feature"] | None
    fresh: Float[np.ndarray, "n feature"]
    auxiliary: Float[np.ndarray, "2 n leaf"]
    path: Float[np.ndarray, "step n feature"]
    other_path: Float[np.ndarray, "step n feature"] | None
    rate: np.ndarray | None
    accepted: np.ndarray | None
    log_ratio: np.ndarray | None
    change: np.ndarray | None
    energy_change: np.ndarray | None

    def part(self, index: int, number: int) -> "Evidence":
        """One of `number` equal shares of the lanes."""
        share = len(self.before) // number
        lanes = slice(index * share, (index + 1) * share)

        def cut(name: str, value: Any) -> Any:
            if value is None or name == "names":
                return value
            return value[:, lanes] if name in ("auxiliary", "path", "other_path") else value[lanes]

        return Evidence(**{f.name: cut(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True, eq=False)
class Collected:
    """The evidence, and what the structural checks and the bias need besides."""

    evidence: Evidence
    chains: Chains
    features: Features
    auxiliary: tuple[int, ...]
    first: Step
    diverging: float


def collect(
    kernel: AbstractKernel,
    target: Invariant,
    positions: np.ndarray,
    fresh: np.ndarray,
    key: jax.Array,
    *,
    ratio: Ratio | None,
    num_steps: int,
) -> Collected:
    """`num_steps` transitions of every lane; for reversible kernels a second path from the same start."""
    fresh_energies = np.asarray(evaluate(target, jax.numpy.asarray(fresh), gradient=False)[0], np.float64)
    _check_energies(fresh_energies)
    features = features_of(fresh.astype(np.float64), fresh_energies)
    keys = jax.random.split(key, 3)
    chains = Chains(kernel, target, positions, keys[0], ratio)
    _check_energies(chains.energy)
    other = start(kernel, target, jax.numpy.asarray(positions), jax.random.split(keys[1], len(positions)))
    leaves = auxiliary_leaves(chains.states, other)
    before, energy = features(chains.position, chains.energy), chains.energy
    auxiliary = [auxiliary_features(chains.states, leaves, features)]
    first = chains.step()
    auxiliary.append(auxiliary_features(chains.states, leaves, features))
    proposed, change = None, None
    if first.proposal is not None:
        proposal_energy = np.asarray(first.proposal_energy, np.float64)
        proposed = features(np.asarray(first.proposal, np.float64), proposal_energy)
        change = energy - proposal_energy
    path = [features(chains.position, chains.energy)]
    last = first
    for _ in range(num_steps - 1):
        last = chains.step()
        path.append(features(chains.position, chains.energy))
    second = None
    if kernel.adjusted and kernel.reversible:
        twin = Chains(kernel, target, positions, keys[2], ratio)
        second = np.stack([features(*_moved(twin)) for _ in range(num_steps)])
    evidence = Evidence(
        names=features.names,
        before=before,
        after=path[0],
        proposed=proposed,
        fresh=features(fresh.astype(np.float64), fresh_energies),
        auxiliary=np.stack(auxiliary),
        path=np.stack(path),
        other_path=second,
        rate=_float(first.rate),
        accepted=first.accepted,
        log_ratio=_float(first.log_ratio),
        change=change,
        energy_change=_float(first.energy_change),
    )
    diverging = 0.0 if last.diverging is None else float(np.mean(last.diverging))
    return Collected(evidence, chains, features, leaves, first, diverging)


def statistical_tests(evidence: Evidence, rng: np.random.Generator) -> tuple[list[Finding], float]:
    """Every test with a p-value, in the order of the battery, and the bound on the entropy production."""
    ev = evidence
    log_ratio = ev.change if ev.log_ratio is None else ev.log_ratio
    tests = [
        acceptance_test(ev.rate, ev.accepted, rng),
        accepted_flux_test(ev.before, ev.proposed, ev.rate, log_ratio, ev.names),
        one_step_test(ev.before, ev.after, ev.names),
        two_sample_test(ev.path[-1], ev.fresh, ev.names),
    ]
    if ev.other_path is not None:
        tests.append(rank_test(ev.before, ev.path, ev.other_path, ev.names, rng))
    centre = ev.fresh.mean(axis=0)
    here, there = (
        np.concatenate([x - centre, a], axis=1) for x, a in zip((ev.before, ev.after), ev.auxiliary, strict=True)
    )
    exchangeability, bound = exchangeability_test(here, there, rng)
    return [*tests, exchangeability], bound


def _check_energies(energies: Float[np.ndarray, " n"]) -> None:
    bad = int((~np.isfinite(energies)).sum())
    if bad:
        raise InvalidDataError(
            f"`reference_draws` must be draws from exp(-energy): the energy is NaN or infinite at {bad} of "
            f"{len(energies)} of them."
        )


def _moved(chains: Chains) -> tuple[np.ndarray, np.ndarray]:
    chains.step()
    return chains.position, chains.energy


def _float(values: Any) -> Any:
    return None if values is None else np.asarray(values, np.float64)
