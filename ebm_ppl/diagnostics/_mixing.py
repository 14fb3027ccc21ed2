"""How well chains mix: R-hat, effective sample sizes and errors, pooled and chain by chain."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from ebm_ppl.diagnostics._arviz import (
    TAIL_PROBABILITY,
    ess_bulk,
    ess_tail,
    mcse_mean,
    mcse_sd,
    nested_r_hat,
    rank_r_hat,
)
from ebm_ppl.diagnostics._efficiency import autocorrelation_time, costs, energy_drift
from ebm_ppl.diagnostics._parameters import Parameter, chains_of, distinct_fraction, iterate_parameters, moved_fraction
from ebm_ppl.diagnostics._to_datatree import as_datatree, statistics_of
from ebm_ppl.sampling import Draws

SUMMARY_COLUMNS = ("mean", "sd", "eti89_lb", "eti89_ub", "ess_bulk", "ess_tail", "r_hat", "mcse_mean", "mcse_sd")


def mixing(
    data: xr.DataTree | xr.Dataset | Draws | Mapping[str, Any] | Any,
    *,
    group: str = "posterior",
    superchains: Sequence[int] | Any = None,
) -> xr.Dataset:
    r"""Mixing statistics of every scalar, pooled over chains and for each chain.

    With B and W the variance between and within the halves (length n) of the rank-normalised chains,
    \(\hat R = \sqrt{(B/W + n - 1)/n}\) (the larger one of bulk and folded draws); the effective sample size is
    \(n / (1 + 2 \sum_t \rho_t)\), cut by Geyer's rule. Both are ArviZ's, but for one thing: **frozen chains count
    nothing**. ArviZ gives a constant chain as many effective draws as it has draws; here it has 0, and so has the
    pool that contains it.

    With very many short chains \(\hat R\) cannot come near 1, however well they mix. Start them in groups
    (superchains) that share their starting position, name the groups, and read the nested \(\hat R\)
    \(\sqrt{1 + B_s / W_s}\): \(B_s\) is the variance of the means of the superchains, \(W_s\) the mean variance inside
    one, between its chains and within them.

    Args:
        data: draws of this or another library (NumPyro, PyMC, Stan): `DataTree`, `Dataset`, `Draws`, a mapping of
            arrays or an array `(chain, draw, *event)`.
        group: the group to look at.
        superchains: the number of its superchain for every chain, `(num_chains,)`: at least two superchains of equal
            size whose chains started at one position. Gives `nested_r_hat`.

    Returns:
        A `Dataset` over `parameter` (ArviZ labels) and `chain`:

        - pooled `(parameter,)`: `r_hat`, `ess_bulk`, `ess_tail`, `mcse_mean` (in units of the parameter),
          `integrated_autocorrelation_time` (draws per effective draw; infinite where a chain is frozen),
          `nested_r_hat` (with `superchains`), `ess_per_gradient` (where the sampler reports `n_steps`; draws only,
          without warm-up) and `ess_per_second` (where the time of the run is on record; ours includes warm-up and
          compilation);
        - per chain `(chain, parameter)`: `ess_bulk_per_chain`, `ess_tail_per_chain`, `mcse_mean_per_chain`,
          `integrated_autocorrelation_time_per_chain`, `distinct_fraction` (distinct values over draws), `frozen`;
        - per chain `(chain,)`: `moved_fraction` (share of draws that differ from the one before), `acceptance_rate`
          (mean, where the sampler reports one) and `energy_drift` (where it reports `lp`): mean energy of the second
          half minus that of the first in standard errors; beyond 4 the chain is still on its way.

        NaN where a statistic does not exist: non-finite draws, fewer than 4 draws, R-hat of one chain.

    Raises:
        ValueError: `group` is missing, a variable has no chain and draw dimensions, or `superchains` does not split
            the chains into two or more groups of equal size.

    Example:
        >>> import numpy as np, ebm_ppl as ebm
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> draws[2] = 0.1  # a chain that never moves
        >>> table = ebm.diagnostics.mixing(draws)
        >>> [int(ess) for ess in table.ess_bulk_per_chain.sel(parameter="x")]
        [533, 414, 0, 546]
        >>> int(table.ess_bulk.sel(parameter="x"))
        0

    References:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021). Rank-normalization, folding, and localization: An
        improved R-hat for assessing convergence of MCMC. Bayesian Analysis 16(2), 667-718. doi:10.1214/20-BA1221
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari, Gelman (2024). Nested R-hat: Assessing the convergence
        of Markov chain Monte Carlo when running many short chains. Bayesian Analysis. doi:10.1214/24-BA1453
    """
    tree = as_datatree(data, group)
    dataset = tree[group].to_dataset()
    chains, num_draws = chains_of(dataset)
    groups = None if superchains is None else _check_superchains(superchains, len(chains))
    parameters = list(iterate_parameters(dataset, constants_allowed=constants_allowed(dataset)))
    pooled = [pooled_statistics(parameter) for parameter in parameters]
    single = [_chain_statistics(parameter) for parameter in parameters]
    names = ["r_hat", "ess_bulk", "ess_tail", "mcse_mean"]
    variables: dict[str, Any] = {
        name: ("parameter", np.array([statistics[name] for statistics in pooled])) for name in names
    }
    shape = (len(parameters), len(chains))
    for name in ("ess_bulk_per_chain", "ess_tail_per_chain", "mcse_mean_per_chain", "distinct_fraction", "frozen"):
        values = np.array([statistics[name] for statistics in single]).reshape(shape)
        variables[name] = (("chain", "parameter"), values.T)
    sizes, own = variables["ess_bulk"][1], variables["ess_bulk_per_chain"][1]
    variables["integrated_autocorrelation_time"] = ("parameter", autocorrelation_time(num_draws * len(chains), sizes))
    variables["integrated_autocorrelation_time_per_chain"] = (
        ("chain", "parameter"),
        autocorrelation_time(num_draws, own),
    )
    if groups is not None:
        nested = [nested_r_hat(p.draws, groups) if p.judgeable else np.nan for p in parameters]
        variables["nested_r_hat"] = ("parameter", np.array(nested))
    variables["moved_fraction"] = ("chain", moved_fraction(dataset))
    statistics = statistics_of(tree, group)
    if "acceptance_rate" in statistics:
        variables["acceptance_rate"] = ("chain", statistics["acceptance_rate"].mean("draw").values)
    if "lp" in statistics:
        log_density = statistics["lp"].transpose("chain", "draw").values.astype(np.float64)
        variables["energy_drift"] = ("chain", energy_drift(log_density))
    variables |= costs(sizes, statistics, dataset.attrs)
    return xr.Dataset(variables, {"parameter": [parameter.label for parameter in parameters], "chain": chains})


def _check_superchains(superchains: Any, num_chains: int) -> Int[np.ndarray, " chain"]:
    given = np.asarray(superchains)
    if given.shape != (num_chains,):
        raise ValueError(
            f"`superchains` must have one number for each of the {num_chains} chains; got shape {given.shape}."
        )
    groups, sizes = np.unique(given, return_inverse=True)[1], np.unique(given, return_counts=True)[1]
    if len(sizes) < 2 or len(set(sizes.tolist())) > 1:
        raise ValueError(f"`superchains` must form at least two groups of equal size; got sizes {sizes.tolist()}.")
    return groups


def constants_allowed(dataset: xr.Dataset) -> bool:
    """Whether constant parameters may be meant: in models with deterministic sites, never in draws of one energy."""
    return dataset.attrs.get("inference_library") not in (None, "ebm_ppl")


def pooled_statistics(parameter: Parameter) -> dict[str, float]:
    """The row of `az.summary` for one parameter, with 0 effective draws where a chain is frozen."""
    draws = parameter.draws
    if not (draws.size and np.isfinite(draws).all()):
        return dict.fromkeys(SUMMARY_COLUMNS, np.nan)
    # Frozen chains divide by a variance of 0 (R-hat infinite where they differ, NaN where they agree), and the
    # square of a run-away chain may overflow.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lower, upper = np.quantile(draws, [(1 - TAIL_PROBABILITY) / 2, (1 + TAIL_PROBABILITY) / 2])
        row = {"mean": float(draws.mean()), "sd": float(draws.std(ddof=1)) if draws.size > 1 else np.nan}
        row |= {"eti89_lb": float(lower), "eti89_ub": float(upper)}
        row |= _sizes(parameter, draws, stuck=bool(parameter.stuck.any()))
        comparable = parameter.judgeable and len(draws) > 1
        row["r_hat"] = rank_r_hat(draws) if comparable else np.nan
        row["mcse_sd"] = mcse_sd(draws) if row["ess_bulk"] > 0 else np.nan
    return {name: row[name] for name in SUMMARY_COLUMNS}


def _chain_statistics(parameter: Parameter) -> dict[str, Float[np.ndarray, " chain"] | Bool[np.ndarray, " chain"]]:
    rows = [
        _sizes(parameter, draws[None], stuck=bool(stuck))
        for draws, stuck in zip(parameter.draws, parameter.stuck, strict=True)
    ]
    result = {f"{name}_per_chain": np.array([row[name] for row in rows]) for name in rows[0]}
    fraction = distinct_fraction(parameter.draws) if parameter.draws.shape[1] else np.full(len(rows), np.nan)
    return result | {"distinct_fraction": fraction, "frozen": parameter.stuck}


def _sizes(parameter: Parameter, draws: Float[np.ndarray, "chain draw"], *, stuck: bool) -> dict[str, float]:
    if parameter.structural or draws.shape[1] < 4 or not np.isfinite(draws).all():
        return {"ess_bulk": np.nan, "ess_tail": np.nan, "mcse_mean": np.nan}
    if stuck:
        return {"ess_bulk": 0.0, "ess_tail": 0.0, "mcse_mean": np.nan}
    return {"ess_bulk": ess_bulk(draws), "ess_tail": ess_tail(draws), "mcse_mean": mcse_mean(draws)}
