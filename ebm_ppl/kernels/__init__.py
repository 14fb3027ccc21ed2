"""Transition kernels: a thin, uniform face over BlackJAX."""

from ebm_ppl.kernels._adjusted_mclmc import AdjustedMCLMC as AdjustedMCLMC
from ebm_ppl.kernels._annealed_langevin import AnnealedLangevin as AnnealedLangevin
from ebm_ppl.kernels._barker import Barker as Barker
from ebm_ppl.kernels._base import AbstractKernel as AbstractKernel
from ebm_ppl.kernels._base import AbstractTunableKernel as AbstractTunableKernel
from ebm_ppl.kernels._binary_gibbs import BinaryGibbs as BinaryGibbs
from ebm_ppl.kernels._elliptical_slice import EllipticalSlice as EllipticalSlice
from ebm_ppl.kernels._generalized_hmc import GeneralizedHMC as GeneralizedHMC
from ebm_ppl.kernels._hmc import HMC as HMC
from ebm_ppl.kernels._mala import MALA as MALA
from ebm_ppl.kernels._mclmc import MCLMC as MCLMC
from ebm_ppl.kernels._nuts import NUTS as NUTS
from ebm_ppl.kernels._random_walk import RandomWalk as RandomWalk
from ebm_ppl.kernels._sghmc import SGHMC as SGHMC
from ebm_ppl.kernels._sgld import SGLD as SGLD
from ebm_ppl.kernels._ula import ULA as ULA
