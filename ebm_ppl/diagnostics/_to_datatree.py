"""Draws to `xarray.DataTree`, the form in which ArviZ reads, plots and stores them."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ebm_ppl.diagnostics._arviz import az
from ebm_ppl.diagnostics._attributes import problems_to_json, to_json
from ebm_ppl.sampling import Draws

# ArviZ gives groups with these words in their name another meaning of the leading axes, or drops them.
_RESERVED = ("data", "warmup", "log_likelihood", "predictions", "sample_stats")


def to_datatree(
    draws: Draws | Mapping[str, Any] | Any,
    *,
    var_name: str = "x",
    group: str = "posterior",
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
) -> xr.DataTree:
    """Convert draws to the `DataTree` that every ArviZ function takes.

    The draws become the variable `var_name` of `group` with dimensions `chain`, `draw` and those of the event; the
    statistics become `sample_stats` (`sample_stats_prior` where `group` is "prior") under ArviZ names. Settings and
    problems of the run travel along as JSON text in the attributes `settings` and `problems`.

    Args:
        draws: what `ebm.sample` returned, or an array `(chain, draw, *event)`, or a mapping of names to such arrays.
        var_name: name of the variable; ignored for a mapping and for draws of events with named parts, which bring
            their own names.
        group: ArviZ group, e.g. "posterior", "prior", "unconstrained_posterior".
        coords: coordinate values by dimension.
        dims: names of the event's dimensions: a list for the one variable, or a mapping from variables to lists.

    Returns:
        A `DataTree` that `save_datatree` and `to_netcdf` can write as it is.

    Raises:
        ValueError: an array lacks the chain or the draw axis, arrays disagree in them, or `group` is one that
            ArviZ reserves for something else.

    Example:
        >>> import numpy as np, ebm_ppl as ebm
        >>> tree = ebm.to_datatree(np.zeros((4, 100, 3)), var_name="pixel", dims=["column"])
        >>> dict(tree["posterior"].sizes)
        {'chain': 4, 'draw': 100, 'column': 3}

    References:
        Kumar, Carroll, Hartikainen, Martin (2019). ArviZ a unified library for exploratory analysis of Bayesian
        models in Python. Journal of Open Source Software 4(33), 1143. doi:10.21105/joss.01143
    """
    if any(word in group for word in _RESERVED):
        raise ValueError(f"`group` must name a group of draws, e.g. 'posterior' or 'prior'; got {group!r}.")
    variables = _variables(draws, var_name)
    if dims is not None and not isinstance(dims, Mapping):
        if len(variables) != 1:
            raise ValueError(f"`dims` must map the variables {list(variables)} to lists of names; got {dims!r}.")
        dims = {next(iter(variables)): list(dims)}
    groups: dict[str, dict[str, np.ndarray]] = {group: variables}
    attributes = _attributes(draws)
    if isinstance(draws, Draws):
        groups[_stats_group(group)] = {name: _host(values) for name, values in draws.stats.items()}
    return az.from_dict(
        groups,
        coords=coords,
        dims=dims,
        attrs=dict.fromkeys(groups, attributes),
        check_conventions=False,  # more chains than draws is a design here, not a mistake
    )


def as_datatree(data: Any, group: str) -> xr.DataTree:
    """`data` as a `DataTree` with `group`: a tree as it is, a `Dataset` as that group, draws by `to_datatree`."""
    if isinstance(data, xr.Dataset):
        data = xr.DataTree.from_dict({group: data})
    if isinstance(data, str):
        raise TypeError(f"expected draws or a DataTree; got the string {data!r}: read it with load_datatree.")
    tree = data if isinstance(data, xr.DataTree) else to_datatree(data, group=group)
    if group not in tree.children:
        raise ValueError(f"`group` {group!r} is not in the DataTree; it has {sorted(tree.children)}.")
    return tree


def statistics_of(tree: xr.DataTree, group: str) -> xr.Dataset:
    """The sampler's statistics that belong to `group`; empty where there are none."""
    name = _stats_group(group)
    return tree[name].to_dataset() if name in tree.children else xr.Dataset()


def _stats_group(group: str) -> str:
    return "sample_stats_prior" if group.endswith("prior") else "sample_stats"


def _variables(draws: Any, var_name: str) -> dict[str, np.ndarray]:
    if isinstance(draws, Draws):
        arrays = draws.positions if isinstance(draws.positions, dict) else {var_name: draws.positions}
    else:
        arrays = dict(draws) if isinstance(draws, Mapping) else {var_name: draws}
    if not arrays:
        raise ValueError("`draws` must hold at least one variable; got an empty mapping.")
    converted = {name: _host(values) for name, values in arrays.items()}
    for name, values in converted.items():
        if not isinstance(name, str) or name in ("chain", "draw"):
            raise ValueError(f"a variable must be named by a string other than 'chain' and 'draw'; got {name!r}.")
        if values.ndim < 2:
            raise ValueError(
                f"`{name}` must have shape (chain, draw, *event); got {values.shape}: write draws[None] for one chain."
            )
    sizes = {name: values.shape[:2] for name, values in converted.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"all variables must have the same (chain, draw) axes; got {sizes}.")
    return converted


def _host(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind == "V":  # bfloat16 and the float8 family, which no file format knows; float32 holds them all
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        cure = ": pass az.from_numpyro(mcmc)" if hasattr(values, "get_samples") else ""
        came = type(values).__name__ if array.dtype == object else f"dtype {array.dtype}"
        raise ValueError(f"draws must be real numbers; got {came}{cure}.")
    return array


def _attributes(draws: Any) -> dict[str, Any]:
    if not isinstance(draws, Draws):
        return {}
    return {
        "inference_library": "ebm_ppl",
        "inference_library_version": importlib.metadata.version("ebm_ppl"),
        "settings": to_json(draws.settings),
        "problems": problems_to_json(draws.problems),
    }
