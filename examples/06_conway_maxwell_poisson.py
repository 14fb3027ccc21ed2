r"""Counts with less spread than Poisson's: a regression whose normalising constant is an infinite series.

Data: ten shipments by air of 1,000 ampules each; how often each was moved from one aircraft to another, and how many
ampules were found broken (Kutner, Nachtsheim, Neter 2003, Applied Linear Regression Models). The counts lie closer to
a curve in `transfers` than Poisson counts would. The Conway-Maxwell-Poisson model has a parameter for that,

    p(y) = lambda^y / (y!)^nu / Z(lambda, nu),    log lambda = intercept + slope transfers,

Poisson for nu = 1, narrower for nu > 1: an energy E = nu log y! - y log lambda. `ebm.ExchangeKernel` needs draws from
it, but never Z. Here the series is easily summed, so maximum likelihood and the exact posterior are known as well;
both are compared, with each other, with the exchange algorithm, and with the fit that Sellers and Shmueli published.

`python examples/06_conway_maxwell_poisson.py`; `--short` is a smoke test, too short to conclude anything.

References:
    Sellers, Shmueli (2010). A flexible regression model for count data. Annals of Applied Statistics 4(2), 943-961.
    doi:10.1214/09-AOAS306
    Chanialidis, Evers, Neocleous, Nobile (2018). Efficient Bayesian inference for COM-Poisson regression models.
    Statistics and Computing 28, 595-608. doi:10.1007/s11222-017-9750-x
    Murray, Ghahramani, MacKay (2006). MCMC for doubly-intractable distributions. UAI 22. arXiv:1206.6848
"""

import argparse
import pathlib
import sys
import time
from typing import Any, NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from matplotlib.figure import Figure
from scipy.special import gammaln, logsumexp
from scipy.stats import norm

import ebm_ppl as ebm

BROKEN = np.array([16, 9, 17, 12, 22, 13, 8, 15, 19, 11], np.float32)
TRANSFERS = np.array([1, 0, 2, 0, 3, 1, 0, 1, 2, 0], np.float32)
PUBLISHED = {"intercept": 13.8247, "slope": 1.4838, "nu": 5.7818}  # maximum likelihood, Sellers and Shmueli
COUNTS = np.arange(120)  # what is summed over, and drawn from: larger counts have no weight that rounding would keep


class Settings(NamedTuple):
    """How much work is done."""

    num_warmup: int
    num_samples: int  # per chain, of 4


FULL = Settings(num_warmup=1000, num_samples=10_000)
SHORT = Settings(num_warmup=50, num_samples=100)


# --- 1. The model ----------------------------------------------------------------------------------------------------


def conway_maxwell_poisson(params: dict[str, Array], y: Array, transfers: Array) -> Array:
    """E of one count."""
    log_rate = params["intercept"] + params["slope"] * transfers
    return params["nu"] * jax.scipy.special.gammaln(y + 1) - y * log_rate


def draw_counts(energy: ebm.AbstractEnergy, key: Array, sample_shape: tuple[int, ...], transfers: Array) -> Array:
    """Exact draws without Z: the largest of -E(y) + Gumbel noise over all y is distributed as exp(-E)."""
    y = jnp.asarray(COUNTS, jnp.float32)
    log_p = -jax.vmap(energy, in_axes=(0, None))(y, transfers)
    return y[jnp.argmax(log_p + jax.random.gumbel(key, (*sample_shape, len(y))), axis=-1)]


def breakage(y: Array) -> None:
    """The NumPyro model. Given nu, log lambda / nu is about the logarithm of the mean: so the priors are on that."""
    level = numpyro.sample("level", dist.Normal(0.0, 5.0))
    effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
    nu = numpyro.sample("nu", dist.LogNormal(0.0, 1.5))  # the median is Poisson
    intercept, slope = (numpyro.deterministic(*pair) for pair in (("intercept", nu * level), ("slope", nu * effect)))
    params = {"intercept": intercept, "slope": slope, "nu": nu}
    energy = ebm.FunctionEnergy(conway_maxwell_poisson, (), params, condition_shape=())
    counts = dist.constraints.nonnegative_integer
    law = ebm.EnergyDistribution(energy, condition=jnp.asarray(TRANSFERS), support=counts, sampler=draw_counts)
    numpyro.sample("y", law, obs=y)


# --- 2. The truth: the series, maximum likelihood, the posterior on a grid -------------------------------------------


def log_series(log_rate: np.ndarray, nu: np.ndarray) -> np.ndarray:
    """Log Z of each pair; both arguments of one shape."""
    return logsumexp(COUNTS * log_rate[..., None] - nu[..., None] * gammaln(COUNTS + 1), axis=-1)


def maximum_likelihood() -> tuple[np.ndarray, np.ndarray]:
    """Estimates of (intercept, slope, nu) and their standard errors, by Newton's method.

    The model is an exponential family with statistics T = (y, y transfers, -log y!): the gradient of the log
    likelihood is T - E T, the information the covariance of T. So the series gives both.
    """
    design = np.stack([np.ones_like(TRANSFERS), TRANSFERS], axis=1).astype(float)

    def log_likelihood(theta: np.ndarray) -> float:
        log_rate = design @ theta[:2]
        log_p = BROKEN * log_rate - theta[2] * gammaln(BROKEN + 1) - log_series(log_rate, np.full(10, theta[2]))
        return float(log_p.sum())

    theta = np.array([np.log(BROKEN.mean()), 0.0, 1.0])  # one Poisson law for all
    for _ in range(100):
        gradient, information = np.zeros(3), np.zeros((3, 3))
        for row, y in zip(design, BROKEN, strict=True):
            log_p = COUNTS * (row @ theta[:2]) - theta[2] * gammaln(COUNTS + 1)
            p = np.exp(log_p - logsumexp(log_p))
            statistics = np.stack([COUNTS * row[0], COUNTS * row[1], -gammaln(COUNTS + 1)])
            mean = statistics @ p
            gradient += [y * row[0], y * row[1], -gammaln(y + 1)] - mean
            information += (statistics * p) @ statistics.T - np.outer(mean, mean)
        step = np.linalg.solve(information, gradient)
        while log_likelihood(theta + step) < log_likelihood(theta) - 1e-9:
            step /= 2
        theta = theta + step
    return theta, np.sqrt(np.diag(np.linalg.inv(information)))


def exact_posterior(size: int = 61) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every parameter's values on a grid of (log nu, level, effect), and their weights."""
    log_nu, level, effect = np.linspace(-2.5, 4, size), np.linspace(1.5, 3.2, 2 * size), np.linspace(-0.4, 0.9, size)
    log_p = np.zeros((size, 2 * size, size))
    for i, nu in enumerate(np.exp(log_nu)):
        for transfers in np.unique(TRANSFERS):
            log_rate = nu * (level[:, None] + effect * transfers)
            y = BROKEN[transfers == TRANSFERS]
            log_p[i] += y.sum() * log_rate - nu * gammaln(y + 1).sum()
            log_p[i] -= len(y) * log_series(log_rate, np.full_like(log_rate, nu))
    log_p += norm.logpdf(log_nu, 0, 1.5)[:, None, None] + norm.logpdf(level, 0, 5)[:, None] + norm.logpdf(effect, 0, 1)
    weights = np.exp(log_p - logsumexp(log_p))
    nu = np.exp(log_nu)[:, None, None]
    values = {"intercept": nu * level[:, None], "slope": nu * effect, "nu": nu}
    return {name: (np.broadcast_to(x, weights.shape), weights) for name, x in values.items()}


# --- 3. Run and compare ----------------------------------------------------------------------------------------------


def compare(draws: dict[str, np.ndarray], exact: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """For each parameter, rows (exact, found, distance in Monte Carlo standard errors) of (mean, sd)."""
    table = {}
    for name, (values, weights) in exact.items():
        x = draws[name].astype(float)
        mean = (weights * values).sum()
        truth = np.array([mean, np.sqrt((weights * (values - mean) ** 2).sum())])
        found = np.array([x.mean(), x.std()])
        errors = np.array([float(az.mcse(x, method=method)) for method in ("mean", "sd")])
        table[name] = np.stack([truth, found, (found - truth) / errors])
    return table


def draw_figure(path: pathlib.Path, draws: dict[str, np.ndarray], exact: dict[str, Any], estimate: np.ndarray) -> None:
    """The data under the fitted law and Poisson's; the posterior of nu and of the slope."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    data, *marginals = figure.subplots(1, 3)
    x = np.linspace(0, 3, 31)
    log_p = COUNTS * (estimate[0] + estimate[1] * x)[:, None] - estimate[2] * gammaln(COUNTS + 1)
    p = np.exp(log_p - logsumexp(log_p, axis=1, keepdims=True))
    mean = p @ COUNTS
    sd = np.sqrt(p @ COUNTS**2 - mean**2)
    for width, colour, label in ((np.sqrt(mean), "0.85", "Poisson, mean +- sd"), (sd, "0.65", "fitted, mean +- sd")):
        data.fill_between(x, mean - width, mean + width, color=colour, label=label)
    data.plot(TRANSFERS, BROKEN, "k.", label="shipments")
    data.set(xlabel="transfers", ylabel="broken ampules")
    data.legend(fontsize=7, loc="upper left")
    for axis, name, top in zip(marginals, ("nu", "slope"), (20, 6), strict=True):
        bins = np.linspace(0, top, 61)
        values, weights = exact[name]
        axis.hist(draws[name].ravel(), bins, density=True, color="0.75", label="ExchangeKernel")
        if name == "nu":  # the other parameters are no axes of the grid
            nu, mass = values[:, 0, 0], weights.sum((1, 2))
            axis.plot(nu, mass / np.gradient(nu), "k", lw=1.2, label="exact")
        axis.axvline(PUBLISHED[name], color="C3", lw=1, ls="--", label="published estimate")
        axis.set(xlabel=name, yticks=[], xlim=(0, top))
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="A Conway-Maxwell-Poisson regression by the exchange algorithm.")
    parser.add_argument("--short", action="store_true", help="a smoke test: too short to conclude anything")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings, started = SHORT if arguments.short else FULL, time.perf_counter()
    arguments.output.mkdir(parents=True, exist_ok=True)

    kernel = ebm.ExchangeKernel(breakage)
    how = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=settings.num_warmup, num_samples=settings.num_samples, **how)
    mcmc.run(jax.random.key(arguments.seed), jnp.asarray(BROKEN))
    tree = az.from_numpyro(mcmc)
    report = ebm.diagnose(tree)
    print(report)
    ebm.diagnostics.save_datatree(tree, arguments.output / "conway_maxwell_poisson.nc", overwrite=True)

    draws = {name: np.asarray(x) for name, x in mcmc.get_samples(group_by_chain=True).items()}
    exact = exact_posterior()
    table = compare(draws, exact)
    estimate, error = maximum_likelihood()
    print(f"\n{'':11}{'maximum likelihood':^30}{'posterior: exact':^22}{'exchange':^20}distance, MCSE")
    print(f"{'':11}{'published':>10}{'here':>10}{'s.e.':>10}" + f"{'mean':>12}{'sd':>8}" * 2)
    for i, (name, (truth, found, distance)) in enumerate(table.items()):
        likelihood = f"{PUBLISHED[name]:10.4f}{estimate[i]:10.4f}{error[i]:10.4f}"
        cells = "".join(f"{mean:12.3f}{sd:8.3f}" for mean, sd in (truth, found))
        print(f"{name:11}{likelihood}{cells}     {distance[0]:+.1f}  {distance[1]:+.1f}")
    values, weights = exact["nu"]
    log_nu, below = np.log(values[:, 0, 0]), weights.sum((1, 2)).cumsum()  # up to half a step beyond each point
    chance = 1 - np.interp(0.0, log_nu + (log_nu[1] - log_nu[0]) / 2, below)
    print(f"\nP(nu > 1 | data), less spread than Poisson: {chance:.4f} exactly, ", end="")
    print(f"{np.mean(draws['nu'] > 1):.4f} by the exchange algorithm.")
    reproduced = np.allclose(estimate, list(PUBLISHED.values()), rtol=0, atol=6e-5)
    close = max(np.abs(distance).max() for _, _, distance in table.values()) <= 4
    print(f"verdict: published estimates reproduced: {'yes' if reproduced else 'NO'}; ", end="")
    print(f"exchange within 4 MCSE of the exact posterior: {'yes' if close else 'NO'}; ", end="")
    print(f"diagnostics: {'ok' if report.ok else ', '.join(report.codes)}")
    draw_figure(arguments.output / "conway_maxwell_poisson.png", draws, exact, estimate)
    print(f"Figure and draws are in {arguments.output}; {time.perf_counter() - started:.0f} s")
    if arguments.short:
        print("This was the short mode: a smoke test, too short to conclude anything.")
    elif not (reproduced and close and report.ok):
        sys.exit("The exchange algorithm did not reproduce the exact posterior.")


if __name__ == "__main__":
    main()
