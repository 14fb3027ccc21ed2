"""Chains of NumPyro over a mesh; several devices and processes are in `tests/sampling/test_mesh.py`."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import MCMC

import ebm_ppl as ebm
from tests.infer.models import DATA, normal_mean

KERNEL = ebm.BlackJAXKernel(normal_mean)


def run(chain_method):
    mcmc = MCMC(KERNEL, num_warmup=50, num_samples=20, num_chains=3, chain_method=chain_method, progress_bar=False)
    mcmc.run(jax.random.key(0), DATA)
    return mcmc


@pytest.fixture(scope="module")
def sharded():
    return run(ebm.infer.shard_chains())


def test_a_mesh_of_one_device_draws_what_vmap_draws(sharded):
    expected, found = run(lambda one: jax.jit(jax.vmap(one))).get_samples(), sharded.get_samples()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4)


def test_arviz_reads_the_result(sharded):
    tree = az.from_numpyro(sharded)
    assert tree["posterior"]["mu"].shape == (3, 20)
    assert {"lp", "acceptance_rate", "step_size"} <= set(tree["sample_stats"].data_vars)


def test_what_is_not_a_mesh_is_refused():
    with pytest.raises(TypeError, match="make_mesh"):
        ebm.infer.shard_chains(jnp.zeros(3))
