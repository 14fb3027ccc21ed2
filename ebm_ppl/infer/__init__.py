"""NumPyro inference with BlackJAX kernels."""

from ebm_ppl.infer._blackjax_kernel import BlackJAXKernel as BlackJAXKernel
