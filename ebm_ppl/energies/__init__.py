"""What is modelled: energies of one event."""

from ebm_ppl.energies._banana import Banana as Banana
from ebm_ppl.energies._base import AbstractEnergy as AbstractEnergy
from ebm_ppl.energies._base import AbstractReferenceEnergy as AbstractReferenceEnergy
from ebm_ppl.energies._check_energy import check_energy as check_energy
from ebm_ppl.energies._check_start import check_start as check_start
from ebm_ppl.energies._check_start import start_is_finite as start_is_finite
from ebm_ppl.energies._conv import ConvEnergy as ConvEnergy
from ebm_ppl.energies._data_sum import DataSumEnergy as DataSumEnergy
from ebm_ppl.energies._double_well import DoubleWell as DoubleWell
from ebm_ppl.energies._energy_check import EnergyCheck as EnergyCheck
from ebm_ppl.energies._function import FunctionEnergy as FunctionEnergy
from ebm_ppl.energies._funnel import Funnel as Funnel
from ebm_ppl.energies._gaussian import Gaussian as Gaussian
from ebm_ppl.energies._gaussian_mixture import GaussianMixture as GaussianMixture
from ebm_ppl.energies._log_density import LogDensity as LogDensity
from ebm_ppl.energies._log_density import log_density as log_density
from ebm_ppl.energies._many_well import ManyWell as ManyWell
from ebm_ppl.energies._mlp import MLPEnergy as MLPEnergy
from ebm_ppl.energies._ring import Ring as Ring
from ebm_ppl.energies._rosenbrock import Rosenbrock as Rosenbrock
from ebm_ppl.energies._score import score as score
from ebm_ppl.energies._shifted import ShiftedEnergy as ShiftedEnergy
from ebm_ppl.energies._student_t import StudentT as StudentT
from ebm_ppl.energies._sum import SumEnergy as SumEnergy
from ebm_ppl.energies._tempered import TemperedEnergy as TemperedEnergy
