"""Energies as NumPyro distributions and factors."""

from ebm_ppl.distributions._chain_sampler import ChainSampler as ChainSampler
from ebm_ppl.distributions._check_model import check_model as check_model
from ebm_ppl.distributions._check_model import energy_dependencies as energy_dependencies
from ebm_ppl.distributions._energy_distribution import EnergyDistribution as EnergyDistribution
from ebm_ppl.distributions._energy_factor import energy_factor as energy_factor
from ebm_ppl.distributions._energy_sites import energy_sites as energy_sites
from ebm_ppl.distributions._objective_factor import objective_factor as objective_factor
from ebm_ppl.distributions._sampler import AbstractSampler as AbstractSampler
from ebm_ppl.distributions._tempered_sampler import TemperedSampler as TemperedSampler
