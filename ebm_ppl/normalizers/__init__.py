"""log Z = log of the integral of exp(-E), with an error bar."""

from ebm_ppl.normalizers._annealed_importance import annealed_importance as annealed_importance
from ebm_ppl.normalizers._bridge import bridge as bridge
from ebm_ppl.normalizers._estimate import LogNormalizerEstimate as LogNormalizerEstimate
from ebm_ppl.normalizers._held_out_log_likelihood import HeldOutLogLikelihood as HeldOutLogLikelihood
from ebm_ppl.normalizers._held_out_log_likelihood import held_out_log_likelihood as held_out_log_likelihood
from ebm_ppl.normalizers._importance import importance as importance
from ebm_ppl.normalizers._log_normalizer import log_normalizer as log_normalizer
from ebm_ppl.normalizers._quadrature import quadrature as quadrature
from ebm_ppl.normalizers._sequential_monte_carlo import sequential_monte_carlo as sequential_monte_carlo
from ebm_ppl.normalizers._thermodynamic_integration import thermodynamic_integration as thermodynamic_integration
