"""Training: `fit` and what it returns."""

from ebm_ppl.training._chunks import Callback as Callback
from ebm_ppl.training._fit import DEFAULT_OPTIMIZER as DEFAULT_OPTIMIZER
from ebm_ppl.training._fit import fit as fit
from ebm_ppl.training._result import FitResult as FitResult
