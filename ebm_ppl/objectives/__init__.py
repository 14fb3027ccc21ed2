"""Objectives: what `fit` minimises, one estimator per file."""

from ebm_ppl.objectives._base import AbstractMeanObjective as AbstractMeanObjective
from ebm_ppl.objectives._base import AbstractObjective as AbstractObjective
from ebm_ppl.objectives._base import AbstractStatelessObjective as AbstractStatelessObjective
from ebm_ppl.objectives._base import Batch as Batch
from ebm_ppl.objectives._base import Metrics as Metrics
from ebm_ppl.objectives._base import energy_of as energy_of
from ebm_ppl.objectives._conditional_noise_contrastive import ConditionalNoiseContrastive as ConditionalNoiseContrastive
from ebm_ppl.objectives._contrastive_divergence import ContrastiveDivergence as ContrastiveDivergence
from ebm_ppl.objectives._denoising import DenoisingScoreMatching as DenoisingScoreMatching
from ebm_ppl.objectives._energy_discrepancy import EnergyDiscrepancy as EnergyDiscrepancy
from ebm_ppl.objectives._energy_magnitude_penalty import EnergyMagnitudePenalty as EnergyMagnitudePenalty
from ebm_ppl.objectives._exact_score_matching import ExactScoreMatching as ExactScoreMatching
from ebm_ppl.objectives._finite_difference_score_matching import (
    FiniteDifferenceScoreMatching as FiniteDifferenceScoreMatching,
)
from ebm_ppl.objectives._fisher_divergence import DivergenceEstimate as DivergenceEstimate
from ebm_ppl.objectives._fisher_divergence import fisher_divergence as fisher_divergence
from ebm_ppl.objectives._flow_contrastive import FlowContrastive as FlowContrastive
from ebm_ppl.objectives._gradient_penalty import GradientPenalty as GradientPenalty
from ebm_ppl.objectives._hutchinson_score_matching import HutchinsonScoreMatching as HutchinsonScoreMatching
from ebm_ppl.objectives._maximum_likelihood import MaximumLikelihood as MaximumLikelihood
from ebm_ppl.objectives._minimum_probability_flow import MinimumProbabilityFlow as MinimumProbabilityFlow
from ebm_ppl.objectives._multiscale_denoising import (
    MultiscaleDenoisingScoreMatching as MultiscaleDenoisingScoreMatching,
)
from ebm_ppl.objectives._multiscale_denoising import noise_condition as noise_condition
from ebm_ppl.objectives._noise_contrastive import NoiseContrastive as NoiseContrastive
from ebm_ppl.objectives._persistent_contrastive_divergence import (
    PersistentContrastiveDivergence as PersistentContrastiveDivergence,
)
from ebm_ppl.objectives._ranking_noise_contrastive import RankingNoiseContrastive as RankingNoiseContrastive
from ebm_ppl.objectives._replay_buffer import ReplayBuffer as ReplayBuffer
from ebm_ppl.objectives._sliced_score_matching import SlicedScoreMatching as SlicedScoreMatching
from ebm_ppl.objectives._sum_objective import SumObjective as SumObjective
