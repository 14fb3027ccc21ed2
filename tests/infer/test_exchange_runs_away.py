"""Data under which a parameter runs to infinity: refused where nothing would hold it, and reported elsewhere."""

import arviz as az
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import ebm_ppl as ebm
from tests.infer.models import run


def bonds(spins):
    return (spins[1:] * spins[:-1]).sum() + (spins[:, 1:] * spins[:, :-1]).sum()


def ising(lattices, prior):
    coupling = numpyro.sample("coupling", prior)
    energy = ebm.FunctionEnergy(lambda coupling, spins: -coupling * bonds(spins), (4, 4), coupling)
    with numpyro.plate("n", len(lattices)):
        numpyro.sample("s", ebm.EnergyDistribution(energy), obs=lattices)


ALIGNED = jnp.ones((2, 4, 4))  # the likelihood rises to a constant as the coupling goes to infinity
KERNEL = ebm.ExchangeKernel(ising, inner_kernel=ebm.kernels.BinaryGibbs(), num_inner_steps=5)


@pytest.mark.parametrize("wrap", [lambda prior: prior, lambda prior: prior.mask(True)])
def test_an_improper_prior_is_refused(wrap):
    flat = wrap(dist.ImproperUniform(dist.constraints.real, (), ()))
    with pytest.raises(ValueError, match="prior of 'coupling' is improper"):
        run(KERNEL, ALIGNED, flat, num_warmup=2, num_samples=2)


def test_inner_chains_that_never_leave_the_data_are_reported():
    """At couplings above 50 no spin ever flips, and all that is left is the prior."""
    mcmc = run(KERNEL, ALIGNED, dist.Uniform(50.0, 1000.0), num_warmup=50, num_samples=200)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    assert fields["acceptance_rate"].mean() > 0.2
    np.testing.assert_array_equal(fields["auxiliary_memory"][:, -1], 1)
    report = ebm.diagnose(az.from_numpyro(mcmc))
    assert "AUXILIARY_NOT_MIXED" in report.codes, repr(report)
