"""Transition kernels: a thin, uniform face over BlackJAX."""

from ebm_ppl.kernels._base import AbstractKernel as AbstractKernel
