r"""Learn an energy of handwritten digits, and use it as a prior where half of a digit is hidden.

The main job of ebm_ppl from end to end, on scikit-learn's 1,797 digits (8 x 8 pixels, grey values scaled to 0..1):

1. learn an energy E(x; s) of digits x under added noise of standard deviation s, by score matching;
2. put exp(-E) into a NumPyro model: the upper half of an unseen digit is observed under noise, the lower is not;
3. draw from the posterior with MALA chains that also travel along the noise scales s, so that they change modes;
4. ask the diagnostics whether to trust the draws, and compare with the truth and with the best Gaussian prior.

`python3 run.py demo` runs it from a bare checkout; `--short` is a smoke test, too short to conclude anything.
"""

import argparse
import pathlib
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import arviz as az
import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array
from matplotlib.figure import Figure
from numpyro.infer.util import log_density
from scipy.stats import norm
from sklearn.datasets import load_digits

import ebm_ppl as ebm

VISIBLE, HIDDEN = np.arange(32), np.arange(32, 64)  # upper and lower half; pixels are numbered row by row
NOISE = 0.2  # standard deviation of the observation
SCALES = np.geomspace(0.1, 1.0, 10).astype(np.float32)  # noise scales s of the energies; the first is the prior's
LADDER = SCALES[:5]  # those that replicas travel along; at the last one a digit easily turns into another
REST = np.sqrt(NOISE**2 - SCALES[0] ** 2)  # noise of the observation beyond what the prior's x has already


class Settings(NamedTuple):
    """How much work is done."""

    train_steps: int
    num_digits: int  # restored in all
    num_warmup: int
    num_samples: int  # per chain, for each digit; 4 chains each
    thinning: int  # for the digit that is looked at closely: as many draws, `thinning` times as far apart


FULL = Settings(train_steps=4000, num_digits=100, num_warmup=200, num_samples=1500, thinning=8)
SHORT = Settings(train_steps=50, num_digits=6, num_warmup=20, num_samples=50, thinning=1)


# --- 1. Learn the energy ---------------------------------------------------------------------------------------------


class DigitEnergy(ebm.AbstractEnergy):
    r"""How far an image under noise is from the digit that a network sees in it.

        E(x; log s) = 1/2 |u - v|^2 + 10 a,    (v, a) = network(u, log s),    u = (x - centre) / sqrt(s^2 + 0.3^2)

    With v = a = 0 this is a Gaussian with the pixels' standard deviation 0.3, plus noise. `v` says where the digits
    are, `a` how frequent each is.
    """

    weights: list[Array]
    biases: list[Array]
    modulations: list[Array]
    centre: Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(64,))
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=(), kw_only=True)

    def __init__(self, centre: Array, *, key: Array, width: int = 192, depth: int = 3) -> None:
        sizes = [64, *[width] * depth, 65]
        keys = jax.random.split(key, 2 * depth + 1)
        self.weights = [jax.random.normal(k, (m, n)) / n**0.5 for k, n, m in zip(keys, sizes[:-1], sizes[1:])]  # noqa: B905
        self.weights[-1] *= 0.1  # training starts close to the Gaussian
        self.biases = [jnp.zeros(size) for size in sizes[1:]]
        self.modulations = [jax.random.normal(k, (2, width, 16)) / 4 for k in keys[depth + 1 :]]
        self.centre = centre

    def __call__(self, x: Array, condition: Array | None = None) -> Array:
        """E of one image; `condition` is log s."""
        waves = jnp.arange(1, 9, dtype=x.dtype) * condition / 2
        waves = jnp.concatenate([jnp.cos(waves), jnp.sin(waves)])
        u = (x - self.centre) / jnp.sqrt(jnp.exp(2 * condition) + 0.3**2)
        h = u
        for i, modulation in enumerate(self.modulations):
            gain, shift = modulation @ waves  # every layer is told the noise scale
            new = jax.nn.silu((self.weights[i] @ h + self.biases[i]) * (1 + gain) + shift)
            h = new if i == 0 else h + new
        out = self.weights[-1] @ h + self.biases[-1]
        return jnp.sum((u - out[:64]) ** 2) / 2 + 10 * out[64]


class DualScoreMatching(ebm.objectives.AbstractStatelessObjective):
    r"""Denoising score matching in x and in log s. An objective of one's own is one method.

        |s dE/dx - e|^2 + weight (dE/dlog s - (d - |e|^2))^2    at x + s e,    e ~ N(0, I) in d dimensions

    The first term is `ebm.objectives.MultiscaleDenoisingScoreMatching`. It learns the slopes of E, which say little
    about the relative depths of distant valleys: is this rather a 3 or an 8? Under strong noise the valleys are one;
    the second term carries their depths from there down to the small scales.

    References:
        Guth, Kadkhodaie, Simoncelli (2025). Learning normalized image densities via dual score matching.
        doi:10.48550/arXiv.2506.05310
    """

    multiscale: ebm.objectives.MultiscaleDenoisingScoreMatching  # draws the noise scales
    weight: float = 0.05
    comparable: ClassVar[bool] = True
    noise_conditioned: ClassVar[bool] = True

    def evaluate(self, model: Any, batch: Any, *, key: Array) -> tuple[Array, dict[str, Array]]:
        """One loss per image."""
        x, _ = self.split_batch(model, batch)
        scale_key, noise_key = jax.random.split(key)
        s = self.multiscale.draw_scales(len(x), key=scale_key)
        e = jax.random.normal(noise_key, x.shape)
        by_x, by_log_s = jax.vmap(jax.grad(model, argnums=(0, 1)))(x + s[:, None] * e, jnp.log(s))
        slope = jnp.sum((s[:, None] * by_x - e) ** 2, axis=1)
        depth = (by_log_s - (x.shape[1] - jnp.sum(e**2, axis=1))) ** 2
        return slope + self.weight * depth, {}


def load_images() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images to learn from, and 180 held-out ones with their labels; the split is always the same."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = (images[order] / 16).astype(np.float32), labels[order]
    return images[180:], images[:180], labels[:180]


def learn(train: np.ndarray, num_steps: int, key: Array) -> DigitEnergy:
    """Fit the energy and say how it went."""
    init_key, fit_key = jax.random.split(key)
    energy = DigitEnergy(jnp.asarray(train.mean(0)), key=init_key)
    objective = DualScoreMatching(ebm.objectives.MultiscaleDenoisingScoreMatching(SCALES))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 5e-3, num_steps // 20, num_steps, 1e-4)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule, b2=0.99))
    result = ebm.fit(
        energy, train, objective, key=fit_key, optimizer=optimizer, num_steps=num_steps, batch_size=256, ema_decay=0.999
    )
    print(result)
    return result.model


# --- 2. The model ----------------------------------------------------------------------------------------------------


def half_seen(energy: DigitEnergy, log_scale: Array, y: Array | None) -> None:
    """A digit x; its upper half is observed. The x of the energy has noise of SCALES[0] on it, so REST is missing."""
    x = numpyro.sample("x", ebm.EnergyDistribution(energy, condition=log_scale))
    numpyro.sample("y", dist.Normal(x[VISIBLE], REST).to_event(1), obs=y)


# --- 3. Draw from the posterior --------------------------------------------------------------------------------------


Replicas = namedtuple("Replicas", "position logdensity rungs iteration")  # the draw; BlackJAX's states of all rungs
ExchangeInfo = namedtuple("ExchangeInfo", "acceptance_rate swap_rate nonfinite_proposal")


class ReplicaExchange(ebm.AbstractKernel):
    r"""MALA on several densities p_0, p_1, ... at once; now and then neighbours exchange their positions.

    A chain seldom crosses from "it is a 3" to "it is an 8", but with more noise in the energy it does. So one replica
    runs at every scale of a ladder, and neighbours i, j swap positions with probability

        min(1, p_i(x_j) p_j(x_i) / (p_i(x_i) p_j(x_j))),

    which leaves every p_i exactly invariant. The draws are those of p_0, the posterior asked for. A kernel of one's
    own is two methods; it runs wherever those of the library do.

    References:
        Syed, Bouchard-Cote, Deligiannidis, Doucet (2022). Non-reversible parallel tempering: a scalable highly
        parallel MCMC scheme. Journal of the Royal Statistical Society B 84(2), 321-350. doi:10.1111/rssb.12464
    """

    logdensity_at: Callable[[Array, Array], Array]  # (x, log_scale) -> log density of a higher rung
    log_scales: Array  # of the higher rungs
    relative_steps: Array  # MALA step sizes of all rungs, relative to `step_size`, that of p_0
    step_size: float | Array = 0.005
    num_coordinates: int = eqx.field(static=True, default=64, kw_only=True)
    num_moves: int = eqx.field(static=True, default=5)  # MALA steps between two swaps
    target_acceptance_rate: ClassVar[float | None] = 0.574

    def build(self, logdensity_fn: Callable[[Array], Array]) -> blackjax.base.SamplingAlgorithm:
        """The transition: `num_moves` MALA steps on every rung, then swaps."""
        count = len(self.relative_steps)

        def on_all_rungs(function: Callable[..., Any], *args: Any) -> Any:
            lowest = function(logdensity_fn, *jax.tree.map(lambda a: a[0], args))
            others = jax.vmap(lambda scale, *a: function(lambda x: self.logdensity_at(x, scale), *a))(
                self.log_scales, *jax.tree.map(lambda a: a[1:], args)
            )
            return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), lowest, others)

        def start(density: Any, x: Array) -> Any:
            return ebm.MALA().build(density).init(x)

        def move(density: Any, step_size: Array, state: Any, key: Array) -> Any:
            mala = ebm.MALA(step_size)
            state, info = mala.build(density).step(key, state)
            return state, mala.stats(state, info)

        def init(position: Array, rng_key: Array | None = None) -> Replicas:
            rungs = on_all_rungs(start, jnp.broadcast_to(position, (count, *position.shape)))
            return Replicas(position, rungs.logdensity[0], rungs, jnp.zeros((), jnp.int32))

        def step(key: Array, state: Replicas) -> tuple[Replicas, ExchangeInfo]:
            def advance(rungs: Any, key: Array) -> Any:
                return on_all_rungs(move, self.step_size * self.relative_steps, rungs, jax.random.split(key, count))

            move_key, swap_key = jax.random.split(key)
            rungs, stats = jax.lax.scan(advance, state.rungs, jax.random.split(move_key, self.num_moves))
            # Even and odd pairs take turns: so replicas travel, instead of swapping back and forth.
            rung = jnp.arange(count)
            partner = jnp.where((rung + state.iteration) % 2 == 0, rung + 1, rung - 1)
            partner = jnp.where((partner < 0) | (partner == count), rung, partner)
            swapped = on_all_rungs(start, rungs.position[partner])
            gain = swapped.logdensity - rungs.logdensity
            uniform = jax.random.uniform(swap_key, (count,))[jnp.minimum(rung, partner)]  # one number per pair
            accept = jnp.log(uniform) < gain + gain[partner]
            rungs = jax.tree.map(lambda a, b: jax.vmap(jnp.where)(accept, a, b), swapped, rungs)
            swap_rate = (accept & (partner != rung)).sum() / (partner != rung).sum()
            info = ExchangeInfo(stats["acceptance_rate"][:, 0].mean(), swap_rate, stats["nonfinite_proposal"].any())
            return Replicas(rungs.position[0], rungs.logdensity[0], rungs, state.iteration + 1), info

        return blackjax.base.SamplingAlgorithm(init, step)

    def stats(self, state: Replicas, info: ExchangeInfo) -> dict[str, Array]:
        """Statistics of one transition, under ArviZ's names where it has one."""
        num_gradients = jnp.asarray(len(self.relative_steps) * (self.num_moves + 1))
        return {"diverging": jnp.zeros((), bool), "n_steps": num_gradients, **info._asdict()}


def posterior(
    energy: DigitEnergy, y: Array, key: Array, settings: Settings, *, num_chains: int, thinning: int = 1
) -> numpyro.infer.MCMC:
    """NumPyro's MCMC on the model of one digit, after its run. May be vmapped over `y` and `key`."""
    log_scales = jnp.log(jnp.asarray(LADDER))

    def logdensity_at(x: Array, log_scale: Array) -> Array:
        return log_density(half_seen, (energy, log_scale, y), {}, {"x": x})[0]

    widths = jnp.asarray(1 / (1 / LADDER**2 + 1 / REST**2))  # squared, of the narrowest directions
    kernel = ReplicaExchange(logdensity_at, log_scales[1:], widths / widths[0])
    kernel = ebm.BlackJAXKernel(half_seen, kernel=kernel, precondition="none")
    how = {"num_chains": num_chains, "thinning": thinning, "chain_method": "vectorized", "progress_bar": False}
    mcmc = numpyro.infer.MCMC(
        kernel, num_warmup=settings.num_warmup, num_samples=settings.num_samples * thinning, **how
    )
    start = energy.centre + 0.3 * jax.random.normal(jax.random.fold_in(key, 0), (num_chains, 64))
    mcmc.run(key, energy, log_scales[0], y, init_params={"x": start})
    return mcmc


def posteriors(energy: DigitEnergy, y: Array, key: Array, settings: Settings) -> dict[str, np.ndarray]:
    """Draws `(chain, draw, digit, pixel)` and their log density: `MCMC.run` is a function, so it can be vmapped."""

    def one(y: Array, key: Array) -> dict[str, Array]:
        mcmc = posterior(energy, y, key, settings, num_chains=4)
        lp = -mcmc.get_extra_fields(group_by_chain=True)["potential_energy"]
        return {"x": mcmc.get_samples(group_by_chain=True)["x"], "lp": lp}

    return jax.device_get(jax.jit(jax.vmap(one, out_axes=2))(y, jax.random.split(key, len(y))))


# --- 4. Compare with the truth and with the best Gaussian ------------------------------------------------------------


def score_draws(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """RMSE of the mean, and CRPS = E|X - truth| - E|X - X'| / 2, of draws `(draw, digit, pixel)`; `(2, digit)`."""
    by_rank = (2 * np.arange(len(draws)) + 1 - len(draws)) / len(draws) ** 2
    half_distance = np.tensordot(by_rank, np.sort(draws, axis=0), axes=1)  # E|X - X'| / 2
    crps = np.abs(draws - truth).mean(0) - half_distance
    return np.stack([np.sqrt(((draws.mean(0) - truth) ** 2).mean(1)), crps.mean(1)])


def score_gaussian(mean: np.ndarray, sd: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The same scores of N(mean, sd^2), in closed form."""
    z = (truth - mean) / sd
    crps = sd * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    return np.stack([np.sqrt(((mean - truth) ** 2).mean(1)), crps.mean(1)])


def gaussian_posterior(train: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of all pixels under the Gaussian prior of maximum likelihood, full covariance."""
    centre, covariance = train.mean(0), np.cov(train.T, bias=True)
    seen = covariance[VISIBLE]
    gain = np.linalg.solve(seen[:, VISIBLE] + NOISE**2 * np.eye(len(VISIBLE)), seen)
    variance = np.diag(covariance) - np.sum(gain * seen, axis=0)
    return centre + (y - centre[VISIBLE]) @ gain, np.sqrt(variance + 1e-12)  # some pixels are always white


def print_mixing(draws: dict[str, np.ndarray]) -> np.ndarray:
    """How well the chains of all digits agree; returns the largest R-hat among the pixels of each digit."""
    r_hat = az.rhat(az.from_dict({"posterior": draws}))
    lp, pixel = r_hat["lp"].values, r_hat["x"].max("x_dim_1").values
    print("Mixing of {} chains x {} draws on each of {} digits:".format(*draws["lp"].shape))
    for name, values in {"log density": lp, "worst hidden pixel": pixel}.items():
        shares = ", ".join(f"{np.mean(values <= limit):.0%} <= {limit}" for limit in (1.01, 1.05, 1.1))
        print(f"  R-hat of the {name:18}  median {np.median(values):.3f}, largest {values.max():.3f}; {shares}")
    return pixel


def print_comparison(ours: np.ndarray, gaussian: np.ndarray, r_hat: np.ndarray) -> bool:
    """Both scores under both priors; whether ours is better on both."""
    gain, mixed = gaussian - ours, r_hat <= 1.05
    print(f"\nHidden pixels of {len(r_hat)} held-out digits, grey values 0..1, lower is better, +- standard error")
    print(f"{'':29}{'RMSE of the mean':>20}{'CRPS':>20}")
    rows = {"energy": ours, "best Gaussian": gaussian, "gain, paired": gain}
    if mixed.sum() > 1:
        rows[f"gain, {mixed.sum()} with R-hat <= 1.05"] = gain[:, mixed]
    for name, scores in rows.items():
        cells = [f"{score.mean():.4f} +- {score.std(ddof=1) / np.sqrt(len(score)):.4f}" for score in scores]
        print(f"{name:29}" + "".join(f"{cell:>20}" for cell in cells))
    return bool((gain.mean(1) > 0).all())


def draw_figure(path: pathlib.Path, columns: dict[str, np.ndarray | None], title: str) -> None:
    """Columns of images, one row per digit; what was not seen has a colour of its own."""
    widths, height = [0.25 if images is None else 1 for images in columns.values()], len(columns["truth"])
    figure = Figure(figsize=(sum(widths), height))
    axes = figure.subplots(height, len(columns), width_ratios=widths, squeeze=False)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.08, hspace=0.08)
    for (name, images), column in zip(columns.items(), axes.T, strict=True):
        column[0].set_title(name.strip(), fontsize=9)
        shades = {"cmap": "viridis", "vmax": 0.4} if name.endswith("sd") else {"cmap": "gray_r", "vmax": 1}
        for row, axis in enumerate(column):
            axis.set(xticks=[], yticks=[], facecolor="#f0dcb4")
            axis.spines[:].set_color("0.7")
            if images is None:
                axis.set_axis_off()
            else:
                shown = axis.imshow(images[row].reshape(8, 8), vmin=0, **shades)
        if name.endswith("sd"):
            bar = column[-1].inset_axes((0, -0.18, 1, 0.1))
            figure.colorbar(shown, cax=bar, orientation="horizontal").ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10, y=1 + 0.8 / height)
    figure.savefig(path, dpi=160, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn an energy of digits, and restore half-hidden ones.")
    parser.add_argument("--short", action="store_true", help="a smoke test: too short to conclude anything")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings, started = SHORT if arguments.short else FULL, time.perf_counter()
    arguments.output.mkdir(parents=True, exist_ok=True)
    learn_key, noise_key, one_key, all_key = jax.random.split(jax.random.key(arguments.seed), 4)

    train, held_out, labels = load_images()
    truth, labels = held_out[: settings.num_digits], labels[: settings.num_digits]
    y = truth[:, VISIBLE] + NOISE * jax.random.normal(noise_key, (len(truth), len(VISIBLE)))
    print(f"1. Learn an energy from {len(train)} digits")
    energy = learn(train, settings.train_steps, learn_key)

    print("\n2. The first held-out digit, closely (some hidden pixels; all are judged)")
    mcmc = posterior(energy, y[0], one_key, settings, num_chains=8, thinning=settings.thinning)
    tree = az.from_numpyro(mcmc, coords={"pixel": np.arange(64)}, dims={"x": ["pixel"]})
    print(az.summary(tree, coords={"pixel": HIDDEN[4::8]}))
    print(ebm.diagnose(tree))
    ebm.diagnostics.save_datatree(tree, arguments.output / "digits_inpainting.nc", overwrite=True)

    print(f"\n3. {len(truth)} held-out digits")
    draws = posteriors(energy, y, all_key, settings)
    hidden = draws["x"][..., HIDDEN]
    r_hat = print_mixing({"x": hidden, "lp": draws["lp"]})
    mean, sd = gaussian_posterior(train, np.asarray(y))
    ours = score_draws(hidden[:, ::4].reshape(-1, *hidden.shape[2:]), truth[:, HIDDEN])
    gaussian = score_gaussian(mean[:, HIDDEN], sd[HIDDEN], truth[:, HIDDEN])
    better = print_comparison(ours, gaussian, r_hat)

    title = "{} half-hidden digits: RMSE {:.3f}, CRPS {:.3f} with the learnt energy; {:.3f}, {:.3f} with a Gaussian"
    title = title.format(len(truth), *ours.mean(1), *gaussian.mean(1))
    rows = np.sort(np.unique(labels, return_index=True)[1])[:6]  # the first six different digits
    mean_of, sd_of, last = draws["x"].mean((0, 1))[rows], draws["x"].std((0, 1))[rows], draws["x"][:, -1, rows]
    columns = {"truth": truth[rows], "observed\nhalf": np.hstack([y, np.nan * truth[:, HIDDEN]])[rows], " ": None}
    columns |= {"posterior\nmean": mean_of, "posterior\nsd": sd_of}
    columns |= {f"posterior\ndraw {chain + 1}": last[chain] for chain in range(4)}
    columns |= {"  ": None, "Gaussian\nmean": mean[rows]}
    draw_figure(arguments.output / "digits_inpainting.png", columns, title)
    print(f"\nFigure and draws are in {arguments.output}; {time.perf_counter() - started:.0f} s")
    if arguments.short:
        print("This was the short mode: a smoke test, too short to conclude anything.")
    elif not better:
        sys.exit("The energy did not beat the Gaussian on both scores.")


if __name__ == "__main__":
    main()
