"""NumPyro inference with BlackJAX kernels."""
