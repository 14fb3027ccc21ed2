"""The trap of `az.loo`: energies of unknown scale. With log Z the true model wins; without it nobody may compare."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, log_likelihood
from scipy import stats

import ebm_ppl as ebm
from tests.distributions.normals import log_prob_of
from tests.foreign import standard_promotion

DATA = np.random.default_rng(3).normal(0.4, 1.0, 50)
PRIOR_SCALE = 3.0
SCALES, OFFSETS = (1.0, 3.0, 0.5), (0.0, -120.0, 7.0)  # offsets: what a learnt energy leaves undetermined


def square(params, x):
    return params["offset"] + (x - params["mean"]) ** 2 / (2 * params["scale"] ** 2)


def log_z(scale, offset):
    """As a user would get it: from the energy alone."""
    params = {"offset": offset, "mean": 0.3, "scale": scale}
    return ebm.normalizers.quadrature(ebm.FunctionEnergy(square, (), jax.tree.map(jnp.asarray, params)))


def model(scale, offset, log_normalizer, y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, PRIOR_SCALE))
    params = {"offset": jnp.asarray(offset), "scale": jnp.asarray(scale), "mean": mean}
    energy = ebm.EnergyDistribution(
        ebm.FunctionEnergy(square, (), params), log_normalizer=log_normalizer, constant_log_normalizer_in="mean"
    )
    with numpyro.plate("n", len(DATA)):
        numpyro.sample("y", energy, obs=y)


def posterior(scale, data):
    """Mean and variance of the conjugate posterior of the location."""
    precision = 1 / PRIOR_SCALE**2 + len(data) / scale**2
    return data.sum() / scale**2 / precision, 1 / precision


def exact_elpd(scale):
    """Leave-one-out log predictive density, each term a normal."""
    total = 0.0
    for i in range(len(DATA)):
        mean, variance = posterior(scale, np.delete(DATA, i))
        total += stats.norm.logpdf(DATA[i], mean, np.sqrt(variance + scale**2))
    return total


def posterior_with_likelihood(scale, offset, log_normalizer):
    mean, variance = posterior(scale, DATA)
    draws = mean + np.sqrt(variance) * np.random.default_rng(0).normal(size=(4, 1000))
    y = jnp.asarray(DATA, float)
    with standard_promotion():
        values = log_likelihood(
            model, {"mean": jnp.asarray(draws, float)}, scale, offset, log_normalizer, y, batch_ndims=2
        )
    return az.from_dict({"posterior": {"mean": draws}, "log_likelihood": {"y": np.asarray(values["y"], float)}})


def compared(log_normalizers):
    trees = {
        str(scale): posterior_with_likelihood(scale, offset, value)
        for scale, offset, value in zip(SCALES, OFFSETS, log_normalizers, strict=True)
    }
    return {name: az.loo(tree) for name, tree in trees.items()}, az.compare(trees)


def test_with_log_z_the_true_model_wins_and_elpd_is_exact():
    estimates, table = compared([log_z(*case) for case in zip(SCALES, OFFSETS, strict=True)])
    assert table.index[0] == "1.0"
    for scale in SCALES:
        elpd = estimates[str(scale)].elpd
        # PSIS-LOO over 4,000 independent draws: its own error is far below .1 nats for 50 regular observations.
        assert elpd == pytest.approx(exact_elpd(scale), abs=0.1)


def test_without_log_z_the_comparison_would_crown_the_wrong_model():
    """The twin: unnormalised energies, which a user could smuggle in as log Z = 0."""
    _, table = compared([0.0, 0.0, 0.0])
    assert table.index[0] == "3.0"


def test_without_log_z_the_log_likelihood_is_refused():
    for parallel in (False, True):
        with pytest.raises(ebm.MissingLogNormalizerError, match=r"az\.loo.*ebm\.log_normalizer"):
            log_likelihood(model, {"mean": jnp.zeros(3)}, 1.0, 0.0, None, jnp.asarray(DATA, float), parallel=parallel)


def test_az_from_numpyro_is_refused_and_the_posterior_is_not():
    with standard_promotion():
        mcmc = MCMC(NUTS(model), num_warmup=20, num_samples=20, progress_bar=False)
        mcmc.run(jax.random.key(0), 1.0, 0.0, None, jnp.asarray(DATA, float))
        assert "posterior" in az.from_numpyro(mcmc).children
        with pytest.raises(ebm.MissingLogNormalizerError, match="log_normalizer"):
            az.from_numpyro(mcmc, log_likelihood=True)


@pytest.mark.parametrize(
    "wrap", [lambda d: d, lambda d: d.expand([4]), lambda d: d.mask(True), lambda d: d.to_event(0)]
)
def test_every_wrapping_is_refused(wrap):
    energy = ebm.EnergyDistribution(ebm.FunctionEnergy(lambda x: x**2, ()))

    def wrapped():
        numpyro.sample("x", dist.Normal())
        numpyro.sample("y", wrap(energy), obs=jnp.zeros(4))

    with pytest.raises(ebm.MissingLogNormalizerError):
        log_likelihood(wrapped, {"x": jnp.zeros(2)})
    assert log_prob_of(wrap(energy), jnp.zeros(4)).shape == (4,)
