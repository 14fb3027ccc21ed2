"""Objectives: what `fit` minimises, one estimator per file."""

from ebm_ppl.objectives._base import AbstractMeanObjective as AbstractMeanObjective
from ebm_ppl.objectives._base import AbstractObjective as AbstractObjective
from ebm_ppl.objectives._base import AbstractStatelessObjective as AbstractStatelessObjective
from ebm_ppl.objectives._base import Batch as Batch
from ebm_ppl.objectives._base import Metrics as Metrics
from ebm_ppl.objectives._base import energy_of as energy_of
from ebm_ppl.objectives._denoising import DenoisingScoreMatching as DenoisingScoreMatching
from ebm_ppl.objectives._multiscale_denoising import (
    MultiscaleDenoisingScoreMatching as MultiscaleDenoisingScoreMatching,
)
from ebm_ppl.objectives._multiscale_denoising import noise_condition as noise_condition
from ebm_ppl.objectives._noise_contrastive import NoiseContrastive as NoiseContrastive
