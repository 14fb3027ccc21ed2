"""Benchmark: every figure is a ratio of two programs timed in turn, in one process, on one machine.

`python3 run.py bench` runs it; `--size small|medium|large` chooses sizes (chains x dimensions x steps), `--repeats`
the number of pairs. Compilation is excluded: each program runs once before it is timed. A ratio of 1.0 means that
the library costs nothing over the bare loop it is compared with.
"""

import argparse
import statistics
import time

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ebm_ppl as ebm

SIZES = {"small": (64, 8, 500), "medium": (256, 32, 1000), "large": (1024, 128, 1000)}


def seconds(program):
    started = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - started


def compare(name, ours, bare, repeats):
    seconds(ours), seconds(bare)
    pairs = [(seconds(ours), seconds(bare)) for _ in range(repeats)]
    ratios = [a / b for a, b in pairs]
    print(
        f"{name:58s} {statistics.median(a for a, _ in pairs):8.3f} s {statistics.median(b for _, b in pairs):8.3f} s "
        f"ratio {statistics.median(ratios):5.2f}  [{min(ratios):.2f}, {max(ratios):.2f}]",
        flush=True,
    )


@eqx.filter_jit
def bare_gradient_loop(energy, positions, steps):
    gradient = jax.vmap(jax.grad(lambda x: energy(x)))

    def step(i, x):
        return x - 1e-3 * gradient(x)

    return jax.lax.fori_loop(0, steps, step, positions)


@eqx.filter_jit
def bare_blackjax_loop(energy, positions, keys, steps):
    algorithm = blackjax.mala(lambda x: -energy(x), 1e-3)

    def one_chain(position, key):
        def step(state, i):
            state, info = algorithm.step(jax.random.fold_in(key, i), state)
            return state, (state.position, info.acceptance_rate)

        return jax.lax.scan(step, algorithm.init(position), jnp.arange(steps))[1]

    return jax.vmap(one_chain)(positions, keys)


def benchmark_sampling(size, repeats):
    chains, dim, steps = SIZES[size]
    key = jax.random.key(0)
    energy = ebm.MLPEnergy((dim,), width=128, depth=2, key=key)
    positions = jax.random.normal(key, (chains, dim))
    keys = jax.random.split(key, chains)
    settings = {
        "key": key, "num_chains": chains, "num_warmup": 0, "num_samples": steps, "precondition": "none",
        "initial_positions": positions, "progress_bar": False,
    }  # fmt: skip
    kernel = ebm.MALA(1e-3)

    def ours():
        return ebm.sample(energy, kernel, **settings).positions

    label = f"sample(MALA), MLP energy, {chains} x {dim} x {steps}"
    compare(f"{label} / bare gradient loop", ours, lambda: bare_gradient_loop(energy, positions, steps), repeats)
    compare(f"{label} / bare BlackJAX scan", ours, lambda: bare_blackjax_loop(energy, positions, keys, steps), repeats)


@eqx.filter_jit
def bare_training_loop(model, data, key, optimizer, steps, batch_size):
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(arrays, key):
        model = eqx.combine(arrays, static)
        index_key, noise_key = jax.random.split(key)
        batch = data[jax.random.randint(index_key, (batch_size,), 0, len(data))]
        noise = jax.random.normal(noise_key, batch.shape)
        gradient = jax.vmap(jax.grad(lambda x: model(x)))(batch + 0.1 * noise)
        return jnp.mean(jnp.sum((0.1 * gradient - noise) ** 2, axis=-1)) / 2

    def step(carry, i):
        arrays, state = carry
        value, gradient = jax.value_and_grad(loss)(arrays, jax.random.fold_in(key, i))
        updates, state = optimizer.update(gradient, state, arrays)
        return (optax.apply_updates(arrays, updates), state), value

    return jax.lax.scan(step, (arrays, optimizer.init(arrays)), jnp.arange(steps))


def benchmark_training(size, repeats):
    batch_size, dim, steps = SIZES[size]
    key = jax.random.key(1)
    model = ebm.MLPEnergy((dim,), width=128, depth=2, key=key)
    data = np.asarray(jax.random.normal(key, (4096, dim)))
    objective = ebm.objectives.DenoisingScoreMatching(noise_scale=0.1)
    optimizer = optax.adam(1e-3)
    settings = {"optimizer": optimizer, "num_steps": steps, "batch_size": batch_size, "progress_bar": False}

    def ours():
        return ebm.fit(model, data, objective, key=key, **settings).metrics["loss"]

    def bare():
        return bare_training_loop(model, jnp.asarray(data), key, optimizer, steps, batch_size)

    compare(f"fit(denoising), MLP energy, {batch_size} x {dim} x {steps} / bare optax scan", ours, bare, repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=[*SIZES, "all"], default="medium")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{jax.devices()[0]}; jax {jax.__version__}; medians of {options.repeats} pairs: ours, bare, ratio [range]")
    for size in SIZES if options.size == "all" else [options.size]:
        benchmark_sampling(size, options.repeats)
        benchmark_training(size, options.repeats)


if __name__ == "__main__":
    main()
