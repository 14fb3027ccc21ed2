"""Sets of chains, good and bad, whose verdict is known."""

import numpy as np


def independent(rng, num_chains=4, num_draws=1000, *event):
    return rng.normal(size=(num_chains, num_draws, *event))


def autoregressive(rng, coefficient, num_chains=4, num_draws=1000):
    """Stationary AR(1) with unit variance."""
    noise = rng.normal(size=(num_chains, num_draws))
    chains = np.empty_like(noise)
    chains[:, 0] = noise[:, 0]
    for t in range(1, num_draws):
        chains[:, t] = coefficient * chains[:, t - 1] + np.sqrt(1 - coefficient**2) * noise[:, t]
    return chains


def metropolis(rng, acceptance, num_chains=4, num_draws=1000):
    """Independent draws, each kept with probability 1 - acceptance: a Metropolis chain with a perfect proposal."""
    chains = rng.normal(size=(num_chains, num_draws))
    accepted = rng.random((num_chains, num_draws)) < acceptance
    for t in range(1, num_draws):
        chains[:, t] = np.where(accepted[:, t], chains[:, t], chains[:, t - 1])
    return chains


def one_chain_scaled(rng):
    chains = independent(rng)
    chains[3] *= 10
    return chains


def shifted_cauchy(rng):
    chains = rng.standard_cauchy(size=(4, 1000))
    chains[1] += 2.0
    return chains


def two_modes(rng):
    chains = independent(rng)
    chains[2:] += 10
    return chains


def frozen_apart(rng):
    return np.repeat(rng.normal(size=(4, 1)), 1000, axis=1)


def frozen_together(rng):
    return np.full((4, 1000), rng.normal())


def one_nan(rng):
    chains = independent(rng)
    chains[1, 500] = np.nan
    return chains


def one_infinity(rng):
    chains = independent(rng)
    chains[2, 7] = np.inf
    return chains


def sticky(rng):
    return autoregressive(rng, 0.9)


def drifting(rng):
    return independent(rng) + np.linspace(0.0, 5.0, 1000)


def too_short(rng):
    return independent(rng, 4, 8)
