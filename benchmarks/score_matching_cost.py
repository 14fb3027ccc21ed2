"""Cost of a step of score matching as the dimension grows, as ratios to the network's own gradient.

`python -m benchmarks.score_matching_cost` prints one Markdown table. Each row is one dimension d; each figure the time
of one gradient of the mean loss in the parameters, divided by that of the mean energy (one forward and one backward
pass). All programs of a row are timed in turn, in one process, several rounds; the figure is the ratio of the shortest
CPU times, which other work on the machine changes least. "by hand" is the forward Laplacian written out for a
multilayer perceptron, the cheapest way known to us; "backward" is the derivative of the gradient along d directions, as
most libraries have it. XLA_FLAGS=--xla_cpu_multi_thread_eigen=false keeps threads that wait out of the count.
"""

import argparse
import time
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

import ebm_ppl as ebm
from ebm_ppl import objectives
from ebm_ppl.objectives._directions import score_and_curvatures

DIMENSIONS = (2, 8, 32, 128, 256, 512, 1024)
LIMIT_OF_BACKWARD = 256  # beyond, d x d products for every datum take gigabytes


class MeanEnergy(objectives.AbstractStatelessObjective):
    """The yardstick: the network once forward, once backward."""

    comparable: ClassVar[bool] = False

    def evaluate(self, model, batch, *, key):
        return jax.vmap(model)(batch), {}


class BackwardExact(objectives.AbstractStatelessObjective):
    """Exact score matching by d derivatives of the gradient."""

    comparable: ClassVar[bool] = True

    def evaluate(self, model, batch, *, key):
        def event_loss(x):
            score, curvatures = score_and_curvatures(model, x, None, jnp.eye(x.size, dtype=x.dtype))
            return jnp.sum(score**2) / 2 + jnp.sum(curvatures)

        return jax.vmap(event_loss)(batch), {}


class HandWrittenExact(objectives.AbstractStatelessObjective):
    """Exact score matching by a forward Laplacian that knows the network: silu layers, then a linear one."""

    comparable: ClassVar[bool] = True

    def evaluate(self, model, batch, *, key):
        *hidden, last = model.mlp.layers

        def event_loss(x):
            value, first, second = x, jnp.eye(x.size, dtype=x.dtype), jnp.zeros_like(x)
            for layer in hidden:
                value = layer.weight @ value + layer.bias
                first, second = first @ layer.weight.T, layer.weight @ second
                gate = jax.nn.sigmoid(value)
                bend = gate * (1 - gate)
                slope, curve = gate + value * bend, bend * (2 + value * (1 - 2 * gate))
                value, second = value * gate, slope * second + curve * jnp.sum(first**2, 0)
                first = slope[None] * first
            weight = last.weight.reshape(-1)
            return jnp.sum((first @ weight) ** 2) / 2 - jnp.sum(weight * second)

        return jax.vmap(event_loss)(batch), {}


METHODS = {
    "energy": MeanEnergy(),
    "denoising": objectives.DenoisingScoreMatching(0.1),
    "finite differences": objectives.FiniteDifferenceScoreMatching(0.1),
    "sliced": objectives.SlicedScoreMatching(),
    "Hutchinson": objectives.HutchinsonScoreMatching(),
    "Hutch++ (1+1)": objectives.HutchinsonScoreMatching(sketch_size=1),
    "exact": objectives.ExactScoreMatching(),
    "exact by hand": HandWrittenExact(),
    "exact, backward": BackwardExact(),
}


@eqx.filter_jit
def step(objective, model, batch, key):
    """Loss and gradient of one step."""
    return eqx.filter_value_and_grad(lambda model: jnp.mean(objective.evaluate(model, batch, key=key)[0]))(model)


def seconds(program, at_least=0.02):
    """CPU time of one call: the mean over as many as fill `at_least` seconds."""
    calls, started = 0, time.process_time()
    while calls == 0 or time.process_time() - started < at_least:
        jax.block_until_ready(program())
        calls += 1
    return (time.process_time() - started) / calls


def measure(dim, width, depth, batch_size, repeats):
    """Shortest time of the energy in ms, and of each method as a ratio to it."""
    key = jax.random.key(0)
    model = ebm.MLPEnergy((dim,), width=width, depth=depth, key=key)
    batch = jax.random.normal(key, (batch_size, dim))
    skipped = {"exact, backward"} if dim > LIMIT_OF_BACKWARD else set()
    programs = {
        name: eqx.Partial(step, objective, model, batch, key)
        for name, objective in METHODS.items()
        if name not in skipped
    }
    exact = {name: float(program()[0]) for name, program in programs.items() if name.startswith("exact")}
    if max(exact.values()) - min(exact.values()) > 1e-4 * max(1, abs(exact["exact"])):
        raise RuntimeError(f"the ways to the exact loss disagree: {exact}")
    for program in programs.values():
        jax.block_until_ready(program())
    rounds = [{name: seconds(program) for name, program in programs.items()} for _ in range(repeats)]
    best = {name: min(times[name] for times in rounds) for name in programs}
    ratios = {name: time / best["energy"] for name, time in best.items()}
    return 1000 * best["energy"], ratios, best["exact"] / best["exact by hand"]


def main():
    """One row per dimension."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=DIMENSIONS)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    names = [name for name in METHODS if name != "energy"]
    network = f"{options.depth} layers of {options.width} silu units, batch {options.batch_size}, float32"
    print(f"{jax.devices()[0]}; jax {jax.__version__}; {network}; shortest of {options.repeats} rounds\n")
    print(f"| d | energy, ms | {' | '.join(names)} | exact / by hand |")
    print("|---" * (len(names) + 3) + "|")
    for dim in options.dimensions:
        base, ratios, by_hand = measure(dim, options.width, options.depth, options.batch_size, options.repeats)
        cells = [f"{ratios[name]:.1f}" if name in ratios else "" for name in names]
        print(f"| {dim} | {base:.2f} | {' | '.join(cells)} | {by_hand:.2f} |", flush=True)


if __name__ == "__main__":
    main()
