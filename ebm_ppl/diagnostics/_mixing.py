"""How well chains mix: R-hat, effective sample sizes and errors, pooled and chain by chain."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from ebm_ppl.diagnostics._arviz import TAIL_PROBABILITY, ess_bulk, ess_tail, mcse_mean, mcse_sd, rank_r_hat
from ebm_ppl.diagnostics._parameters import Parameter, chains_of, distinct_fraction, iterate_parameters, moved_fraction
from ebm_ppl.diagnostics._to_datatree import as_datatree, statistics_of
from ebm_ppl.sampling import Draws

SUMMARY_COLUMNS = ("mean", "sd", "eti89_lb", "eti89_ub", "ess_bulk", "ess_tail", "r_hat", "mcse_mean", "mcse_sd")


def mixing(data: xr.DataTree | xr.Dataset | Draws | Mapping[str, Any] | Any, *, group: str = "posterior") -> xr.Dataset:
    r"""Mixing statistics of every scalar, pooled over chains and for each chain.

    With B and W the variance between and within the halves (length n) of the rank-normalised chains,
    \(\hat R = \sqrt{(B/W + n - 1)/n}\) (the larger one of bulk and folded draws); the effective sample size is
    \(n / (1 + 2 \sum_t \rho_t)\), cut by Geyer's rule. Both are ArviZ's, but for one thing: **frozen chains count
    nothing**. ArviZ gives a constant chain as many effective draws as it has draws; here it has 0, and so has the
    pool that contains it.

    Args:
        data: draws of this or another library (NumPyro, PyMC, Stan): `DataTree`, `Dataset`, `Draws`, a mapping of
            arrays or an array `(chain, draw, *event)`.
        group: the group to look at.

    Returns:
        A `Dataset` over `parameter` (ArviZ labels) and `chain`:

        - pooled `(parameter,)`: `r_hat`, `ess_bulk`, `ess_tail`, `mcse_mean` (in units of the parameter);
        - per chain `(chain, parameter)`: `ess_bulk_per_chain`, `ess_tail_per_chain`, `mcse_mean_per_chain`,
          `distinct_fraction` (distinct values over draws), `frozen`;
        - per chain `(chain,)`: `moved_fraction` (share of draws that differ from the one before) and
          `acceptance_rate` (mean, where the sampler reports one).

        NaN where a statistic does not exist: non-finite draws, fewer than 4 draws, R-hat of one chain.

    Raises:
        ValueError: `group` is missing or a variable has no chain and draw dimensions.

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
    """
    tree = as_datatree(data, group)
    dataset = tree[group].to_dataset()
    chains, _ = chains_of(dataset)
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
    variables["moved_fraction"] = ("chain", moved_fraction(dataset))
    statistics = statistics_of(tree, group)
    if "acceptance_rate" in statistics:
        variables["acceptance_rate"] = ("chain", statistics["acceptance_rate"].mean("draw").values)
    return xr.Dataset(variables, {"parameter": [parameter.label for parameter in parameters], "chain": chains})


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
