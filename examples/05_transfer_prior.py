r"""A shape learnt from many white wines, used where only a few red ones are known.

Data: physico-chemical measurements of 3,961 white and 1,359 red wines, repeated rows dropped (Cortez et al. 2009,
examples/data/README.md). Three measurements are used, in logarithms: chlorides, free sulphur dioxide and alcohol;
of the triples of eight measurements those whose joint law among *whites* departs most from a Gaussian. (Left out first:
citric acid, which is often zero, residual sugar, and density, which follows from sugar and alcohol; their correlations
were seen to differ between the colours.) No score of red wines took part in that choice. The question: what does the
law of all whites tell about reds, of which five or ten or forty are known?

1. Learn an energy E(z) of standardised whites by noise-contrastive estimation; log Z by quadrature.
2. Reds have another location and scale but, so the prior says, the same shape:

       x = shift + exp(log_scale) z,    z ~ exp(-E(z)) / Z

   a NumPyro model of six parameters. Z does not depend on them: an `EnergyDistribution` in a `TransformedDistribution`.
3. Judge every posterior by the log density that it predicts for the reds not seen, beside a Gaussian that learns its
   covariance from the few alone; a Gaussian with the whites' correlations, shifted and scaled as above; an energy
   learnt from the few alone; and the whites' energy as it is. Repeated over random choices of the few.

`python examples/05_transfer_prior.py`; `--short` is a smoke test, too short to conclude anything.

References:
    Cortez, Cerdeira, Almeida, Matos, Reis (2009). Modeling wine preferences by data mining from physicochemical
    properties. Decision Support Systems 47(4), 547-553. doi:10.1016/j.dss.2009.05.016
    Gutmann, Hyvärinen (2012). Noise-contrastive estimation of unnormalized statistical models, with applications to
    natural image statistics. Journal of Machine Learning Research 13, 307-361.
"""

import argparse
import pathlib
import time
from typing import Any, NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array
from matplotlib.figure import Figure
from scipy.special import logsumexp
from scipy.stats import multivariate_t

import ebm_ppl as ebm

DATA = pathlib.Path(__file__).parent / "data"
COLUMNS = ("chlorides", "free_sulfur_dioxide", "alcohol")
OURS, RIVAL = "energy of whites, moved", "Gaussian of whites, moved"
METHODS = ("Gaussian, the few alone", RIVAL, "energy, the few alone", "energy of whites, as it is", OURS)
SHIFT_SD, LOG_SCALE_SD = 2.0, 0.5  # of the priors, in standard deviations of the whites


class Settings(NamedTuple):
    """How much work is done."""

    train_steps: int
    few: tuple[int, ...]  # numbers of red wines that are known, ascending
    num_repeats: int  # random choices of them
    few_steps: int  # of training on the few alone
    num_warmup: int
    num_samples: int  # per chain, of 4


FULL = Settings(3000, few=(5, 10, 20, 40), num_repeats=20, few_steps=500, num_warmup=500, num_samples=1000)
SHORT = Settings(100, few=(10,), num_repeats=2, few_steps=20, num_warmup=20, num_samples=25)


# --- 1. The data, and the shape of the whites ------------------------------------------------------------------------


def load_wines() -> tuple[np.ndarray, np.ndarray]:
    """Whites and reds `(wine, 3)` in logarithms, without repeated rows, in the whites' units (mean 0, sd 1)."""
    wines = []
    for colour in ("white", "red"):
        table = np.genfromtxt(DATA / f"winequality-{colour}.csv.gz", delimiter=";", names=True)
        wines.append(np.log(np.stack([np.unique(table)[name] for name in COLUMNS], axis=1)))
    mean, sd = wines[0].mean(0), wines[0].std(0)
    order = np.random.default_rng(0).permutation(len(wines[0]))
    return ((wines[0] - mean) / sd).astype(np.float32)[order], ((wines[1] - mean) / sd).astype(np.float32)


def make_recipe(num_steps: int) -> dict[str, Any]:
    """Settings of `ebm.fit`, built once: a second fit on as many wines then compiles nothing."""
    schedule = optax.cosine_decay_schedule(5e-3, num_steps, 0.01)
    return {"num_steps": num_steps, "optimizer": optax.adam(schedule), "validate_every": max(num_steps // 50, 1)}


def learn(x: np.ndarray, recipe: dict[str, Any], key: Array, validation: float) -> tuple[ebm.AbstractEnergy, float]:
    """An energy of `x` and its log Z: a network on top of a wide Gaussian, told from Student-t noise.

    The Gaussian makes exp(-E) integrable; the noise has heavier tails than the data. The parameters are those that
    tell a held-out share of `x` from noise best.
    """
    init_key, fit_key = jax.random.split(key)
    mean, covariance = jnp.asarray(x.mean(0)), jnp.asarray(np.cov(x.T) + 1e-3 * np.eye(3), jnp.float32)
    network = ebm.MLPEnergy((3,), width=32, depth=2, key=init_key)
    start = ebm.ShiftedEnergy(ebm.SumEnergy(network, ebm.energies.Gaussian(mean, 4 * covariance)), 0.0)
    noise = dist.MultivariateStudentT(5.0, mean, jnp.linalg.cholesky(covariance))
    objective = ebm.objectives.NoiseContrastive(noise, noise_ratio=3)
    result = ebm.fit(start, x, objective, key=fit_key, validation=validation, progress_bar=False, **recipe)
    energy = result.model.energy
    return energy, float(ebm.normalizers.quadrature(energy, relative_tolerance=1e-3).value)


def log_density(energy: ebm.AbstractEnergy, log_z: float | Array, x: np.ndarray) -> np.ndarray:
    """Normalised log density of every row, in nats."""
    return np.asarray(ebm.EnergyDistribution(energy, log_normalizer=log_z).log_prob(x))


# --- 2. The model ----------------------------------------------------------------------------------------------------


def shifted_and_scaled(energy: ebm.AbstractEnergy, log_z: Array, x: Array, known: Array) -> None:
    """Wines whose law is that of `energy` but for location and scales; rows not `known` are masked."""
    shift = numpyro.sample("shift", dist.Normal(0.0, SHIFT_SD).expand([3]).to_event(1))
    log_scale = numpyro.sample("log_scale", dist.Normal(0.0, LOG_SCALE_SD).expand([3]).to_event(1))
    move = dist.transforms.AffineTransform(shift, jnp.exp(log_scale))
    shape = ebm.EnergyDistribution(energy, log_normalizer=log_z)
    with numpyro.plate("wine", len(x)), numpyro.handlers.mask(mask=known):
        numpyro.sample("x", dist.TransformedDistribution(shape, move), obs=x)


class Posteriors(NamedTuple):
    """What the model says for every choice of the few: the leading axis of all."""

    draws: dict[str, np.ndarray]  # (choice, chain, draw, 3)
    stats: dict[str, np.ndarray]  # (choice, chain, draw)
    log_p: np.ndarray  # log predictive density of every unseen wine, nats: (choice, wine)


def posteriors(shape: tuple, x: Array, known: Array, unseen: Array, settings: Settings, key: Array) -> Posteriors:
    """All choices in one program: `MCMC.run` is a function, so it can be vmapped."""
    energy, log_z = shape
    how = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}

    def sample(x: Array, known: Array, key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        kernel = ebm.BlackJAXKernel(shifted_and_scaled, kernel=ebm.NUTS())
        mcmc = numpyro.infer.MCMC(kernel, num_warmup=settings.num_warmup, num_samples=settings.num_samples, **how)
        mcmc.run(key, energy, log_z, x, known)
        return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)

    def predict(inputs: tuple[dict[str, Array], Array]) -> Array:
        draws, unseen = inputs
        thinned = {name: x.reshape(-1, 3)[:: max(4 * settings.num_samples // 400, 1)] for name, x in draws.items()}
        log_p = numpyro.infer.log_likelihood(shifted_and_scaled, thinned, energy, log_z, unseen, jnp.ones((), bool))[
            "x"
        ]
        return jax.nn.logsumexp(log_p, axis=0) - jnp.log(len(log_p))

    draws, stats = jax.jit(jax.vmap(sample))(x, known, jax.random.split(key, len(x)))
    log_p = jax.jit(lambda inputs: jax.lax.map(predict, inputs))((draws, unseen))
    stats["lp"] = -stats.pop("potential_energy")
    return Posteriors(*jax.device_get((draws, stats, log_p)))


def tree_of(found: Posteriors, choice: int) -> Any:
    """One posterior as ArviZ takes it."""
    draws, stats = jax.tree.map(lambda x: x[choice], (found.draws, found.stats))
    return az.from_dict({"posterior": draws, "sample_stats": stats})


# --- 3. The other methods --------------------------------------------------------------------------------------------


def gaussian_alone(few: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Log predictive density of a Gaussian under its conjugate prior, which knows the whites' units, no correlation.

    Normal-inverse-Wishart with mean 0, sd of the location SHIFT_SD, expected covariance I and five degrees of freedom,
    the fewest for which it has one; the predictive law is a multivariate t.
    """
    n, prior_n, freedom = len(few), 1 / SHIFT_SD**2, 5 + len(few)
    mean = few.mean(0)
    scatter = np.eye(3) + (few - mean).T @ (few - mean) + prior_n * n / (prior_n + n) * np.outer(mean, mean)
    shape = scatter * (prior_n + n + 1) / ((prior_n + n) * (freedom - 2))
    return multivariate_t(n * mean / (prior_n + n), shape, df=freedom - 2).logpdf(unseen)


def judge(reds: np.ndarray, shapes: dict, settings: Settings, key: Array) -> tuple[dict, dict]:
    """Mean log predictive density of the unseen reds, `(number known, repeat)`, of every method; the posteriors."""
    few, most, count = settings.few, settings.few[-1], settings.num_repeats
    rng = np.random.default_rng(1)
    orders = [rng.permutation(len(reds)) for _ in range(count)]
    mixed = np.stack([reds[order] for order in orders])  # the first rows are known, those from `most` on never
    scores = {name: np.zeros((len(few), count)) for name in METHODS}
    known = np.arange(most) < np.repeat(few, count)[:, None]
    x, unseen = (np.tile(part, (len(few), 1, 1)) for part in (mixed[:, :most], mixed[:, most:]))
    found = {}
    keys = jax.random.split(key, 3)
    for (name, shape), shape_key in zip(shapes.items(), keys, strict=False):
        found[name] = posteriors(shape, x, known, unseen, settings, shape_key)
        scores[name] = found[name].log_p.mean(1).reshape(len(few), count)
    recipe = make_recipe(settings.few_steps)
    for i, n in enumerate(few):
        for j in range(count):
            wines, rest = mixed[j, :n], mixed[j, most:]
            scores["Gaussian, the few alone"][i, j] = gaussian_alone(wines, rest).mean()
            alone = learn(wines, recipe, jax.random.fold_in(keys[2], i * count + j), 0.2)
            scores["energy, the few alone"][i, j] = log_density(*alone, rest).mean()
            scores["energy of whites, as it is"][i, j] = log_density(*shapes[OURS], rest).mean()
    return scores, found


# --- 4. Show it ------------------------------------------------------------------------------------------------------


def print_scores(scores: dict[str, np.ndarray], few: tuple[int, ...]) -> np.ndarray:
    """A row per method; returns the gains over the best other method at each number known, with standard errors."""
    print("\nLog predictive density of unseen reds, nats per wine, mean over the choices +- its standard error")
    print(f"{'reds known':28}" + "".join(f"{n:>18}" for n in few))
    error = np.sqrt(next(iter(scores.values())).shape[1])
    rows = dict(scores)
    others = np.stack([scores[name] for name in METHODS if name != OURS])  # (method, number known, repeat)
    best = others.mean(2).argmax(0)
    gain = scores[OURS] - others[best, np.arange(len(few))]
    rows |= {"moved energy - moved Gaussian": scores[OURS] - scores[RIVAL], "moved energy - best other": gain}
    for name, x in rows.items():
        cells = [f"{m:+.3f} +- {s:.3f}" for m, s in zip(x.mean(1), x.std(1, ddof=1) / error, strict=True)]
        print(f"{name:30}" + "".join(f"{cell:>18}" for cell in cells))
    return np.stack([gain.mean(1), gain.std(1, ddof=1) / error], axis=1)


def draw_from(energy: ebm.AbstractEnergy, count: int) -> np.ndarray:
    """Draws from the energy, for the figure: a cell of a grid by its density, a point uniform within."""
    ticks = np.linspace(-6, 6, 61)
    cells = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)
    log_p = log_density(energy, 0.0, cells).astype(float)
    rng = np.random.default_rng(0)
    return cells[rng.choice(len(cells), count, p=np.exp(log_p - logsumexp(log_p)))] + rng.uniform(-0.1, 0.1, (count, 3))


def draw_figure(
    path: pathlib.Path, whites: np.ndarray, reds: np.ndarray, scores: dict, moved: dict, few: tuple
) -> None:
    """The shape learnt; the score against the number known; what one choice of the few predicts."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    shape, curve, prediction = figure.subplots(1, 3)
    shape.plot(*whites[:, ::2].T, ".", ms=2, color="0.7", label="whites")
    shape.plot(*moved["whites"][:1000, ::2].T, ".", ms=2, color="C0", label="draws from the energy")
    shape.set(xlabel="log chlorides", ylabel="log alcohol", xlim=(-4, 5), ylim=(-3, 3), title="the shape learnt")
    for i, name in enumerate(name for name in METHODS if name != "energy of whites, as it is"):
        x = scores[name]
        error = x.std(1, ddof=1) / np.sqrt(x.shape[1])
        curve.errorbar(np.arange(len(few)) + 0.04 * i, x.mean(1), error, marker="o", ms=3, lw=1, label=name)
    lowest = min(scores[name].mean(1).min() for name in METHODS if name.startswith("Gaussian"))
    curve.set_ylim(bottom=lowest - 0.5)  # what is learnt from the few alone may be anywhere below
    curve.set(
        xticks=np.arange(len(few)), xticklabels=few, xlabel="reds known", title="log density of unseen reds, nats"
    )
    bins = np.linspace(-1, 7, 50)
    prediction.hist(reds[:, 0], bins, density=True, color="0.8", label="all reds")
    for name in (OURS, RIVAL):
        prediction.hist(moved[name][:, 0], bins, density=True, histtype="step", lw=1.3, label=name)
    prediction.set(xlabel="log chlorides", yticks=[], title=f"predicted from the first {few[0]} known")
    for axis in (shape, curve, prediction):
        axis.legend(fontsize=6)
        axis.title.set_fontsize(9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="An energy of white wines as the prior for red ones.")
    parser.add_argument("--short", action="store_true", help="a smoke test: too short to conclude anything")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings, started = SHORT if arguments.short else FULL, time.perf_counter()
    arguments.output.mkdir(parents=True, exist_ok=True)
    learn_key, judge_key = jax.random.split(jax.random.key(arguments.seed))

    whites, reds = load_wines()
    train, held_out = whites[:3461], whites[3461:]
    energy, log_z = learn(train, make_recipe(settings.train_steps), learn_key, 0.1)
    gaussian = ebm.energies.Gaussian(jnp.asarray(train.mean(0)), jnp.asarray(np.cov(train.T), jnp.float32))
    shapes = {OURS: (energy, jnp.asarray(log_z)), RIVAL: (gaussian, gaussian.log_normalizer)}
    gain = log_density(*shapes[OURS], held_out) - log_density(*shapes[RIVAL], held_out)
    print(
        f"1. {len(train)} whites learnt, log Z = {log_z:.3f}. Gain over a Gaussian on {len(held_out)} others: ", end=""
    )
    print(f"{gain.mean():.3f} +- {gain.std(ddof=1) / np.sqrt(len(gain)):.3f} nats per wine")

    print(f"\n2. {settings.num_repeats} choices of {', '.join(map(str, settings.few))} of {len(reds)} reds")
    scores, found = judge(reds, shapes, settings, judge_key)
    for name in (OURS, RIVAL):
        reports = [ebm.diagnose(tree_of(found[name], i)) for i in range(len(found[name].log_p))]
        print(f"{name}: diagnostics of {sum(r.ok for r in reports)} of {len(reports)} posteriors ok", end="")
        failed = [(settings.few[i // settings.num_repeats], *r.codes) for i, r in enumerate(reports) if not r.ok]
        print("".join(f"; {n} known: {', '.join(codes)}" for n, *codes in failed))
    gains = print_scores(scores, settings.few)
    for n, (mean, error) in zip(settings.few, gains, strict=True):
        outcome = "better" if mean > 2 * error else "WORSE" if mean < -2 * error else "no clear difference"
        print(f"verdict, {n} known: moved energy against the best other method: {mean:+.3f} +- {error:.3f}, {outcome}")

    z = draw_from(energy, 4 * settings.num_samples)
    normal = np.random.default_rng(1).multivariate_normal(train.mean(0), np.cov(train.T), len(z))
    moved = {"whites": z}
    for name, base in ((OURS, z), (RIVAL, normal)):
        draws = {key: x[0].reshape(-1, 3) for key, x in found[name].draws.items()}
        moved[name] = draws["shift"] + np.exp(draws["log_scale"]) * base
    tree = tree_of(found[OURS], 0)
    ebm.diagnostics.save_datatree(tree, arguments.output / "transfer_prior.nc", overwrite=True)
    draw_figure(arguments.output / "transfer_prior.png", whites, reds, scores, moved, settings.few)
    print(f"\nFigure and draws are in {arguments.output}; {time.perf_counter() - started:.0f} s")
    if arguments.short:
        print("This was the short mode: a smoke test, too short to conclude anything.")


if __name__ == "__main__":
    main()
