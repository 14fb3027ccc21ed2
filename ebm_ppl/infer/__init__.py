"""NumPyro inference with BlackJAX kernels."""

from ebm_ppl.infer._blackjax_kernel import BlackJAXKernel as BlackJAXKernel
from ebm_ppl.infer._calibration import Calibration as Calibration
from ebm_ppl.infer._geweke_joint_test import geweke_joint_test as geweke_joint_test
from ebm_ppl.infer._simulation_based_calibration import simulation_based_calibration as simulation_based_calibration
