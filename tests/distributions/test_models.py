"""`EnergyDistribution` in every context of a NumPyro model, against the same law as a NumPyro distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import scale, seed, trace
from numpyro.infer import SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import initialize_model, potential_energy

import ebm_ppl as ebm
from tests.distributions.normals import (
    GAUSSIAN,
    normal,
    reference_normal,
)

DATA = jnp.array([[0.3, -1.0], [1.5, 0.2], [-0.7, 0.4], [2.0, 1.0]])


def latent(make):
    x = numpyro.sample("x", make(0.5, 2.0))
    numpyro.sample("y", dist.Normal(x, 0.5), obs=0.3)


def observed(make):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", make(x, 2.0), obs=jnp.asarray(0.3))


def latent_precision(make):
    x = numpyro.sample("x", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("n", 2):
        numpyro.sample("y", make(0.0, x), obs=DATA[0])


def in_plate(make):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("m", 4, dim=-2), numpyro.plate("n", 2, dim=-1):
        numpyro.sample("y", make(x, 2.0), obs=DATA)


def latent_in_plate(make):
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", make(0.5, 2.0))
        numpyro.sample("y", make(x, jnp.array([1.0, 3.0]), batch_shape=(2,)), obs=DATA[0])


def expanded(make):
    numpyro.sample("x", make(0.5, 2.0).expand([2]).to_event(1))


def independent(make):
    numpyro.sample("x", make(jnp.array([0.5, 1.0]), 2.0, batch_shape=(2,)).to_event(1))


def masked(make):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 2):
        numpyro.sample("y", make(x, 2.0).mask(jnp.array([True, False])), obs=DATA[0])


def scaled(make):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with scale(scale=3.0):
        numpyro.sample("y", make(x, 2.0), obs=jnp.asarray(0.3))


def subsampled(make):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 4, subsample_size=2) as index:
        numpyro.sample("y", make(x, 2.0), obs=DATA[index, 0])


def transformed(make):
    flow = dist.transforms.AffineTransform(1.0, 2.0)
    numpyro.sample("x", dist.TransformedDistribution(make(0.5, 2.0), [flow, dist.transforms.ExpTransform()]))


def scanned_latents(make):
    def step(carry, _):
        carry = numpyro.sample("x", make(carry, 2.0))
        return carry, carry

    scan(step, jnp.asarray(0.0), None, length=3)


def scanned_observations(make):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))

    def step(carry, data):
        mean, y = data
        with numpyro.plate("n", 2):
            numpyro.sample("y", make(carry + mean, 2.0), obs=y)
        return carry, None

    scan(step, x, (jnp.arange(4.0), DATA))


def scanned_plates(make):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))

    def step(carry, y):
        with numpyro.plate("n", 2):
            numpyro.sample("y", make(jnp.array([0.0, 1.0]) + carry, 2.0, batch_shape=(2,)), obs=y)
        return carry + 1.0, None

    scan(step, x, DATA)


CONTEXTS = {
    latent: (),
    observed: (),
    latent_precision: (),
    in_plate: (),
    latent_in_plate: (2,),
    expanded: (2,),
    independent: (2,),
    masked: (),
    scaled: (),
    subsampled: (),
    transformed: (),
    scanned_latents: (3,),
    scanned_observations: (),
    scanned_plates: (),
}


def normalised(*args, **kwargs):
    return normal(*args, **kwargs)


@pytest.mark.usefixtures("numpyro_rules")
@pytest.mark.parametrize(("context", "shape"), CONTEXTS.items(), ids=lambda p: getattr(p, "__name__", ""))
def test_in_every_context_potential_and_gradient_are_those_of_the_closed_form(context, shape, key):
    z = {"x": jax.random.normal(key, shape)}
    results = []
    for make in (normalised, reference_normal):
        model = seed(context, 0)
        results.append(jax.value_and_grad(lambda z, m=model, make=make: potential_energy(m, (make,), {}, z))(z))
    (value, gradient), (expected, expected_gradient) = results
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient["x"], expected_gradient["x"], rtol=1e-4, atol=1e-5)


def mixture(make):
    """A discrete parent, summed out: parameters carry the enumeration axis, which is declared."""
    c = numpyro.sample("c", dist.Categorical(jnp.array([0.3, 0.7])), infer={"enumerate": "parallel"})
    mean = jnp.array([-1.0, 2.0])[c]
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 2):
        numpyro.sample("y", make(mean + x, 2.0, batch_shape=jnp.shape(mean)), obs=DATA[0])


def mixture_in_plate(make):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 2):
        c = numpyro.sample("c", dist.Categorical(jnp.array([0.3, 0.7])), infer={"enumerate": "parallel"})
        mean = jnp.array([-1.0, 2.0])[c]
        numpyro.sample("y", make(mean + x, 2.0, batch_shape=jnp.shape(mean)), obs=DATA[0])


@pytest.mark.usefixtures("numpyro_rules")
@pytest.mark.parametrize("context", [mixture, mixture_in_plate])
def test_enumeration_sums_over_components_only(context):
    values = []
    for make in (normalised, reference_normal):
        info = initialize_model(jax.random.key(0), context, model_args=(make,))
        values.append(jax.value_and_grad(info.potential_fn)({"x": jnp.asarray(0.4)}))
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-5)
    np.testing.assert_allclose(values[0][1]["x"], values[1][1]["x"], rtol=1e-4)


@pytest.mark.usefixtures("numpyro_rules")
@pytest.mark.parametrize("context", [latent, latent_precision, latent_in_plate, expanded, masked, scaled])
def test_variational_inference_has_the_bound_of_the_closed_form(context):
    losses = []
    for make in (normalised, reference_normal):
        svi = SVI(context, AutoNormal(context), numpyro.optim.Adam(0.1), Trace_ELBO())
        state = svi.init(jax.random.key(0), make)
        for _ in range(2):
            state, loss = svi.update(state, make)
        losses.append(loss)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.usefixtures("numpyro_rules")
def test_predictive_and_log_likelihood_and_traces(key):
    samples = {"x": jnp.linspace(-1.0, 1.0, 5)}
    expected = log_likelihood(in_plate, samples, reference_normal)["y"]
    for parallel in (False, True):
        ours = log_likelihood(in_plate, samples, normalised, parallel=parallel)["y"]
        assert ours.shape == (5, 4, 2)
        np.testing.assert_allclose(ours, expected, rtol=1e-5)

    def model(y=None):
        x = numpyro.sample("x", ebm.EnergyDistribution(GAUSSIAN))
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    for parallel in (False, True):
        prior = Predictive(model, num_samples=6, parallel=parallel)(jax.random.key(0))
        assert prior["x"].shape == prior["y"].shape == (6, 2)
    site = trace(seed(model, 0)).get_trace()["x"]
    assert site["fn"].log_prob(site["value"]).shape == ()
