"""Effective draws per gradient on a rotated normal law, 100 dimensions, condition number 100: ours and NumPyro's."""

import arviz_stats
import jax
import numpy as np
import pytest
from numpyro.infer import HMC as NumPyroHMC
from numpyro.infer import MCMC

import ebm_ppl as ebm
from tests.foreign import standard_promotion
from tests.kernels.targets import gaussian

CHAINS, WARMUP, DRAWS = 4, 2000, 4000


def smallest_ess_per_gradient(positions):
    """Bulk ESS of the worst coordinate; every draw of a one-step kernel costs one gradient."""
    ess = arviz_stats.base.array_stats.ess
    columns = [positions[..., i] for i in range(positions.shape[-1])]
    return min(float(ess(column, method="bulk")) for column in columns) / (CHAINS * DRAWS)


def ours(target, key, **settings):
    draws = ebm.sample(
        target.energy, ebm.MALA(), key=key, num_chains=CHAINS, num_warmup=WARMUP, num_samples=DRAWS,
        progress_bar=False, **settings,
    )  # fmt: skip
    assert (draws.stats["n_steps"] == 1).all()
    return smallest_ess_per_gradient(draws.positions)


def theirs(target, key, num_warmup=WARMUP, **settings):
    """NumPyro's HMC with one leapfrog step, adapting its own step size and mass matrix."""
    starts = jax.random.uniform(key, (CHAINS, 100), minval=-2, maxval=2)
    with standard_promotion():
        kernel = NumPyroHMC(potential_fn=target.energy, num_steps=1, trajectory_length=None, **settings)
        mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=DRAWS, num_chains=CHAINS, chain_method="vectorized",
                    progress_bar=False)  # fmt: skip
        mcmc.run(key, init_params=starts, extra_fields=("num_steps",))
    assert np.all(mcmc.get_extra_fields()["num_steps"] == 1)
    return smallest_ess_per_gradient(np.asarray(mcmc.get_samples(group_by_chain=True)))


def study(key):
    target = gaussian(100)
    return {
        "MALA": ours(target, key, precondition="none"),
        "MALA, diagonal": ours(target, key, precondition="diagonal"),
        "MALA, low rank, pooled": ours(target, key, precondition="low_rank", pool_warmup=True),
        "MALA, dense": ours(target, key, precondition="dense"),
        "MALA, dense, pooled": ours(target, key, precondition="dense", pool_warmup=True),
        "NumPyro HMC(1)": theirs(target, key),
        "NumPyro HMC(1), dense": theirs(target, key, dense_mass=True),
        "NumPyro HMC(1), dense, 0.574": theirs(target, key, dense_mass=True, target_accept_prob=0.574),
        "NumPyro HMC(1), dense, 0.574, 10 x warm-up": theirs(
            target, key, 10 * WARMUP, dense_mass=True, target_accept_prob=0.574
        ),
    }


@pytest.mark.slow
def test_preconditioned_mala_against_plain_mala_and_numpyro(key, capsys):
    found = study(key)
    with capsys.disabled():
        for name, value in found.items():
            print(f"\n{name:45s} {value:.5f} effective draws per gradient", end="")  # noqa: T201
    for name in ("MALA, dense", "MALA, dense, pooled"):
        assert found[name] >= 10 * found["MALA"]
        assert found[name] >= max(value for other, value in found.items() if other.startswith("NumPyro"))
