"""Missing log Z: found by provenance (`check_model`) and refused by the automatic guard, without false alarms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.contrib.module import eqx_module, random_eqx_module
from numpyro.distributions import constraints
from numpyro.handlers import condition, seed
from numpyro.infer import HMC, MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import potential_energy

import ebm_ppl as ebm
from ebm_ppl.distributions import energy_dependencies

pytestmark = pytest.mark.usefixtures("numpyro_rules")

Y = jnp.ones((4, 2))
NET = ebm.MLPEnergy((2,), width=4, depth=1, key=jax.random.key(0))
SCALAR_NET = ebm.MLPEnergy((), width=4, depth=1, key=jax.random.key(0))


def half_square(precision, x):
    return jnp.sum(precision * x**2) / 2


def centred(mean, x):
    return jnp.sum((x - mean) ** 2) / 2


def conditional(x, condition):
    return jnp.sum(condition * x**2) / 2


def plain(x):
    return jnp.sum(x**2) / 2


def latent():
    numpyro.sample("other", dist.Normal(0.0, 1.0))
    return numpyro.sample("w", dist.Gamma(2.0, 2.0))


def energy(parameter, fn=half_square, event_shape=(2,), **kwargs):
    return ebm.EnergyDistribution(ebm.FunctionEnergy(fn, event_shape, parameter), **kwargs)


# --- energies that vary -----------------------------------------------------------------------------------------------


def direct(y):
    w = latent()
    with numpyro.plate("n", 4):
        numpyro.sample("y", energy(w), obs=y)


def through_a_deterministic_site(y):
    w = numpyro.deterministic("v", 2 * latent())
    numpyro.sample("y", energy(w).expand([4]).to_event(1), obs=y)


def through_a_closure(y):
    w = latent()
    fn = ebm.FunctionEnergy(lambda x: half_square(w, x), (2,))
    with numpyro.plate("n", 4):
        numpyro.sample("y", ebm.EnergyDistribution(fn).mask(True), obs=y)


def through_the_condition(y):
    w = latent()
    fn = ebm.FunctionEnergy(conditional, (2,), condition_shape=(2,))
    numpyro.sample("y", ebm.EnergyDistribution(fn, condition=w * y), obs=y)


def through_the_support(y):
    w = latent()
    numpyro.sample("y", ebm.EnergyDistribution(ebm.FunctionEnergy(plain, ()), support=constraints.interval(0.0, w)))
    del y


def of_a_latent_event(y):
    w = latent()
    flow = dist.transforms.AffineTransform(0.0, 2.0)
    numpyro.sample("y", dist.TransformedDistribution(energy(w, event_shape=()), flow))
    del y


def in_a_subsample(y):
    w = latent()
    with numpyro.plate("n", 4, subsample_size=2) as index, numpyro.handlers.scale(scale=2.0):
        numpyro.sample("y", energy(w), obs=y[index])


def random_module(y):
    numpyro.sample(
        "y", ebm.EnergyDistribution(random_eqx_module("w", NET, prior=dist.Normal(0.0, 1.0))).expand([4]), obs=y
    )


def trained_module(y):
    numpyro.sample("y", ebm.EnergyDistribution(eqx_module("w", NET)).expand([4]).to_event(1), obs=y)


def parameter(y):
    w = numpyro.param("w", 1.0, constraint=constraints.positive)
    numpyro.sample("y", energy(w).expand([4]).to_event(1), obs=y)


def in_a_loop(y):
    w = latent()

    def step(carry, row):
        numpyro.sample("y", energy(w), obs=row)
        return carry, None

    scan(step, 0.0, y)


def in_a_branch(y):
    w = latent()

    def first(_):
        numpyro.sample("y", energy(w, event_shape=()))

    def second(_):
        numpyro.sample("y", energy(1.0, event_shape=()))

    cond(w > 1, first, second, None)
    del y


def previous_state(y):
    """The condition of each step is the latent value of the step before."""

    def step(carry, row):
        fn = ebm.FunctionEnergy(conditional, (), condition_shape=())
        carry = numpyro.sample("w", ebm.EnergyDistribution(fn, condition=carry))
        return carry, None

    scan(step, jnp.ones(()), None, length=3)
    del y


def discrete_parent(y):
    w = numpyro.sample("w", dist.Categorical(jnp.ones(2) / 2), infer={"enumerate": "parallel"})
    numpyro.sample("y", energy(jnp.array([1.0, 2.0])[w], batch_shape=jnp.shape(w)), obs=y[0])


VARYING = {
    direct: "w",
    through_a_deterministic_site: "w",
    through_a_closure: "w",
    through_the_condition: "w",
    through_the_support: "w",
    of_a_latent_event: "w",
    in_a_subsample: "w",
    random_module: "w/mlp.layers[0].weight",
    trained_module: "w$params",
    parameter: "w",
    in_a_loop: "w",
    in_a_branch: "w",
    previous_state: "w",
    discrete_parent: "w",
}


@pytest.mark.parametrize("model", VARYING, ids=lambda model: model.__name__)
def test_check_model_names_energy_and_parameter(model):
    site = "w" if model is previous_state else "y"
    with pytest.raises(ebm.MissingLogNormalizerError, match=f"energy site '{site}'.*depends on") as error:
        ebm.check_model(model, Y)
    assert repr(VARYING[model]) in str(error.value)
    assert "'other'" not in str(error.value)
    for way_out in ("log_normalizer", "constant_log_normalizer_in=", "ExchangeKernel"):
        assert way_out in str(error.value)


# --- energies that do not ---------------------------------------------------------------------------------------------


def with_log_z(y):
    w = latent()
    numpyro.sample("y", energy(w, log_normalizer=jnp.log(2 * jnp.pi / w)).expand([4]).to_event(1), obs=y)


def declared(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    latent()
    numpyro.sample("y", energy(mu, centred, constant_log_normalizer_in=["mu"]).expand([4]).to_event(1), obs=y)


def prior(y):
    x = numpyro.sample("x", ebm.EnergyDistribution(NET))
    numpyro.sample("y", dist.Normal(x, latent()).to_event(1).expand([4]).to_event(1), obs=y)


def noise_in_a_loop(y):
    """A state-space model whose noise is a learnt energy; every variable passes through the same loop."""
    slope = latent()

    def step(carry, row):
        carry = slope * carry + numpyro.sample("e", ebm.EnergyDistribution(SCALAR_NET))
        numpyro.sample("y", dist.Normal(carry, 1.0).expand([2]).to_event(1), obs=row)
        return carry, carry

    scan(step, 0.0, y)


def conditioned_on_data(y):
    latent()
    fn = ebm.FunctionEnergy(conditional, (2,), condition_shape=(2,))
    numpyro.sample("y", ebm.EnergyDistribution(fn, condition=y).to_event(1), obs=y)


def talkative(y):
    jax.debug.callback(lambda w: None, latent())
    numpyro.sample("y", ebm.EnergyDistribution(NET).expand([4]).to_event(1), obs=y)


def reference(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    gaussian = ebm.energies.Gaussian(jnp.stack([mu, mu]), jnp.eye(2) * latent())
    numpyro.sample("y", ebm.EnergyDistribution(gaussian).expand([4]).to_event(1), obs=y)


W_OTHER = {"w": (), "other": ()}
CONSTANT = {
    with_log_z: W_OTHER,
    declared: W_OTHER | {"mu": ()},
    prior: W_OTHER | {"x": (2,)},
    noise_in_a_loop: W_OTHER | {"e": (4,)},
    conditioned_on_data: W_OTHER,
    talkative: W_OTHER,
    reference: W_OTHER | {"mu": ()},
}


@pytest.mark.parametrize(("model", "shapes"), CONSTANT.items(), ids=lambda p: getattr(p, "__name__", ""))
def test_no_false_alarms(model, shapes):
    """Neither `check_model` nor the guard, which acts while a derivative is traced: as NUTS, vmapped NUTS, HMC do."""
    ebm.check_model(model, Y)

    def potential(z, y):
        return potential_energy(model, (y,), {}, z)

    for batch in ((), (3,)):
        z = {name: jax.ShapeDtypeStruct(batch + shape, jnp.float32) for name, shape in shapes.items()}
        for derivative in (jax.value_and_grad(potential), jax.jacfwd(potential)):
            mapped = jax.vmap(derivative, in_axes=(0, None)) if batch else derivative
            jax.eval_shape(mapped, z, Y)
            jax.eval_shape(lambda z, mapped=mapped: mapped(z, Y), z)


def test_models_without_energies_pass():
    assert energy_dependencies(latent) == {}
    ebm.check_model(lambda: None)


def test_a_conditioned_parameter_is_no_longer_latent():
    """As in a Gibbs block: with `w` given, log Z is a constant."""
    ebm.check_model(condition(direct, {"w": jnp.asarray(2.0)}), Y)


# --- the automatic guard ----------------------------------------------------------------------------------------------

CONSTANT_TO_MCMC = (trained_module, parameter)  # sites of `numpyro.param` keep their first value
OF_MCMC = [model for model in VARYING if model not in CONSTANT_TO_MCMC]


def starts(model, **kwargs):
    MCMC(NUTS(model), num_warmup=2, num_samples=2, progress_bar=False, **kwargs).run(jax.random.key(0), Y)


@pytest.mark.parametrize("model", OF_MCMC, ids=lambda model: model.__name__)
def test_nuts_refuses_by_itself(model):
    """As `check_model` does, and with its message: loops, branches and enumeration included."""
    with pytest.raises(ebm.MissingLogNormalizerError, match=f"energy site.*depends on .*'{VARYING[model][0]}"):
        starts(model)


@pytest.mark.parametrize("settings", [{"jit_model_args": True}, {"num_chains": 2, "chain_method": "vectorized"}])
def test_the_guard_sees_through_jit_and_vmap(settings):
    mcmc = MCMC(NUTS(direct), num_warmup=2, num_samples=2, progress_bar=False, **settings)
    with pytest.raises(ebm.MissingLogNormalizerError, match=r"FunctionEnergy.*'w'"):
        mcmc.run(jax.random.key(0), Y)


def test_the_guard_works_in_forward_mode():
    kernel = HMC(direct, forward_mode_differentiation=True)
    with pytest.raises(ebm.MissingLogNormalizerError, match="'w'"):
        MCMC(kernel, num_warmup=2, num_samples=2, progress_bar=False).run(jax.random.key(0), Y)


def test_every_varying_model_is_refused_by_blackjax_kernel_before_anything_is_compiled():
    for model in (direct, in_a_loop, in_a_branch, discrete_parent):
        mcmc = MCMC(ebm.BlackJAXKernel(model), num_warmup=2, num_samples=2, progress_bar=False)
        with pytest.raises(ebm.MissingLogNormalizerError, match=r"energy site 'y' \(FunctionEnergy\) depends on 'w'"):
            mcmc.run(jax.random.key(0), Y)


def step_of_svi(model, guide, *args, **kwargs):
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO(**kwargs))
    return svi.update(svi.init(jax.random.key(0), *args), *args)[1]


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("model", [direct, trained_module, parameter], ids=lambda model: model.__name__)
def test_svi_refuses_varying_energies(model, particles):
    with pytest.raises(ebm.MissingLogNormalizerError):
        step_of_svi(model, AutoNormal(model), Y, num_particles=particles)


@pytest.mark.parametrize("model", [with_log_z, declared, prior, reference])
def test_svi_accepts_the_others(model):
    assert np.isfinite(step_of_svi(model, AutoNormal(model), Y))


def test_an_energy_as_a_guide_is_refused_unless_normalised():
    def model():
        numpyro.sample("x", dist.Normal(0.0, 0.5))

    def draw(energy, key, sample_shape):
        return jax.random.normal(key, sample_shape) / jnp.sqrt(energy.params)

    def guide(log_z=False):
        w = numpyro.param("w", 1.0, constraint=constraints.positive)
        log_normalizer = -0.5 * jnp.log(w / (2 * jnp.pi)) if log_z else None
        numpyro.sample("x", energy(w, event_shape=(), log_normalizer=log_normalizer, sampler=draw))

    with pytest.raises(ebm.MissingLogNormalizerError, match="'w'"):
        step_of_svi(model, guide)
    assert np.isfinite(step_of_svi(model, lambda: guide(log_z=True)))


def test_prediction_and_training_are_not_concerned():
    """No derivative with respect to a latent variable is taken: nothing to guard."""
    samples = {"w": jnp.array([1.0, 2.0]), "other": jnp.zeros(2)}
    with pytest.raises(NotImplementedError, match="sampler="):
        Predictive(direct, samples)(jax.random.key(0), None)

    def contrastive(w):
        with seed(rng_seed=0):
            numpyro.sample("w", dist.Gamma(2.0, 2.0))
            model = energy(w)
        return jnp.mean(model.log_prob(Y)) - jnp.mean(model.log_prob(2 * Y))

    assert jax.grad(contrastive)(1.0) == 3.0


def test_an_outer_derivative_is_no_latent_variable():
    """Empirical Bayes by hand: the energy depends on a hyperparameter that is differentiated outside of the model."""

    def model(hyper, y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("z", energy(hyper), obs=x)
        del y

    def inner_gradient(hyper):
        return jax.grad(lambda z: potential_energy(model, (hyper, Y), {}, {"x": z}))(jnp.ones(2))

    assert jax.jacobian(inner_gradient)(2.0).shape == (2,)


# --- mixtures ---------------------------------------------------------------------------------------------------------


def test_mixtures_need_normalised_components():
    weights = dist.Categorical(probs=jnp.array([0.3, 0.7]))
    unknown = ebm.EnergyDistribution(ebm.FunctionEnergy(plain, ()))
    known = ebm.EnergyDistribution(ebm.FunctionEnergy(plain, ()), log_normalizer=0.5 * np.log(2 * np.pi))
    for components in ([dist.Normal(0.0, 1.0), unknown], [unknown.expand([3]), known.expand([3])]):
        with pytest.raises(ebm.MissingLogNormalizerError, match="MixtureGeneral needs normalised components"):
            dist.MixtureGeneral(weights, components)
    with pytest.raises(ebm.MissingLogNormalizerError, match="MixtureSameFamily"):
        dist.MixtureSameFamily(weights, unknown.expand([2]))
    mixture = dist.MixtureGeneral(weights, [dist.Normal(0.0, 1.0), known])
    np.testing.assert_allclose(mixture.log_prob(0.7), dist.Normal(0.0, 1.0).log_prob(0.7), rtol=1e-6)
