"""Every cell of {latent, observed} x contexts x engines x supports equals the closed form, or is refused.

Each engine is started as in real use, and what it then works with is compared to rounding: for NUTS and BlackJAXKernel
the potential and the gradient in the chain's first state, for SVI the bound and its gradient at a fixed key. Whole
runs follow, against quadrature: one for each context here, one for each cell under `-m slow`.
"""

import functools
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import block, replay, seed, substitute, trace
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO
from numpyro.infer.autoguide import AutoNormal

import ebm_ppl as ebm
from tests.infer.matrix import (
    CONTEXTS,
    LAWS,
    MCMC_ENGINES,
    MODELS,
    ROLES,
    as_energy,
    exact_loss,
    exact_posterior,
    exact_potential,
    features,
    missing_constant,
    site_of,
    unconstrained_shape,
    varies,
)
from tests.infer.verdicts import ENGINES, EXACT, REFUSED, SAMPLER, VERDICTS, table
from tests.statistics import StatisticalError, assert_mean_close

pytestmark = [
    pytest.mark.usefixtures("numpyro_rules"),
    pytest.mark.filterwarnings("ignore:Continuous inference poorly handles circular"),
]

SUBSAMPLING = (
    "Missing random key to generate subsample indices. Algorithms like HMC/NUTS do not support subsampling. "
    "You might want to use SVI or HMCECS instead."
)

CELLS = list(itertools.product(ROLES, CONTEXTS, ENGINES, LAWS))
OF_MCMC = [cell for cell in CELLS if cell[2] in MCMC_ENGINES and VERDICTS[cell[:3]] == EXACT]
every_cell = pytest.mark.parametrize(("role", "context", "engine", "name"), CELLS, ids=["-".join(c) for c in CELLS])


# --- what the engines work with ---------------------------------------------------------------------------------------


def kernel_of(engine, model):
    return NUTS(model) if engine == "NUTS" else ebm.BlackJAXKernel(model, kernel=ebm.HMC())


@functools.cache
def points(role, name):
    """Unconstrained values: one where each engine of MCMC starts."""
    return jax.random.normal(jax.random.key(3), (len(MCMC_ENGINES), *unconstrained_shape(role, LAWS[name])))


@functools.cache
def exact_points(role, context, name):
    """Potential and gradient in closed form."""
    exact = jax.value_and_grad(lambda z: exact_potential(role, context, LAWS[name], z))
    return jax.jit(jax.vmap(exact))(points(role, name))


def seen_by_mcmc(role, context, engine, name, make):
    """Potential and gradient in the first state of a chain, and their closed form there."""
    number, site = MCMC_ENGINES.index(engine), site_of(role)
    z = points(role, name)[number]
    exact = [part[number] for part in exact_points(role, context, name)]
    kernel = kernel_of(engine, MODELS[role, context])
    state = kernel.init(jax.random.key(0), 0, {site: z}, (LAWS[name], make), {})
    if engine == "NUTS":
        return (state.potential_energy, state.z_grad[site]), exact
    return (state.potential_energy, -state.chain.inner.logdensity_grad.reshape(z.shape)), exact


def start_svi(role, context, name, make):
    model = MODELS[role, context]
    elbo = TraceEnum_ELBO() if context == "enumeration" else Trace_ELBO()
    svi = SVI(model, AutoNormal(block(model, hide=["c"])), numpyro.optim.Adam(0.1), elbo)
    state = svi.init(jax.random.key(0), LAWS[name], make)
    return svi, svi.optim.get_params(state.optim_state)


def loss_of_svi(svi, params, key, name, make):
    return svi.loss.loss(key, svi.constrain_fn(params), svi.model, svi.guide, LAWS[name], make)


def seen_by_svi(role, context, name, make):
    """The bound with its gradient, and the closed form of both, at the same draw of the guide."""
    svi, params = start_svi(role, context, name, make)
    key = jax.random.key(7)

    def exact(params):
        model_key, guide_key = jax.random.split(key)
        guide = seed(substitute(svi.guide, data=svi.constrain_fn(params)), guide_key)
        drawn = trace(guide).get_trace(LAWS[name], make)
        if context != "subsample":
            return exact_loss(role, context, LAWS[name], drawn[site_of(role)])
        model = trace(replay(seed(svi.model, model_key), drawn)).get_trace(LAWS[name], make)
        return exact_loss(role, context, LAWS[name], drawn[site_of(role)], model["n"]["value"])

    return (
        jax.value_and_grad(lambda params: loss_of_svi(svi, params, key, name, make))(params),
        jax.value_and_grad(exact)(params),
    )


def check(role, context, engine, name, make):
    """One cell: value and gradient are those of the closed form, to rounding."""
    if engine == "SVI":
        seen, exact = seen_by_svi(role, context, name, make)
    else:
        seen, exact = seen_by_mcmc(role, context, engine, name, make)
    for ours, theirs in zip(jax.tree.leaves(seen), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@every_cell
def test_every_cell_is_exact_or_refused(role, context, engine, name):
    verdict, log_z = VERDICTS[role, context, engine], varies(role, context)
    make = as_energy(LAWS[name], log_z=log_z)
    if verdict == REFUSED:
        with pytest.raises(ValueError, match=f"^{re.escape(SUBSAMPLING)}"):
            check(role, context, engine, name, make)
        return
    if verdict == SAMPLER:
        with pytest.raises(NotImplementedError, match="cannot draw: give `sampler="):
            check(role, context, engine, name, make)
        make = as_energy(LAWS[name], log_z=log_z, draws=True)
    check(role, context, engine, name, make)


def test_the_documentation_holds_this_matrix():
    page = pathlib.Path(__file__).parents[2] / "docs" / "api" / "numpyro.md"
    assert table() in page.read_text(encoding="utf-8")
    assert len(CELLS) == 168


NEED_LOG_Z = [cell for cell, verdict in VERDICTS.items() if varies(*cell[:2]) and verdict != REFUSED]


@pytest.mark.parametrize(("role", "context", "engine"), NEED_LOG_Z)
def test_a_varying_energy_without_log_z_is_refused_by_every_engine(role, context, engine):
    make = as_energy(LAWS["real"], log_z=False, draws=True)
    site = "x" if role == "latent" else "y"
    with pytest.raises(
        ebm.MissingLogNormalizerError, match=rf"energy site '{site}' \(FunctionEnergy\) depends on '[ct]'"
    ):
        check(role, context, engine, "real", make)


# --- broken twins: what is silently wrong does not pass ---------------------------------------------------------------


class Summed(ebm.EnergyDistribution):
    """The batch is summed over."""

    def log_prob(self, value, intermediates=None):
        log_prob = super().log_prob(value)
        return jnp.broadcast_to(jnp.sum(log_prob), log_prob.shape)


class Unmasked(ebm.EnergyDistribution):
    """The mask is dropped."""

    def mask(self, mask):
        return self


class Unscaled(ebm.EnergyDistribution):
    """The scale of a minibatch, two, is dropped."""

    def log_prob(self, value, intermediates=None):
        return super().log_prob(value) / 2


class Unstretched(ebm.EnergyDistribution):
    """As if there were no log |det| in the potential."""

    def log_prob(self, value, intermediates=None):
        transform = dist.biject_to(self.support)
        return super().log_prob(value) - transform.log_abs_det_jacobian(transform.inv(value), value)


class Unparametrized(ebm.EnergyDistribution):
    """Every element of a batch, a series, an enumeration gets the parameter of the first."""

    def potential_energy(self, value):
        first = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf.ravel()[0], leaf.shape), self._arrays)
        broken = self.tree_unflatten(self.tree_flatten()[1], self.tree_flatten()[0])
        broken._arrays = first
        return ebm.EnergyDistribution.potential_energy(broken, value)


TWINS = [
    *((Summed, role, context, "real") for role in ROLES for context in CONTEXTS if context != "subsample"),
    *((Unparametrized, role, context, "real") for role in ROLES for context in ("to_event", "scan", "enumeration")),
    *((Unmasked, role, "mask", "simplex") for role in ROLES),
    *((Unstretched, "latent", "plate", name) for name in ("positive", "simplex", "circular")),
]


@pytest.mark.parametrize(("twin", "role", "context", "name"), TWINS)
def test_a_broken_distribution_is_found_by_mcmc(twin, role, context, name):
    make = as_energy(LAWS[name], log_z=varies(role, context), cls=twin)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(role, context, "NUTS", name, make)


@pytest.mark.parametrize(
    ("twin", "role", "context", "name"),
    [
        (Summed, "latent", "plate", "simplex"),
        (Unmasked, "latent", "mask", "positive"),
        (Unscaled, "latent", "subsample", "real"),
        (Unscaled, "observed", "subsample", "circular"),
        (Unstretched, "latent", "expand", "positive"),
        (Unparametrized, "observed", "enumeration", "real"),
    ],
)
def test_a_broken_distribution_is_found_by_svi(twin, role, context, name):
    make = as_energy(LAWS[name], log_z=varies(role, context), cls=twin)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(role, context, "SVI", name, make)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_false_declaration_that_log_z_is_constant_is_found(engine):
    """What a user can still get wrong: the declaration is taken at its word."""
    make = as_energy(LAWS["positive"], log_z=False, constant_log_normalizer_in="t")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check("observed", "plate", engine, "positive", make)


# --- at the exact posterior the bound is the evidence -----------------------------------------------------------------


@pytest.mark.parametrize("context", ["plate", "expand", "to_event", "mask", "scan"])
def test_the_bound_at_the_exact_posterior_is_the_evidence_for_every_draw(context):
    """Normal prior, normal likelihood: the family of `AutoNormal` holds the posterior."""
    make = as_energy(LAWS["real"], log_z=False, draws=True)
    svi, _ = start_svi("latent", context, "real", make)
    moments, log_evidence = exact_posterior("latent", context, "real")
    mean, scale = moments[:, 0], np.sqrt(moments[:, 1] - moments[:, 0] ** 2)
    params = {"x_auto_loc": jnp.asarray(mean, jnp.float32), "x_auto_scale": jnp.asarray(scale, jnp.float32)}
    expected = -log_evidence - missing_constant("latent", context, LAWS["real"])
    for number in range(2):
        loss = svi.loss.loss(jax.random.key(number), params, svi.model, svi.guide, LAWS["real"], make)
        np.testing.assert_allclose(loss, expected, rtol=1e-4)


# --- whole runs -------------------------------------------------------------------------------------------------------


def run(role, context, engine, name, make, num_samples):
    kernel = kernel_of(engine, MODELS[role, context])
    settings = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=300, num_samples=num_samples, **settings)
    mcmc.run(jax.random.key(1), LAWS[name], make)
    return features(role, name, mcmc.get_samples(group_by_chain=True)[site_of(role)])


REPRESENTATIVE = [
    ("latent", "plate", "NUTS", "simplex"),
    ("observed", "expand", "BlackJAXKernel", "circular"),
    ("latent", "to_event", "BlackJAXKernel", "positive"),
    ("latent", "mask", "BlackJAXKernel", "simplex"),
    ("latent", "scan", "BlackJAXKernel", "circular"),
    ("observed", "enumeration", "BlackJAXKernel", "real"),
    ("latent", "enumeration", "NUTS", "positive"),
]


@pytest.mark.parametrize("cell", REPRESENTATIVE, ids="-".join)
def test_means_and_second_moments_of_whole_runs(cell):
    role, context, engine, name = cell
    make = as_energy(LAWS[name], log_z=varies(role, context))
    draws = run(role, context, engine, name, make, 1000)
    expected = exact_posterior(role, context, name)[0]
    assert_mean_close(draws, expected)
    with pytest.raises(StatisticalError):  # another posterior of the same kind
        assert_mean_close(draws, exact_posterior(role, "plate" if context == "mask" else "mask", name)[0])


@pytest.mark.slow
@pytest.mark.parametrize("cell", OF_MCMC, ids="-".join)
def test_means_and_second_moments_of_every_cell(cell):
    role, context, engine, name = cell
    make = as_energy(LAWS[name], log_z=varies(role, context))
    draws = run(role, context, engine, name, make, 5000)
    assert_mean_close(draws, exact_posterior(role, context, name)[0])
