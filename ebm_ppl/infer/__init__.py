"""NumPyro inference with BlackJAX kernels."""

from ebm_ppl.infer._blackjax_kernel import BlackJAXKernel as BlackJAXKernel
from ebm_ppl.infer._calibrate_temperature import calibrate_temperature as calibrate_temperature
from ebm_ppl.infer._calibration import Calibration as Calibration
from ebm_ppl.infer._exchange_kernel import ExchangeKernel as ExchangeKernel
from ebm_ppl.infer._geweke_joint_test import geweke_joint_test as geweke_joint_test
from ebm_ppl.infer._log_prior import log_prior as log_prior
from ebm_ppl.infer._shard_chains import shard_chains as shard_chains
from ebm_ppl.infer._simulation_based_calibration import simulation_based_calibration as simulation_based_calibration
from ebm_ppl.infer._temperature_calibration import TemperatureCalibration as TemperatureCalibration
from ebm_ppl.infer._temperature_calibration import adjust_draws as adjust_draws
