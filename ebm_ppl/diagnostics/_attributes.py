"""What a result says about itself, as text that fits into the attributes of a NetCDF or zarr group."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ebm_ppl.errors import Problem


def to_json(value: object) -> str:
    """`value` as strict JSON. NaN and infinities, which JSON lacks, become the strings "nan", "inf" and "-inf"."""
    return json.dumps(_plain(value), allow_nan=False)


def problems_to_json(problems: Iterable[Problem]) -> str:
    """Problems as a JSON list of objects with `code`, `advice`, `chain` and `value`."""
    return to_json([dataclasses.asdict(problem) for problem in problems])


def problems_from_json(text: str) -> tuple[Problem, ...]:
    """The problems `problems_to_json` wrote.

    Raises:
        ValueError: `text` is not such a list.
    """
    try:
        entries = json.loads(text)
        return tuple(
            Problem(
                code=str(entry["code"]),
                advice=str(entry["advice"]),
                chain=None if entry["chain"] is None else int(entry["chain"]),
                value=None if entry["value"] is None else float(entry["value"]),
            )
            for entry in entries
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the attribute `problems` must be a JSON list of problems; got {text[:80]!r}.") from error


def settings_from(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """The sampler's settings that `to_datatree` stored; empty for output of another library."""
    if attributes.get("inference_library") != "ebm_ppl" or "settings" not in attributes:
        return {}
    return json.loads(attributes["settings"])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
