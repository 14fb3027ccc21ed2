"""Geweke's test: right kernels pass at their level, wrong models and wrong kernels do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import NUTS, BarkerMH
from scipy import stats

import ebm_ppl as ebm
from ebm_ppl.infer._geweke_joint_test import _compare
from tests.broken_kernels import BrokenMALA
from tests.infer.exact_kernel import Autoregressive, location

geweke = ebm.diagnostics.geweke_joint_test


def exact(key, model=location, kernel=None, **settings):
    settings = {"observed": ["y"], "num_chains": 60, "num_warmup": 0, "num_samples": 50} | settings
    return geweke(model, functools.partial(Autoregressive, **(kernel or {})), key=key, **settings)


def test_a_right_kernel_passes_however_slowly_it_mixes(key):
    """Memory .95: single chains of 50 are hardly one effective draw; the error from the spread of chains is right."""
    constant = {"one": lambda sites, data: jnp.ones_like(sites["mu"])}  # not judged
    verdict = exact(key, kernel={"memory": 0.95}, var_names=["mu", "twice"], quantities=constant)
    assert verdict.ok, verdict
    assert np.isnan(verdict.table["p_value"].values[-2:]).all()
    assert verdict.p_value > 0.001
    table = verdict.table
    assert list(table["identity"].values[:3]) == ["location, mu", "spread, mu", "location, twice"]
    np.testing.assert_allclose(table["z"][:-2], (table["estimate"] / table["standard_error"])[:-2])
    # Levels of 2 mu under its own distribution are those of mu.
    np.testing.assert_allclose(table["z"][0], table["z"][2], rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "settings", "identity"),
    [
        ({"scale": 0.8}, {}, "spread, mu"),
        ({"use_data": False}, {}, "location, log_likelihood"),
        ({}, {"simulator": lambda y=None: location(y, 1.5)}, "spread, mu"),
    ],
    ids=["too narrow", "ignores the data", "wrong likelihood scale"],
)
def test_what_is_wrong_is_rejected(key, kernel, settings, identity):
    verdict = exact(key, kernel=kernel, num_samples=200, **settings)
    assert not verdict.ok
    assert float(verdict.table["p_value_adjusted"].sel(identity=identity)) < 1e-3, verdict.table.to_dataframe()


def test_draws_that_are_not_finite_never_pass(key):
    verdict = exact(key, kernel={"nan_above": 0.5})
    assert [problem.code for problem in verdict.problems] == ["NONFINITE_DRAW"]
    assert verdict.p_value == 0
    assert not verdict.ok


def test_p_values_are_uniform_for_chains_of_any_memory():
    """From stationary AR(1) chains and independent draws: what `_compare` says is calibrated."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        chains = rng.normal(size=(30, 20, 1))
        for step in range(1, 20):
            chains[:, step] = 0.9 * chains[:, step - 1] + (1 - 0.9**2) ** 0.5 * chains[:, step]
        table = _compare(rng.normal(size=(500, 1)), rng.normal(size=(500, 1)), chains, ["x"])
        found.append(table["p_value"].values)
    for p in np.transpose(found):
        assert stats.kstest(p, "uniform").pvalue > 1e-4
        assert np.count_nonzero(p < 0.01) <= stats.binom.isf(1e-4, 400, 0.01)


def test_misuse_is_named(key):
    with pytest.raises(ValueError, match="`num_chains` must be an integer >= 20"):
        exact(key, num_chains=19)
    with pytest.raises(ValueError, match="`level`"):
        exact(key, level=0.0)
    with pytest.raises(NotImplementedError, match="does not implement `refresh`"):
        geweke(location, BarkerMH, key=key, observed=["y"], num_chains=20, num_warmup=0, num_samples=1)


# --- at length --------------------------------------------------------------------------------------------------------


def scale_model(y=None, factor=1.0):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.Gamma(3.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, factor * sigma).expand([5]).to_event(1), obs=y)


def energy_model(y=None, exponent=0.5):
    """An energy as likelihood: the precision is latent, and log Z = d/2 log(2 pi) - exponent d log w."""
    w = numpyro.sample("w", dist.Gamma(3.0, 2.0))
    energy = ebm.FunctionEnergy(lambda w, x: w * jnp.sum(x**2) / 2, (5,), w)
    log_z = 2.5 * np.log(2 * np.pi) - 5 * exponent * jnp.log(w)
    draw = lambda energy, key, shape: jax.random.normal(key, (*shape, 5)) / jnp.sqrt(energy.params)  # noqa: E731
    numpyro.sample("y", ebm.EnergyDistribution(energy, log_normalizer=log_z, sampler=draw), obs=y)


def broken(fault):
    """At a fixed step size, so large that the fault shows."""
    return functools.partial(ebm.BlackJAXKernel, kernel=BrokenMALA(0.1, fault=fault), precondition="none")


STUDIES = {
    "MALA": (scale_model, ebm.BlackJAXKernel, {}, True),
    "HMC": (scale_model, functools.partial(ebm.BlackJAXKernel, kernel=ebm.HMC()), {}, True),
    "NUTS of NumPyro": (scale_model, NUTS, {}, True),
    "NUTS as an instance": (scale_model, NUTS(location), {}, True),
    "energy": (energy_model, ebm.BlackJAXKernel, {}, True),
    "wrong log Z": (energy_model, ebm.BlackJAXKernel, {"model_kwargs": {"exponent": 0.4}}, False),
    "wrong likelihood scale": (
        scale_model,
        ebm.BlackJAXKernel,
        {"simulator": lambda y=None: scale_model(y, 1.1)},
        False,
    ),
    "nothing broken": (scale_model, broken(""), {"num_warmup": 0}, True),
    "half of the noise": (scale_model, broken("half_noise"), {"num_warmup": 0}, False),
    "no proposal ratio": (scale_model, broken("no_proposal_ratio"), {"num_warmup": 0}, False),
    "wrong sign": (scale_model, broken("wrong_sign"), {"num_warmup": 0}, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_models_and_kernels_at_length(key, name):
    model, kernel, settings, right = STUDIES[name]
    verdict = geweke(model, kernel, key=key, observed=["y"], num_chains=200, num_samples=300, **settings)
    print(f"{name}: {verdict}")  # noqa: T201
    assert (verdict.p_value > 0.001) == right
