"""Flow-contrastive estimation against its alternatives, on four densities in the plane that are known exactly.

`python -m benchmarks.flow_contrastive` prints one Markdown table and draws `docs/figures/flow_contrastive.png` (data,
energy density, flow density). Every method trains the same network (2-128x4-1, silu) for the same number of steps on
the same 50,000 data: batches of 128, Adam at 1e-3 (the flow of the game slower, b1 = .5), in the last third along a
cosine to 0, and an average over the iterates with a memory of 1/150 of the run. The log-density error is the mean of
(log p_model - log p)^2 over 5,000 fresh data, the energy normalised by quadrature over a box; KL is from the truth to
the model, nats; log Z is that of the model with its learned constant: 0 where the constant is right. Small networks on
small batches are faster, on busy machines much faster, with XLA_FLAGS=--xla_cpu_multi_thread_eigen=false.
"""

import argparse
import functools
import math
import pathlib
import time
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow

import ebm_ppl as ebm
from benchmarks.densities import DENSITIES
from ebm_ppl import objectives

SIDE, POINTS = 6.0, 600  # the box of the quadrature
NUM_DATA, NUM_TEST, BATCH_SIZE = 50_000, 5000, 128
FLOW_RATE = 1e-4


@functools.cache  # a new one would be compiled anew
def adam(steps, rate=1e-3, momentum=0.9):
    begin = 2 * steps // 3
    decay = optax.cosine_decay_schedule(rate, steps - begin)
    return optax.adam(optax.join_schedules([optax.constant_schedule(rate), decay], [begin]), b1=momentum)


@functools.cache
def two_adams(steps):
    return ebm.training.two_player_optimizer(adam(steps), adam(steps, FLOW_RATE, 0.5))


class FlowEnergy(ebm.AbstractEnergy):
    """-log q of a flow: an energy that is normalised."""

    flow: eqx.Module
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,))
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, x, condition=None):
        return -self.flow.log_prob(x)


class NegativeLogLikelihood(objectives.AbstractStatelessObjective):
    """Maximum likelihood for energies that are normalised."""

    comparable: ClassVar[bool] = True

    def evaluate(self, model, batch, *, key):
        return jax.vmap(model)(batch), {}


def network(key):
    return ebm.MLPEnergy((2,), width=128, depth=4, key=key)


@functools.cache  # a new one would be compiled anew
def new_flow():
    """Spline couplings, from a normal as wide as the data."""
    spline = RationalQuadraticSpline(knots=8, interval=5)
    return coupling_flow(
        jax.random.key(7), base_dist=Normal(jnp.zeros(2), 2.0), transformer=spline, flow_layers=4, nn_width=64
    )


def train(model, data, objective, key, steps, make_optimizer=adam, *, only_compile=False):
    return ebm.fit(
        model, data, objective, key=key, optimizer=make_optimizer(steps), num_steps=1 if only_compile else steps,
        batch_size=BATCH_SIZE, ema_decay=1 - 150 / steps, progress_bar=False,
    )  # fmt: skip


def by_noise(noise):
    def run(data, *settings, **options):
        model = ebm.ShiftedEnergy(network(settings[0]), math.log(16))
        return train(model, data, objectives.NoiseContrastive(noise), *settings, **options)

    return run


def by_likelihood(data, *settings, **options):
    return train(FlowEnergy(new_flow()), data, NegativeLogLikelihood(), *settings, **options)


def by_likelihood_then_noise(data, *settings, **options):
    flow = by_likelihood(data, *settings, **options).model.flow
    return by_noise(flow)(data, *settings, **options)


def by_game(data, *settings, **options):
    model = ebm.ShiftedEnergy(network(settings[0]), math.log(16)), new_flow()
    return train(model, data, objectives.FlowContrastive(), *settings, two_adams, **options)


def by(objective):
    return lambda data, *settings, **options: train(network(settings[0]), data, objective, *settings, **options)


METHODS = {
    "FCE": by_game,
    "NCE, noise N(0, 4I)": by_noise(ebm.energies.Gaussian(jnp.zeros(2), 4 * jnp.eye(2))),
    "NCE, noise a flow by maximum likelihood": by_likelihood_then_noise,
    "energy discrepancy": by(objectives.EnergyDiscrepancy(0.5, num_samples=4)),
    "CD-10": by(objectives.ContrastiveDivergence(ebm.MALA(0.02), num_steps=10)),
    "exact score matching": by(objectives.ExactScoreMatching()),
    "flow by maximum likelihood": by_likelihood,
}


@eqx.filter_jit
def energies_of(energy, x):
    return jax.lax.map(energy, x, batch_size=10_000)


def box():
    """Midpoints of the cells, (POINTS^2, 2), and the logarithm of a cell's area."""
    line = -SIDE + 2 * SIDE * (jnp.arange(POINTS, dtype=float) + 0.5) / POINTS
    return jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2), 2 * math.log(2 * SIDE / POINTS)


def log_normalizer_of(energy):
    """By quadrature over the box."""
    points, log_area = box()
    return float(jax.nn.logsumexp(-energies_of(energy, points))) + log_area


def errors(energy, truth, test):
    """Mean squared error of the log density, Kullback-Leibler divergence from the truth, log Z by quadrature."""
    log_normalizer = log_normalizer_of(energy)
    gap = -energies_of(energy, test) - log_normalizer + energies_of(truth, test)
    return float(jnp.mean(gap**2)), float(-jnp.mean(gap)), log_normalizer


def study(density, method, steps, seed=0):
    """Train and measure: a dict of figures, and the model."""
    truth = DENSITIES[density]()
    data_key, test_key, key = jax.random.split(jax.random.key(seed), 3)
    data, test = truth.sample(data_key, (NUM_DATA,)), truth.sample(test_key, (NUM_TEST,))
    METHODS[method](data, key, steps, only_compile=True)
    started = time.process_time()
    result = METHODS[method](data, key, steps)
    milliseconds = 1000 * (time.process_time() - started) / steps
    energy, flow = result.model if isinstance(result.model, tuple) else (result.model, None)
    error, divergence, log_normalizer = errors(energy, truth, test)
    found = {"error": error, "KL": divergence, "CPU ms per step": milliseconds, "ok": result.ok}
    if isinstance(energy, ebm.ShiftedEnergy):
        found["log Z"] = log_normalizer  # of the energy with its constant: how far that is from log Z
    if flow is not None:
        found["flow's error"] = errors(FlowEnergy(flow), truth, test)[0]
    return found, result.model


def panels(energy, flow):
    """Densities over the box."""
    points, _ = box()
    return [
        np.exp(-np.asarray(energies_of(one, points)) - log_normalizer_of(one)).reshape(POINTS, POINTS)
        for one in (energy, FlowEnergy(flow))
    ]


def draw_figure(densities, path):
    """Data, energy density and flow density, a row for each set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(densities), 3, figsize=(7.5, 2.5 * len(densities)), squeeze=False)
    for row, (density, images) in zip(axes, densities.items(), strict=True):
        data = np.asarray(DENSITIES[density]().sample(jax.random.key(1), (4000,)))
        row[0].plot(*data.T, ",", color="black")
        limit = np.exp(-min(np.asarray(energies_of(DENSITIES[density](), jnp.asarray(data)))))
        for axis, image in zip(row[1:], images, strict=True):
            axis.imshow(image, origin="lower", extent=(-SIDE, SIDE, -SIDE, SIDE), cmap="magma", vmin=0, vmax=limit)
        for axis in row:
            axis.set(xlim=(-5, 5), ylim=(-5, 5), xticks=[], yticks=[], aspect="equal")
        row[0].set_ylabel(density)
    for axis, title in zip(axes[0], ["data", "energy density", "flow density"], strict=True):
        axis.set_title(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--densities", nargs="+", choices=DENSITIES, default=list(DENSITIES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--figure", type=pathlib.Path, default=pathlib.Path("docs/figures/flow_contrastive.png"))
    options = parser.parse_args()
    started = time.monotonic()
    print(f"{jax.devices()[0]}; jax {jax.__version__}; {options.steps} steps of each method, seed {options.seed}\n")
    columns = ["error", "KL", "log Z", "flow's error"]
    print(f"| data | method | {' | '.join(columns)} | CPU ms per step |\n|{'---|' * (len(columns) + 3)}")
    games = {}
    for density in options.densities:
        for method in options.methods:
            found, model = study(density, method, options.steps, options.seed)
            cells = [f"{found[column]:.3f}" if column in found else "" for column in columns]
            pace = f"{found['CPU ms per step']:.1f}" + ("" if found["ok"] else ", diverged")
            print(f"| {density} | {method} | {' | '.join(cells)} | {pace} |", flush=True)
            if method == "FCE":
                games[density] = panels(*model)
                draw_figure(games, options.figure)
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
