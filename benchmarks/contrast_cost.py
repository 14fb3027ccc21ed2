"""Cost of a step of the estimators that contrast data with draws, as ratios to the network's own gradient.

`python -m benchmarks.contrast_cost` prints one Markdown table, made as that of benchmarks/score_matching_cost.py: one
gradient of the mean loss in the parameters, divided by that of the mean energy, shortest CPU times of several rounds in
one process. The noise is N(0, I); one noise event, copy, jump or draw for each datum unless said otherwise.
"""

import argparse

import equinox as eqx
import jax
from flowjax.distributions import StandardNormal

import ebm_ppl as ebm
from benchmarks.score_matching_cost import MeanEnergy, seconds
from ebm_ppl import objectives


def methods(dim):
    noise, chains = StandardNormal((dim,)), ebm.MALA(0.01)
    return {
        "energy": MeanEnergy(),
        "NCE": objectives.NoiseContrastive(noise),
        "NCE, 5": objectives.NoiseContrastive(noise, noise_ratio=5),
        "ranking NCE, 5": objectives.RankingNoiseContrastive(noise, num_noise=5),
        "conditional NCE": objectives.ConditionalNoiseContrastive(0.5),
        "energy discrepancy, 16": objectives.EnergyDiscrepancy(0.5),
        "MPF": objectives.MinimumProbabilityFlow(0.1),
        "CD-1": objectives.ContrastiveDivergence(chains),
        "CD-10": objectives.ContrastiveDivergence(chains, num_steps=10),
        "PCD-1": objectives.PersistentContrastiveDivergence(chains),
    }


@eqx.filter_jit
def step(objective, model, state, batch, key):
    """Loss and gradient of one step."""
    return eqx.filter_value_and_grad(lambda model: objective(model, state, batch, key=key)[0])(model)


def measure(dim, width, depth, batch_size, repeats):
    """Shortest time of the energy in ms, and of each method as a ratio to it."""
    key = jax.random.key(0)
    model = ebm.ShiftedEnergy(ebm.MLPEnergy((dim,), width=width, depth=depth, key=key))
    batch = jax.random.normal(key, (batch_size, dim))
    programs = {}
    for name, objective in methods(dim).items():
        state = None if name == "energy" else objective.init(model, batch, key=key)
        programs[name] = eqx.Partial(step, objective, model, state, batch, key)
        jax.block_until_ready(programs[name]())
    rounds = [{name: seconds(program) for name, program in programs.items()} for _ in range(repeats)]
    best = {name: min(times[name] for times in rounds) for name in programs}
    return 1000 * best["energy"], {name: time / best["energy"] for name, time in best.items()}


def main():
    """One row per dimension."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=(2, 32, 128, 1024))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    names = [name for name in methods(2) if name != "energy"]
    network = f"{options.depth} layers of {options.width} silu units, batch {options.batch_size}, float32"
    print(f"{jax.devices()[0]}; jax {jax.__version__}; {network}; shortest of {options.repeats} rounds\n")
    print(f"| d | energy, ms | {' | '.join(names)} |\n{'|---' * (len(names) + 2)}|")
    for dim in options.dimensions:
        base, ratios = measure(dim, options.width, options.depth, options.batch_size, options.repeats)
        print(f"| {dim} | {base:.2f} | {' | '.join(f'{ratios[name]:.1f}' for name in names)} |", flush=True)


if __name__ == "__main__":
    main()
