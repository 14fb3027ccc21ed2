"""Whether to believe the draws: ArviZ-native conversion, checks and verdicts."""

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
