"""Adaptive tempered sequential Monte Carlo estimates of log Z."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from ebm_ppl._checks import check_count
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._known_density import KnownDensity
from ebm_ppl.errors import Problem
from ebm_ppl.normalizers._estimate import LogNormalizerEstimate, finish
from ebm_ppl.normalizers._inputs import check_base, check_fraction, check_rows
from ebm_ppl.normalizers._path import AnnealingPath, Mover, check_mover
from ebm_ppl.normalizers._tempered_smc import MAX_LEVELS, SMCRun, run_tempered_smc
from ebm_ppl.normalizers._weights import log_sum, nonfinite_problems, rounding_error

LARGE_SPREAD = 0.7  # of log Z between clouds, nats: beyond it their mean is carried by one or two of them


def sequential_monte_carlo(
    energy: AbstractEnergy | Any,
    reference: Any = None,
    *,
    key: Array | Any,
    kernel: Any = None,
    num_particles: int | Any = 512,
    num_runs: int | Any = 10,
    num_steps: int | Any = 5,
    target_effective_fraction: float | Any = 0.5,
    condition: Any = None,
    strict: bool = False,
) -> LogNormalizerEstimate:
    r"""Adaptive tempered sequential Monte Carlo (BlackJAX's), in several independent clouds of particles.

    A cloud starts from the reference q and is carried along \(\pi_\beta \propto q^{1-\beta} \exp(-\beta E)\) to
    \(\beta = 1\): reweight, resample, `num_steps` transitions. Each next \(\beta\) is the one that keeps
    `target_effective_fraction` of the particles effective; step size and scales are learnt on the way. The product of
    the mean weights estimates Z. The standard error is the spread of the clouds, which also holds what resampling and
    poor mixing do; `interval` uses Student's t with `num_runs` - 1 degrees of freedom.

    Args:
        energy: E, nats.
        reference: q: a reference energy, a NumPyro distribution or a FlowJAX flow; by default N(0, 3^2) in every
            coordinate. It must cover exp(-E): with one of bounded support the result is the integral over that
            support. Walls of E inside it are no obstacle.
        key: one JAX key.
        kernel: an adjusted kernel; `MALA()` by default.
        num_particles: in each cloud.
        num_runs: independent clouds, at least 2.
        num_steps: transitions at each temperature.
        target_effective_fraction: between 0 and 1; larger means more temperatures.
        condition: for conditional energies: one condition, or several along a leading axis.
        strict: raise `LogNormalizerError` (carrying the estimate) instead of warning when there is a problem.

    Returns:
        `LogNormalizerEstimate`, one entry per condition where several were given.

    Raises:
        KeyArgumentError: `key` is not one JAX key.
        EnergyShapeError: reference or condition do not fit the energy.
        ValueError: a number is out of range, or the kernel is not adjusted.
        LogNormalizerError: `strict=True` and there is a problem.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
        >>> estimate = ebm.normalizers.sequential_monte_carlo(energy, key=jax.random.key(0), num_particles=128)
        >>> low, high = estimate.interval(0.999)
        >>> bool(low < energy.log_normalizer < high), estimate.ok
        (True, True)

    References:
        Del Moral, Doucet, Jasra (2006). Sequential Monte Carlo samplers. Journal of the Royal Statistical Society B
        68(3), 411-436. doi:10.1111/j.1467-9868.2006.00553.x
        Cabezas, Corenflos, Lao, Louf (2024). BlackJAX: composable Bayesian inference in JAX. arXiv:2402.10797
    """
    rows = check_rows(energy, key, condition)
    base = check_base("reference", reference, rows.energy)
    mover = check_mover(kernel, check_count("num_steps", num_steps))
    fraction = check_fraction("target_effective_fraction", target_effective_fraction)
    runs = smc_runs(
        rows.energy,
        base,
        mover,
        rows.keys,
        rows.conditions,
        fraction,
        num_particles=check_count("num_particles", num_particles, 2),
        num_runs=check_count("num_runs", num_runs, 2),
    )
    return finish(estimate_from_runs(runs), batched=rows.batched, strict=strict)


@eqx.filter_jit
def smc_runs(
    energy: AbstractEnergy,
    base: KnownDensity,
    mover: Mover,
    keys: Array,
    conditions: Array | None,
    fraction: Array,
    *,
    num_particles: int,
    num_runs: int,
) -> SMCRun:
    """Independent runs; every field has leading axes `(row, run)`."""

    def one(key: Array, condition: Array | None) -> SMCRun:
        path = AnnealingPath(energy, base, condition)

        def run(key: Array) -> SMCRun:
            return run_tempered_smc(
                path, mover, key, num_particles=num_particles, target_effective_fraction=fraction.astype(float)
            )

        return jax.vmap(run)(jax.random.split(key, num_runs))

    return jax.vmap(one)(keys, conditions)


def estimate_from_runs(runs: SMCRun) -> LogNormalizerEstimate:
    """One entry per row of `(row, run)` values of log Z."""
    values = np.asarray(runs.log_normalizer)
    reached, sizes = np.asarray(runs.reached), np.asarray(runs.final_effective_size)
    means, errors, problems = [], [], []
    for index, row in enumerate(values):
        mean, error = _log_mean_and_error(row)
        means.append(mean)
        errors.append(np.hypot(error, rounding_error(values.dtype, mean)) if np.isfinite(mean) else np.nan)
        problems += _problems(row, mean, reached[index], index)
    none = np.full(len(means), np.nan)
    return LogNormalizerEstimate(
        np.array(means),
        np.array(errors),
        sizes.astype(np.float64).sum(axis=1),
        none,
        "sequential_monte_carlo",
        tuple(problems),
        degrees_of_freedom=float(values.shape[1] - 1),
    )


def _log_mean_and_error(logs: np.ndarray) -> tuple[float, float]:
    """Log of the mean of exp(logs), and its standard error by the delta method."""
    logs = logs.astype(np.float64)
    mean = float(log_sum(logs) - np.log(len(logs)))
    if not np.isfinite(mean):
        return mean, np.nan
    return mean, float(np.exp(logs - mean).std(ddof=1) / np.sqrt(len(logs)))


def _problems(row: np.ndarray, mean: float, reached: np.ndarray, condition: int) -> list[Problem]:
    found = nonfinite_problems(mean, condition)
    if found:
        return found
    if (reached < 1).any():
        advice = (
            f"{int((reached < 1).sum())} of {len(reached)} clouds did not reach the energy in {MAX_LEVELS} "
            "temperatures; give a reference closer to the energy."
        )
        found.append(Problem("LADDER_UNFINISHED", advice, None, float(reached.min()), condition))
    spread = float(row.std(ddof=1))
    if spread > LARGE_SPREAD:
        advice = (
            f"log Z varies by {spread:.1f} nats between the clouds: their mean is biased low and its error means "
            "little; raise num_particles or num_steps, or give a reference closer to the energy."
        )
        found.append(Problem("LARGE_SPREAD", advice, None, spread, condition))
    return found
