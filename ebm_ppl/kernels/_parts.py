"""What a log density may know beyond its value: its data, its noise scale."""

from jaxtyping import Array

from ebm_ppl._types import LogDensityFn, PRNGKey
from ebm_ppl.energies import AbstractLogDensity


def minibatch_density(logdensity_fn: LogDensityFn, key: PRNGKey, batch_size: int) -> LogDensityFn:
    """The log density with a few data drawn by `key`.

    Raises:
        TypeError: the density does not know its data.
    """
    if not isinstance(logdensity_fn, AbstractLogDensity):
        raise TypeError(
            "kernels on minibatches need an energy that is a sum over data, ebm.energies.DataSumEnergy, sampled by "
            f"ebm.sample; got a log density of type {type(logdensity_fn).__name__}."
        )
    return logdensity_fn.minibatch(key, batch_size)


def at_noise_scale(logdensity_fn: LogDensityFn, noise_scale: Array) -> LogDensityFn:
    """The log density at another noise scale.

    Raises:
        TypeError: the density does not know its noise scale.
    """
    if not isinstance(logdensity_fn, AbstractLogDensity):
        raise TypeError(
            "annealing over noise scales needs a noise-conditioned energy, sampled by ebm.sample; got a log density of "
            f"type {type(logdensity_fn).__name__}."
        )
    return logdensity_fn.at_noise_scale(noise_scale)
