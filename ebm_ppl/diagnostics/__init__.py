"""Whether to believe the draws: ArviZ-native conversion, checks and verdicts."""

import importlib
from typing import Any as _Any

from ebm_ppl.diagnostics._balance_report import BalanceReport as BalanceReport
from ebm_ppl.diagnostics._detailed_balance import detailed_balance as detailed_balance
from ebm_ppl.diagnostics._diagnose import diagnose as diagnose
from ebm_ppl.diagnostics._kernel_stein_discrepancy import kernel_stein_discrepancy as kernel_stein_discrepancy
from ebm_ppl.diagnostics._mixing import mixing as mixing
from ebm_ppl.diagnostics._mode_occupancy import mode_occupancy as mode_occupancy
from ebm_ppl.diagnostics._report import Report as Report
from ebm_ppl.diagnostics._reversibility import reversibility as reversibility
from ebm_ppl.diagnostics._stein_test import stein_test as stein_test
from ebm_ppl.diagnostics._storage import load_datatree as load_datatree
from ebm_ppl.diagnostics._storage import save_datatree as save_datatree
from ebm_ppl.diagnostics._to_datatree import to_datatree as to_datatree
from ebm_ppl.diagnostics._verdict import Verdict as Verdict

_OF_MODELS = ("Calibration", "geweke_joint_test", "simulation_based_calibration")


def __getattr__(name: str) -> _Any:
    """The checks of whole models stand on NumPyro kernels, one layer up: `ebm_ppl.infer`, imported when asked for."""
    if name in _OF_MODELS:
        return getattr(importlib.import_module("ebm_ppl.infer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_OF_MODELS})
