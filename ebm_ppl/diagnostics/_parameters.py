"""The scalars of a group of draws, one by one, and whether their chains move."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

# A chain that stays where it is for at least half of its draws is called stuck, unless acceptance rates as low as
# those of the other chains make such a stretch likelier than this.
CHANCE = 1e-3
# Below this share of moves a chain is called stuck without looking at the others (with 100 draws or more).
MIN_MOVED_FRACTION = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Parameter:
    """One scalar of the draws.

    Args:
        label: ArviZ' label, e.g. `"x[0, 3]"`.
        draws: `(chain, draw)`, float64.
        discrete: whether the values are integers or booleans.
        stuck: which chains do not move, `(chain,)`.
        structural: the same constant in every chain of another library's output, where constants are legitimate
            (the diagonal of a correlation matrix): there is nothing to judge.
    """

    label: str
    draws: Float[np.ndarray, "chain draw"]
    discrete: bool
    stuck: Bool[np.ndarray, " chain"]
    structural: bool = False

    @property
    def judgeable(self) -> bool:
        """Whether R-hat and effective sample sizes exist: finite, not constant by construction, long enough."""
        return bool(self.draws.shape[1] >= 4 and np.isfinite(self.draws).all() and not self.structural)


def chains_of(dataset: xr.Dataset) -> tuple[Int[np.ndarray, " chain"], int]:
    """Chain labels and number of draws; a `ValueError` where a variable lacks the chain or the draw axis."""
    if not dataset.data_vars:
        raise ValueError("the group holds no variables: there is nothing to judge.")
    for name, variable in dataset.data_vars.items():
        if not {"chain", "draw"} <= set(variable.dims):
            raise ValueError(f"`{name}` must have the dimensions chain and draw; got {variable.dims}.")
        if variable.dtype.kind not in "fiub":
            raise ValueError(f"`{name}` must hold real numbers; got dtype {variable.dtype}.")
    if not dataset.sizes["chain"]:
        raise ValueError("the group holds no chains.")
    labels = dataset["chain"].values if "chain" in dataset.coords else np.arange(dataset.sizes["chain"])
    return np.asarray(labels, dtype=int), dataset.sizes["draw"]


def iterate_parameters(dataset: xr.Dataset, *, constants_allowed: bool) -> Iterator[Parameter]:
    """Every scalar of every variable, in ArviZ' order.

    Args:
        dataset: the draws.
        constants_allowed: whether a parameter with one and the same value in all chains may be meant so, provided
            that the rest of the state moves.
    """
    state_stuck = stuck_chains(dataset)
    for name, variable in dataset.data_vars.items():
        array = variable.transpose("chain", "draw", ...)
        labels = _labels(str(name), array)
        flat = _flat(array)
        for index, label in enumerate(labels):
            draws = flat[..., index].astype(np.float64)
            constant = _constant(draws)
            same = constant.all() and len(np.unique(draws[:, :1])) == 1
            structural = bool(constants_allowed and same and not state_stuck.all())
            stuck = state_stuck if structural else state_stuck | _stuck_parameter(draws, constant)
            yield Parameter(label, draws, array.dtype.kind in "iub", stuck, structural)


def stuck_chains(dataset: xr.Dataset) -> Bool[np.ndarray, " chain"]:
    """Chains whose whole state stays constant, for all or for most of the run.

    Judged by the continuous variables where there are any; a purely discrete state may rest for long.
    """
    continuous = {name: variable for name, variable in dataset.data_vars.items() if variable.dtype.kind == "f"}
    return _stuck(_moved(dataset[list(continuous)])) if continuous else _never(_moved(dataset))


def moved_fraction(dataset: xr.Dataset) -> Float[np.ndarray, " chain"]:
    """Share of draws whose state differs from the draw before, per chain."""
    moved = _moved(dataset)
    return moved.mean(axis=1) if moved.shape[1] else np.full(len(moved), np.nan)


def distinct_fraction(draws: Float[np.ndarray, "chain draw"]) -> Float[np.ndarray, " chain"]:
    """Number of distinct values of each chain over its number of draws; 1/n for a frozen chain."""
    ordered = np.sort(draws, axis=1)
    return (1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1)) / draws.shape[1]


def _moved(dataset: xr.Dataset) -> Bool[np.ndarray, "chain step"]:
    """Whether any variable changed from one draw to the next."""
    moved = np.zeros((dataset.sizes["chain"], max(dataset.sizes["draw"] - 1, 0)), dtype=bool)
    for variable in dataset.data_vars.values():
        flat = _flat(variable.transpose("chain", "draw", ...))
        moved |= (flat[:, 1:] != flat[:, :-1]).any(axis=-1)
    return moved


def _flat(array: xr.DataArray) -> np.ndarray:
    return array.values.reshape(*array.shape[:2], math.prod(array.shape[2:]))


def _labels(name: str, array: xr.DataArray) -> list[str]:
    if array.ndim == 2:
        return [name]
    axes = [array[dim].values for dim in array.dims[2:]]
    return [f"{name}[{', '.join(str(value) for value in index)}]" for index in itertools.product(*axes)]


def _constant(draws: Float[np.ndarray, "chain draw"]) -> Bool[np.ndarray, " chain"]:
    return _never(draws[:, 1:] != draws[:, :-1])


def _never(moved: Bool[np.ndarray, "chain step"]) -> Bool[np.ndarray, " chain"]:
    return ~moved.any(axis=1) if moved.shape[1] else np.zeros(len(moved), dtype=bool)


def _stuck_parameter(
    draws: Float[np.ndarray, "chain draw"], constant: Bool[np.ndarray, " chain"]
) -> Bool[np.ndarray, " chain"]:
    """Chains in which this one coordinate never moves, unless so few moves are plausible by chance."""
    if not constant.any():
        return constant
    moved = draws[:, 1:] != draws[:, :-1]
    others = np.median(moved.mean(axis=1))
    by_chance = moved.size * (1.0 - others) ** moved.shape[1]
    return constant & bool(by_chance < CHANCE or others < MIN_MOVED_FRACTION)


def _stuck(moved: Bool[np.ndarray, "chain step"]) -> Bool[np.ndarray, " chain"]:
    num_chains, num_steps = moved.shape
    if num_steps == 0:
        return np.zeros(num_chains, dtype=bool)
    fraction = moved.mean(axis=1)
    typical = np.median(fraction)
    rest = np.array([_longest_rest(row) for row in moved])
    by_chance = moved.size * (1.0 - typical) ** rest
    stuck = (rest >= num_steps / 2) & ((by_chance < CHANCE) | (typical < MIN_MOVED_FRACTION))
    if num_steps >= 99:
        stuck |= fraction < MIN_MOVED_FRACTION
    return stuck


def _longest_rest(moved: Bool[np.ndarray, " step"]) -> int:
    """Length of the longest run of steps without a move."""
    at = np.flatnonzero(moved)
    return int(np.diff(at, prepend=-1, append=len(moved)).max()) - 1
