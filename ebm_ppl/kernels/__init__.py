"""Transition kernels: a thin, uniform face over BlackJAX."""

from ebm_ppl.kernels._base import AbstractKernel as AbstractKernel
from ebm_ppl.kernels._hmc import HMC as HMC
from ebm_ppl.kernels._mala import MALA as MALA
from ebm_ppl.kernels._nuts import NUTS as NUTS
from ebm_ppl.kernels._ula import ULA as ULA
