"""Walk the folders, check every objective, kernel and normaliser, and say what failed."""

import dataclasses
import functools
import inspect
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from jaxtyping import Array

from ebm_ppl import kernels, normalizers, objectives
from ebm_ppl._verify._kernels import KERNELS, check_kernel
from ebm_ppl._verify._normalizers import NORMALIZERS, check_normalizer
from ebm_ppl._verify._objectives import OBJECTIVES, check_objective
from ebm_ppl._verify._row import HEADER, Row, critical_value, failure, format_row

SEED = 20_260
MAX_WORKERS = 4
ROWS_PER_CHECK = 8  # more than any check has: the limit is known before the first row is

type Check = Callable[[str, Array], list[Row]]
"""`check(what, key)`: the rows of one thing."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """All rows of one verification, and where it ran."""

    rows: tuple[Row, ...]
    limit: float
    dtype: str
    device: str
    seconds: float

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that are not ok."""
        return tuple(row for row in self.rows if not row.ok(self.limit))

    @property
    def ok(self) -> bool:
        """Whether there are rows and all of them are."""
        return bool(self.rows) and not self.failures

    def summary(self) -> str:
        """One line, or one more for the names of what failed."""
        where = f"{self.dtype} on {self.device}, jax {jax.__version__}, {self.seconds:.0f} s"
        limit = f"limit {self.limit:.2f} standard errors"
        if self.ok:
            return f"{len(self.rows)} of {len(self.rows)} comparisons ok ({limit}; {where})"
        names = ", ".join(dict.fromkeys(row.what for row in self.failures))
        return f"{len(self.failures)} of {len(self.rows)} comparisons FAILED ({limit}; {where})\nfailed: {names}"

    def to_json(self) -> str:
        """Everything, as one JSON object."""
        rows = [row.as_dict(self.limit) for row in self.rows]
        facts = {"dtype": self.dtype, "device": self.device, "jax": jax.__version__, "seconds": self.seconds}
        return json.dumps({"ok": self.ok, "limit": self.limit, **facts, "rows": rows}, indent=1)


def find_checks() -> dict[str, Check | None]:
    """`folder.Name` of every objective, kernel and normaliser that the folders export, with its check or None."""
    return {
        **_classes(objectives, objectives.AbstractObjective, OBJECTIVES, check_objective),
        **_classes(kernels, kernels.AbstractKernel, KERNELS, check_kernel),
        **_functions(normalizers),
    }


def select(names: Iterable[str], only: Iterable[str]) -> list[str]:
    """The names that contain one of the given texts (case does not matter); all of them where none is given."""
    names, only = list(names), [text.lower() for text in only]
    for text in only:
        if not any(text in name.lower() for name in names):
            raise ValueError(f"nothing to verify is called {text!r}; there are {', '.join(names)}.")
    return [name for name in names if not only or any(text in name.lower() for text in only)]


def verify(
    only: Iterable[str] = (), *, dtype: str = "float32", write: Callable[[str], Any] | None = None
) -> Verification:
    """Compare every objective, kernel and normaliser with numbers that were not computed by the package.

    Args:
        only: texts, of which a name must contain one to be checked; everything by default.
        dtype: `"float32"` or `"float64"`.
        write: called with every line of the table as soon as it is there.

    Returns:
        A `Verification`.

    Raises:
        ValueError: if a text of `only` fits nothing.
    """
    checks = find_checks()
    names = select(checks, only)
    limit = critical_value(ROWS_PER_CHECK * len(names))
    began, rows = time.monotonic(), []
    x64 = dtype == "float64"
    with jax.enable_x64(x64):
        device = jax.device_put(0.0).devices().pop().device_kind
    if write is not None:
        write(HEADER)
    # Most of the time goes to the compiler, which uses one core for each program.
    pool = ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1))
    try:
        for found in pool.map(lambda name: _check(name, checks[name], x64=x64), names):
            for row in found:
                rows.append(row)
                if write is not None:
                    write(format_row(row, limit))
    finally:
        pool.shutdown(cancel_futures=True)
    return Verification(tuple(rows), limit, dtype, device, time.monotonic() - began)


def _classes(folder: Any, base: type, settings: dict[str, Callable[[Any], Any]], check: Any) -> dict[str, Check | None]:
    """Concrete classes that the folder exports, under the names by which it does."""
    found: dict[str, Check | None] = {}
    for name, value in _exports(folder):
        if isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value):
            make = settings.get(name)
            found[_path(folder, name)] = None if make is None else _bind(check, make, value)
    return found


def _functions(folder: Any) -> dict[str, Check | None]:
    """Functions that the folder exports: all of them estimate log Z."""
    found: dict[str, Check | None] = {}
    for name, value in _exports(folder):
        if inspect.isfunction(value):
            found[_path(folder, name)] = functools.partial(_normalizer, name, value) if name in NORMALIZERS else None
    return found


def _normalizer(name: str, function: Any, what: str, key: Array) -> list[Row]:
    return check_normalizer(what, NORMALIZERS[name], function, key)


def _path(folder: Any, name: str) -> str:
    return f"{folder.__name__.rpartition('.')[2]}.{name}"


def _bind(check: Any, make: Callable[[Any], Any], value: Any) -> Check:
    return lambda what, key: check(what, make(value), key)


def _exports(folder: Any) -> Iterator[tuple[str, Any]]:
    names = getattr(folder, "__all__", None) or [name for name in vars(folder) if not name.startswith("_")]
    return ((name, getattr(folder, name)) for name in names)


def _check(what: str, check: Check | None, *, x64: bool = False) -> list[Row]:
    if check is None:
        return [failure(what, "has no check in ebm_ppl/_verify")]
    try:
        with jax.enable_x64(x64):
            return check(what, jax.random.key(SEED ^ zlib.crc32(what.encode())))
    except Exception as error:  # whatever it is, the others are still checked, and this one has failed
        return [failure(what, f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")]
