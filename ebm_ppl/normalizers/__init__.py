"""log Z = log of the integral of exp(-E), with an error bar."""

from ebm_ppl.normalizers._estimate import LogNormalizerEstimate as LogNormalizerEstimate
from ebm_ppl.normalizers._importance import importance as importance
