"""The chain driver: warm-up, preconditioning, chunks, and the draws it returns."""

from ebm_ppl.sampling._draws import Draws as Draws
from ebm_ppl.sampling._parallel_tempering import parallel_tempering as parallel_tempering
from ebm_ppl.sampling._resume import resume as resume
from ebm_ppl.sampling._run_chains import run_chains as run_chains
from ebm_ppl.sampling._sample import sample as sample
from ebm_ppl.sampling._tempering_report import Tempering as Tempering
from ebm_ppl.sampling._ula_rule import ula_within_bias as ula_within_bias
