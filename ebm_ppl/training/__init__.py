"""Training: `fit`, what it returns, and the standard errors of what it found."""

from ebm_ppl.training._chunks import Callback as Callback
from ebm_ppl.training._fit import DEFAULT_OPTIMIZER as DEFAULT_OPTIMIZER
from ebm_ppl.training._fit import fit as fit
from ebm_ppl.training._result import FitResult as FitResult
from ebm_ppl.training._standard_errors import StandardErrors as StandardErrors
from ebm_ppl.training._standard_errors import standard_errors as standard_errors
from ebm_ppl.training._two_players import two_player_optimizer as two_player_optimizer
