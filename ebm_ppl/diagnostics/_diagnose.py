"""One verdict on a set of draws."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Array, Float

from ebm_ppl.diagnostics import _findings as findings
from ebm_ppl.diagnostics._agreement import Agreement, agreement
from ebm_ppl.diagnostics._attributes import problems_from_json
from ebm_ppl.diagnostics._consistency import energy_problems
from ebm_ppl.diagnostics._evidence import Evidence
from ebm_ppl.diagnostics._mixing import SUMMARY_COLUMNS
from ebm_ppl.diagnostics._report import Report
from ebm_ppl.diagnostics._to_datatree import as_datatree, statistics_of
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.errors import Problem
from ebm_ppl.sampling import Draws


def diagnose(
    data: xr.DataTree | xr.Dataset | Draws | Mapping[str, Any] | Any,
    energy: AbstractEnergy | None = None,
    *,
    condition: Float[Array, "..."] | None = None,
    group: str = "posterior",
) -> Report:
    r"""Judge draws: may averages over them be trusted?

    The checks, always in this order: non-finite draws; frozen chains; zero acceptance; divergences; non-finite
    proposals; too few chains or draws to judge; rank \(\hat R \le 1.01\); drift (20 chains or more); bulk and tail
    effective sample size >= 400, and >= 100 per chain; E-BFMI >= 0.3 where a Hamiltonian energy is stored; a
    spread that keeps growing; E(x) against the stored `lp`, where `energy` is given; and what the sampler recorded
    itself. Finiteness and frozen chains come first because R-hat and ESS are blind to them: NaN compares False
    against every threshold, and a constant chain has no autocorrelation.

    With very many short chains R-hat exceeds 1.01 however well they mix. It is then judged by whether chains have
    forgotten their start, which many chains show directly: see `notes` of the report.

    Codes: `NONFINITE_DRAW STUCK_CHAIN ZERO_ACCEPTANCE DIVERGED AUXILIARY_REJECTED AUXILIARY_NOT_MIXED
    NONFINITE_PROPOSAL TOO_SHORT R_HAT DRIFT ESS_BULK ESS_TAIL E_BFMI POSSIBLY_IMPROPER NONFINITE_ENERGY
    ENERGY_MISMATCH`, and the sampler's own, such as `INTERRUPTED`.

    An unadjusted kernel (ULA) is reported as a note: its bias is set by its step size and invisible to every check
    of mixing.

    Args:
        data: draws of this or another library (NumPyro, PyMC, Stan): `DataTree`, `Dataset`, `Draws`, a mapping of
            arrays or an array `(chain, draw, *event)`.
        energy: the energy the draws should come from; its values at the draws are compared with the stored `lp`.
        condition: the condition y of a conditional energy E(x; y).
        group: the group to judge.

    Returns:
        A `Report` with `ok`, `problems`, `table` and `notes`.

    Raises:
        ValueError: `group` is missing, or a variable has no chain and draw dimensions.
        EnergyShapeError: no variable, or more than one, has the `event_shape` of `energy`.

    Example:
        >>> import numpy as np, ebm_ppl as ebm
        >>> draws = np.random.default_rng(0).normal(size=(4, 1000))
        >>> ebm.diagnose(draws).ok
        True
        >>> draws[2] = draws[2, 0]
        >>> print(ebm.diagnose(draws).problems[0])
        STUCK_CHAIN (chain 2, value 1): the chain never moved: its effective sample size is 0, ...

    References:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021). Rank-normalization, folding, and localization: An
        improved R-hat for assessing convergence of MCMC. Bayesian Analysis 16(2), 667-718. doi:10.1214/20-BA1221
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari, Gelman (2024). Nested R-hat: Assessing the convergence
        of Markov chain Monte Carlo when running many short chains. Bayesian Analysis. doi:10.1214/24-BA1453
        Betancourt (2016). Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo.
        doi:10.48550/arXiv.1604.00695
    """
    tree = as_datatree(data, group)
    evidence = Evidence(tree[group].to_dataset(), statistics_of(tree, group))
    convergence = agreement(evidence)
    problems = _find(evidence, convergence)
    notes = _notes(evidence, convergence)
    if energy is not None and evidence.num_draws:
        mismatches, remarks = energy_problems(evidence, energy, condition)
        problems, notes = problems + mismatches, notes + remarks
    labels = [parameter.label for parameter in evidence.parameters]
    return Report(
        problems=_with_recorded(problems, evidence),
        table=pd.DataFrame(evidence.summaries, index=pd.Index(labels), columns=list(SUMMARY_COLUMNS)),
        notes=tuple(notes),
        group=group,
        num_chains=evidence.num_chains,
        num_draws=evidence.num_draws,
    )


def _find(evidence: Evidence, convergence: Agreement) -> list[Problem]:
    return [
        *findings.nonfinite_draws(evidence),
        *findings.frozen_chains(evidence),
        *findings.zero_acceptance(evidence),
        *findings.divergences(evidence),
        *findings.auxiliary_chains(evidence),
        *findings.nonfinite_proposals(evidence),
        *findings.too_short(evidence),
        *convergence.problems,
        *findings.low_e_bfmi(evidence),
        *findings.wandering(evidence),
    ]


def _with_recorded(problems: Iterable[Problem], evidence: Evidence) -> tuple[Problem, ...]:
    """The problems found, each replaced by the sampler's own account of it where there is one, then the rest."""
    text = evidence.dataset.attrs.get("problems", evidence.statistics.attrs.get("problems"))
    recorded = {(problem.code, problem.chain): problem for problem in (problems_from_json(text) if text else ())}
    merged = [recorded.pop((problem.code, problem.chain), problem) for problem in problems]
    return (*merged, *recorded.values())


def _notes(evidence: Evidence, convergence: Agreement) -> list[str]:
    notes = list(convergence.notes)
    if evidence.settings.get("adjusted") is False:
        step_sizes = evidence.statistic("step_size")
        at = "" if step_sizes is None or not step_sizes.size else f" {float(np.mean(step_sizes)):.3g}"
        notes.append(
            f"{evidence.settings.get('kernel')} is unadjusted: its draws are biased by the step size{at}, which no "
            "check of mixing can see. Compare with half the step size, or with MALA."
        )
    notes += _tree_depth_note(evidence)
    constant = [parameter.label for parameter in evidence.parameters if parameter.structural]
    if constant:
        shown = ", ".join(constant[:4]) + (f" and {len(constant) - 4} more" if len(constant) > 4 else "")
        notes.append(f"{shown}: one and the same value in all draws of all chains; taken as meant, not judged.")
    return notes


def _tree_depth_note(evidence: Evidence) -> list[str]:
    """NUTS trajectories that were cut: valid, but slow. NumPyro and Stan spell the statistic differently."""
    for name in ("reached_max_tree_depth", "reached_max_treedepth"):
        cut = evidence.statistic(name)
        if cut is not None and cut.any():
            return [f"{int(cut.sum())} of {cut.size} trajectories were cut at the maximal tree depth: valid, but slow."]
    return []
