"""What a log density may know beyond its value: its data, its noise scale."""

from typing import Any

from jaxtyping import Array

from ebm_ppl._types import LogDensityFn, PRNGKey


def minibatch_density(logdensity_fn: LogDensityFn, key: PRNGKey, batch_size: int) -> LogDensityFn:
    """The log density with a few data drawn by `key`.

    Raises:
        TypeError: the density does not know its data.
    """
    minibatch: Any = getattr(logdensity_fn, "minibatch", None)
    if minibatch is None:
        raise TypeError(
            "kernels on minibatches need an energy that is a sum over data, ebm.energies.DataSumEnergy, sampled by "
            f"ebm.sample; got a log density of type {type(logdensity_fn).__name__}."
        )
    return minibatch(key, batch_size)


def at_noise_scale(logdensity_fn: LogDensityFn, noise_scale: Array) -> LogDensityFn:
    """The log density at another noise scale.

    Raises:
        TypeError: the density does not know its noise scale.
    """
    change: Any = getattr(logdensity_fn, "at_noise_scale", None)
    if change is None:
        raise TypeError(
            "annealing over noise scales needs a noise-conditioned energy, sampled by ebm.sample; got a log density of "
            f"type {type(logdensity_fn).__name__}."
        )
    return change(noise_scale)
