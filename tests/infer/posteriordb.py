"""Nine posteriors of posteriordb, written in NumPyro after their Stan programs.

Magnusson, Torgander, Bürkner, Zhang, Carpenter, Vehtari (2025). posteriordb: Testing, benchmarking and developing
Bayesian inference algorithms. AISTATS. arXiv:2407.04967. Data and reference draws: github.com/stan-dev/posteriordb.
"""

import json
import pathlib
import zipfile

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints


def flat(support=constraints.real, shape=()):
    return dist.ImproperUniform(support, shape, ())


def linear(x, y, coefficients, noise):
    """Normal errors around x @ beta, the columns being shifted and scaled is left to the sampler."""
    beta = numpyro.sample("beta", coefficients)
    sigma = numpyro.sample("sigma", noise)
    numpyro.sample("y", dist.Normal(x @ beta, sigma).to_event(1), obs=y)


def flat_linear(x, y):
    linear(x, y, flat(shape=(x.shape[1],)).to_event(1), flat(constraints.positive))


def ark(lags, y):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma).to_event(1), obs=y)


def eight_schools(y, error):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    offset = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    theta = numpyro.deterministic("theta", mu + tau * offset)
    numpyro.sample("y", dist.Normal(theta, error).to_event(1), obs=y)


def gp_regression(x, y):
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    covariance = alpha**2 * jnp.exp(-((x[:, None] - x[None, :]) ** 2) / (2 * rho**2)) + sigma * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)


def kidscore(x, y):
    linear(x, y, flat(shape=(2,)).to_event(1), dist.HalfCauchy(2.5))


def blr(x, y):
    linear(x, y, dist.Normal(0.0, 10.0).expand([5]).to_event(1), dist.HalfNormal(10.0))


def gauss_mix(y):
    """Ordered means with a N(0, 2) prior each: an unnormalised density on the ordered cone, as in Stan."""
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    mixture = dist.MixtureSameFamily(weights, dist.Normal(mu, sigma))
    numpyro.sample("y", mixture.expand([len(y)]).to_event(1), obs=y)


def _columns(data, *names):
    return np.stack([np.ones(data["N"]), *(np.asarray(data[name], float) for name in names)], axis=1)


def _lags(data):
    y, order = np.asarray(data["y"]), data["K"]
    lags = np.stack([y[order - k - 1 : len(y) - k - 1] for k in range(order)], axis=1)
    return lags, y[order:]


def _mesquite(data):
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    logs = {name: np.log(data[name]) for name in names} | {"N": data["N"], "group": data["group"]}
    return _columns(logs, *names, "group"), np.log(data["weight"])


def _election(data):
    age = np.asarray(data["age_discrete"])
    ages = {f"age{k}": age == k for k in (2, 3, 4)}
    names = ("real_ideo", "race_adj", *ages, "educ1", "gender", "income")
    return _columns(data | ages, *names), data["partyid7"]


MODELS = {
    "arK-arK": ("arK", ark, _lags),
    "earnings-log10earn_height": (
        "earnings",
        flat_linear,
        lambda data: (_columns(data, "height"), np.log10(data["earn"])),
    ),
    "eight_schools-eight_schools_noncentered": ("eight_schools", eight_schools, lambda d: (d["y"], d["sigma"])),
    "gp_pois_regr-gp_regr": ("gp_pois_regr", gp_regression, lambda data: (data["x"], data["y"])),
    "kidiq-kidscore_momiq": ("kidiq", kidscore, lambda data: (_columns(data, "mom_iq"), data["kid_score"])),
    "low_dim_gauss_mix-low_dim_gauss_mix": ("low_dim_gauss_mix", gauss_mix, lambda data: (data["y"],)),
    "mesquite-logmesquite": ("mesquite", flat_linear, _mesquite),
    "nes1980-nes": ("nes1980", flat_linear, _election),
    "sblrc-blr": ("sblrc", blr, lambda data: (data["X"], data["y"])),
}
REFERENCE = json.loads(pathlib.Path(__file__).with_name("posteriordb_reference.json").read_text())


def load(folder, name):
    """The model and its data as arrays."""
    data_name, model, arguments = MODELS[name]
    with zipfile.ZipFile(pathlib.Path(folder) / f"{data_name}.data.json.zip") as archive:
        data = json.loads(archive.read(archive.namelist()[0]))
    return model, [jnp.asarray(np.asarray(values, float), jnp.result_type(float)) for values in arguments(data)]


def columns(samples):
    """`{parameter[i]: (chain, draw)}` under Stan's names."""
    found = {}
    for name, values in samples.items():
        values = np.asarray(values, float)
        if values.ndim == 2:
            found[name] = values
        else:
            found |= {f"{name}[{i + 1}]": values[..., i] for i in range(values.shape[-1])}
    return found
