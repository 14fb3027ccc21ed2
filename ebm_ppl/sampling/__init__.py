"""The chain driver: warm-up, preconditioning, chunks, and the draws it returns."""

from ebm_ppl.sampling._draws import Draws as Draws
from ebm_ppl.sampling._run_chains import run_chains as run_chains
from ebm_ppl.sampling._sample import sample as sample
