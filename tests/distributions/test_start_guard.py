"""The guard at the start of an inference: `check_model` by itself, once, for SVI with parameters."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.einstein import RBFKernel, SteinVI
from numpyro.handlers import condition, seed, trace
from numpyro.infer import HMC, NUTS, SVI, DiscreteHMCGibbs, MixedHMC, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import potential_energy

import ebm_ppl as ebm
from ebm_ppl.distributions._check_model import find_missing
from tests.distributions.test_check_model import (
    VARYING,
    Y,
    direct,
    energy,
    half_square,
    in_a_loop,
    latent,
    of_a_latent_event,
    parameter,
    prior,
    random_module,
    starts,
    through_a_closure,
    through_the_support,
)

pytestmark = pytest.mark.usefixtures("numpyro_rules")


@pytest.mark.parametrize("model", VARYING, ids=lambda model: model.__name__)
def test_svi_refuses_by_itself(model):
    with pytest.raises(ebm.MissingLogNormalizerError, match=r"energy site.*depends on"):
        SVI(model, AutoNormal(model), numpyro.optim.Adam(0.01), Trace_ELBO()).init(jax.random.key(0), Y)


@pytest.mark.parametrize("model", [of_a_latent_event, in_a_loop, parameter], ids=lambda model: model.__name__)
def test_svi_refuses_under_a_guide_written_by_hand(model):
    def guide(y):
        for name in ("w", "y") if model is of_a_latent_event else ("w",) if model is in_a_loop else ():
            numpyro.sample(name, dist.LogNormal(numpyro.param(f"{name}_loc", 0.0), 1.0))

    with pytest.raises(ebm.MissingLogNormalizerError, match=r"energy site 'y'.*depends on"):
        SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO()).init(jax.random.key(0), Y)


def discrete(y):
    """Of a discrete variable there is no derivative, and `NUTS` is shown the model with its value put in."""
    w = numpyro.sample("w", dist.Bernoulli(0.5))
    numpyro.sample("other", dist.Normal(0.0, 1.0))
    numpyro.sample("y", energy(1.0 + w).expand([4]).to_event(1), obs=y)


@pytest.mark.parametrize(
    "kernel", [lambda: DiscreteHMCGibbs(NUTS(discrete)), lambda: MixedHMC(HMC(discrete))], ids=["Gibbs", "mixed"]
)
def test_kernels_for_discrete_variables_refuse_by_themselves(kernel):
    with pytest.raises(ebm.MissingLogNormalizerError, match=r"energy site 'y'.*depends on 'w'"):
        kernel().init(jax.random.key(0), 1, None, (Y,), {})


def test_stein_refuses_under_a_guide_written_by_hand():
    def guide(y):
        del y
        numpyro.sample("w", dist.LogNormal(numpyro.param("loc", 0.0), 1.0))

    stein = SteinVI(in_a_loop, guide, numpyro.optim.Adam(0.01), RBFKernel(), num_stein_particles=2)
    with pytest.raises(ebm.MissingLogNormalizerError, match=r"energy site 'y'.*depends on 'w'"):
        stein.init(jax.random.key(0), Y)


def test_the_model_is_checked_once_and_as_it_was_given(monkeypatch):
    """Under the handlers around the call, and not under those of the execution in which the check happens."""
    calls = []

    def find(model, args, kwargs, *, params):
        calls.append(params)
        return find_missing(model, args, kwargs, params=params)

    monkeypatch.setattr("ebm_ppl.distributions._check_model.find_missing", find)
    with condition(data={"w": jnp.asarray(2.0)}):
        starts(direct)
    starts(prior)
    assert calls == [False, False]
    with pytest.raises(ebm.MissingLogNormalizerError), condition(data={"other": jnp.asarray(2.0)}):
        starts(direct)
    starts(parameter)
    assert calls == [False] * 4
    assert not numpyro.primitives._PYRO_STACK


def test_a_partial_declaration_does_not_silence_the_check():
    def both(params, x):
        return half_square(params[0], x - params[1])

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        distribution = energy(jnp.stack([latent(), mu]), both, constant_log_normalizer_in=["mu"])
        numpyro.sample("y", distribution.expand([4]), obs=y)

    with pytest.raises(ebm.MissingLogNormalizerError, match=r"energy site 'y' \(FunctionEnergy\) depends on 'w' and"):
        starts(model)


def test_nuts_by_itself_sees_what_only_derivatives_show():
    """A model that is called without `initialize_model`: the potential by hand."""
    for model in (direct, through_a_closure, through_the_support, random_module):
        names = {"w": 1.0, "other": 0.0} if model is not random_module else weights_of(model)
        with pytest.raises(ebm.MissingLogNormalizerError, match=r"ebm\.check_model"):
            jax.grad(lambda z, model=model: potential_energy(seed(model, 0), (Y,), {}, z))(names)


def weights_of(model):
    sites = trace(seed(model, 0)).get_trace(Y)
    return {name: site["value"] for name, site in sites.items() if name.startswith("w/")}
