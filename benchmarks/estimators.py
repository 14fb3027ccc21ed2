"""Every estimator on real data: held-out log-likelihood and held-out Fisher score, against a Gaussian and a flow.

`python -m benchmarks.estimators` prints one Markdown table for each data set (see benchmarks/real_data.py). The model
is the full-covariance Gaussian of the training data, tilted by a network, E(x) = |x|^2/2 + network(x) with 64-64 silu
units, the same for all. Training: Adam at 1e-3, batches of 64, an average over the iterates (.99); every 50 steps the
objective on the validation rows, and the parameters of its lowest value are kept; objectives whose values do not
compare are judged by ranking NCE. All hyperparameters were fixed before test rows were scored. Maximum
likelihood by quadrature ends at two dimensions; sliced score matching with variance reduction is Hutchinson's.

log-likelihood: nats per test row, with the standard errors from the rows and from log Z. log Z is by annealed
importance sampling from N(0, 1.2 I), forward, and backward from chains that start at the training rows; where the two
disagree, or the weights are too uneven, there is no number. Score loss: that of exact score matching on the test rows,
lower is better, with its standard error. Gain and change are differences to the Gaussian, row by row: theirs are the
errors to compare by.
"""

import argparse
import math
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow

import ebm_ppl as ebm
from benchmarks.flow_contrastive import FlowEnergy, NegativeLogLikelihood
from benchmarks.real_data import LOADERS, load
from ebm_ppl import normalizers, objectives

STEPS, VALIDATE_EVERY, PATIENCE, BATCH_SIZE = 2000, 50, 12, 64
ADAM = optax.adam(1e-3)
TWO_ADAMS = ebm.training.two_player_optimizer(ADAM, optax.adam(1e-4, b1=0.5))
SCALES = jnp.geomspace(1.0, 0.1, 6)


class TiltedNormal(ebm.AbstractEnergy):
    """|x|^2/2 + network(x): integrable, for a network grows no faster than |x|."""

    network: ebm.MLPEnergy
    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, x, condition=None):
        return jnp.sum(x**2) / 2 + self.network(x, condition)


class AtScale(ebm.AbstractEnergy):
    """A noise-conditioned energy at its smallest scale."""

    energy: ebm.AbstractEnergy
    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, x, condition=None):
        return self.energy(x, objectives.noise_condition(SCALES[-1]))


def normal(dim, variance=1.0):
    return Normal(jnp.zeros(dim), math.sqrt(variance))


def new_energy(dim, key, condition_shape=None):
    network = ebm.MLPEnergy((dim,), width=64, depth=2, key=key, condition_shape=condition_shape)
    return TiltedNormal(network, (dim,), condition_shape=condition_shape)


def new_flow(dim, key):
    """Affine couplings, smooth: splines and relu have no second derivative everywhere, which the score needs."""
    return coupling_flow(key, base_dist=normal(dim), flow_layers=6, nn_width=64, nn_activation=jax.nn.silu)


def estimators(dim, flow):
    """name -> (objective, whether the energy has a constant to learn)."""
    chains = ebm.MALA(0.1)
    return {
        "NCE, noise the Gaussian": (objectives.NoiseContrastive(normal(dim), noise_ratio=5), True),
        "NCE, noise the flow": (objectives.NoiseContrastive(flow, noise_ratio=5), True),
        "FCE, from the flow": (objectives.FlowContrastive(), True),
        "ranking NCE": (objectives.RankingNoiseContrastive(normal(dim), num_noise=5), False),
        "conditional NCE": (objectives.ConditionalNoiseContrastive(0.5, noise_ratio=5), False),
        "energy discrepancy": (objectives.EnergyDiscrepancy(0.5, num_samples=8), False),
        "minimum probability flow": (objectives.MinimumProbabilityFlow(0.1, num_neighbors=5), False),
        "CD-1": (objectives.ContrastiveDivergence(chains), False),
        "CD-10": (objectives.ContrastiveDivergence(chains, num_steps=10), False),
        "PCD-10": (objectives.PersistentContrastiveDivergence(chains, num_steps=10), False),
        "exact score matching": (objectives.ExactScoreMatching(), False),
        "Hutchinson": (objectives.HutchinsonScoreMatching(), False),
        "sliced": (objectives.SlicedScoreMatching(variance_reduced=False), False),
        "finite differences": (objectives.FiniteDifferenceScoreMatching(0.1), False),
        "denoising, .3": (objectives.DenoisingScoreMatching(0.3), False),
        "denoising, 1 to .1": (objectives.MultiscaleDenoisingScoreMatching(SCALES), False),
    }


def train(model, rows, objective, key, steps, optimizer=ADAM):
    judge = None if objective.comparable else objectives.RankingNoiseContrastive(normal(rows.train.shape[1]), 64)
    settings = {"key": key, "optimizer": optimizer, "batch_size": BATCH_SIZE, "ema_decay": 0.99, "progress_bar": False}
    settings |= {"validation": jnp.asarray(rows.validation), "validate_every": VALIDATE_EVERY, "patience": PATIENCE}
    data = jnp.asarray(rows.train)
    ebm.fit(model, data, objective, num_steps=VALIDATE_EVERY, validation_objective=judge, **settings)  # compiles
    started = time.process_time()
    result = ebm.fit(model, data, objective, num_steps=steps, validation_objective=judge, **settings)
    return result, 1000 * (time.process_time() - started) / result.num_steps


@eqx.filter_jit
def score_losses(energy, x):
    return objectives.ExactScoreMatching().evaluate(energy, x, key=jax.random.key(0))[0]


def log_normalizer_of(energy, rows, key, quick):
    """Forward from a wide normal law, backward from chains that start at the training rows; `quick`: importance."""
    start_key, chain_key, key = jax.random.split(key, 3)
    wide = normal(rows.train.shape[1], 1.2)
    if quick:
        return normalizers.importance(energy, wide, key=key, num_samples=1000)
    starts = jax.random.choice(start_key, jnp.asarray(rows.train), (256,))
    draws = ebm.sample(
        energy, ebm.MALA(0.1), key=chain_key, num_chains=256, num_warmup=300, num_samples=1,
        initial_positions=starts, pool_warmup=True, progress_bar=False,
    )  # fmt: skip
    return normalizers.annealed_importance(
        energy, wide, key=key, draws=jnp.asarray(draws.positions[:, 0]),
        num_samples=256, num_temperatures=256, num_pilot=128,
    )  # fmt: skip


def held_out(energy, rows, log_normalizer):
    """What a row of the table is made of; a log Z that is not vouched for gives no log-likelihood."""
    test = jnp.asarray(rows.test)
    found = {"scores": np.asarray(score_losses(energy, test), float), "log_normalizer": log_normalizer}
    if not isinstance(log_normalizer, normalizers.LogNormalizerEstimate) or log_normalizer.ok:
        found["likelihood"] = normalizers.held_out_log_likelihood(energy, test, log_normalizer)
    return found


def study(data, steps=STEPS, methods=None, *, quick=False, seed=0):
    """name -> figures, one row at a time, in the order of the table."""
    rows = load(data, seed)
    dim = rows.train.shape[1]
    flow_key, network_key, fit_key, key = jax.random.split(jax.random.key(seed), 4)
    gaussian = ebm.energies.Gaussian(jnp.zeros(dim), jnp.eye(dim))
    yield "full-covariance Gaussian", held_out(gaussian, rows, float(gaussian.log_normalizer))
    flow_model = FlowEnergy(new_flow(dim, flow_key), event_shape=(dim,))
    result, pace = train(flow_model, rows, NegativeLogLikelihood(), fit_key, steps)
    flow = result.model.flow
    yield "flow by maximum likelihood", held_out(result.model, rows, 0.0) | {"pace": pace, "step": result.best_step}
    for name, (objective, learns_constant) in estimators(dim, flow).items():
        if methods is not None and name not in methods:
            continue
        energy = new_energy(dim, network_key, () if objective.noise_conditioned else None)
        model = ebm.ShiftedEnergy(energy, dim / 2 * math.log(2 * math.pi)) if learns_constant else energy
        game = isinstance(objective, objectives.FlowContrastive)
        result, pace = train(
            (model, flow) if game else model, rows, objective, fit_key, steps, TWO_ADAMS if game else ADAM
        )
        fitted = result.model[0] if game else result.model
        if learns_constant:
            learned, fitted = float(fitted.log_normalizer), fitted.energy
        if objective.noise_conditioned:
            fitted = AtScale(fitted, (dim,))
        estimate = log_normalizer_of(fitted, rows, key, quick)
        found = held_out(fitted, rows, estimate) | {"pace": pace, "step": result.best_step, "fit": result.problems}
        yield name, found | ({"learned": learned} if learns_constant else {})


def gain(values, base, further_error=0.0):
    """Mean difference, row by row, with its standard error."""
    difference = values - base
    return f"{difference.mean():+.2f} ± {math.hypot(difference.std(ddof=1) / math.sqrt(len(base)), further_error):.2f}"


def cells(found, base):
    scores, errors = found["scores"], math.sqrt(len(found["scores"]))
    if "likelihood" in found:
        likelihood = found["likelihood"]
        from_log_z = likelihood.standard_error_log_normalizer
        text = f"{likelihood.value:.2f} ± {likelihood.standard_error_data:.2f} ± {from_log_z:.2f}"
        likelihoods = [text, gain(likelihood.pointwise, base["likelihood"].pointwise, from_log_z)]
    else:
        codes = sorted({problem.code for problem in found["log_normalizer"].problems})
        likelihoods = [f"not vouched for: {', '.join(codes)}", ""]
    learned = f"{found['learned'] - found['log_normalizer'].value:+.2f}" if "learned" in found else ""
    scored = [f"{scores.mean():.2f} ± {scores.std(ddof=1) / errors:.2f}", gain(scores, base["scores"])]
    pace = f"{found['pace']:.1f}" if "pace" in found else ""
    return [*likelihoods, learned, *scored, str(found.get("step", "")), pace]


COLUMNS = (
    "log-likelihood ± rows ± log Z", "gain", "learned - estimated log Z", "score loss", "change", "kept step",
    "CPU ms per step",
)  # fmt: skip


def print_table(data, **settings):
    rows = load(data, settings["seed"])
    counts = "/".join(str(len(part)) for part in rows[:3])
    shift = f"{rows.log_determinant:+.2f} nats for log densities of standardised columns"
    print(f"\n### {data}: {rows.train.shape[1]} dimensions, {counts} rows; {shift}\n")
    print(f"| estimator | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    base, remarks = None, []
    for name, found in study(data, **settings):
        base = found if base is None else base
        print(f"| {name} | {' | '.join(cells(found, base))} |", flush=True)
        remarks += [f"{name}: {problem}" for problem in getattr(found["log_normalizer"], "problems", ())]
        remarks += [f"{name}, training: {problem}" for problem in found.get("fit", ())]
    print("".join(f"\n- {remark}" for remark in remarks))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", nargs="+", choices=LOADERS)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--quick", action="store_true", help="a smoke test on wine: the figures mean nothing")
    options = parser.parse_args()
    options.data = options.data or (["wine"] if options.quick else list(LOADERS))
    options.methods = options.methods or (["NCE, noise the Gaussian"] if options.quick else None)
    started, cpu = time.monotonic(), time.process_time()
    print(f"{jax.devices()[0]}; jax {jax.__version__}; at most {options.steps} steps, seed {options.seed}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ebm.errors.SamplingWarning)  # all problems are printed below the table
        for data in options.data:
            steps = VALIDATE_EVERY if options.quick else options.steps
            print_table(data, steps=steps, methods=options.methods, quick=options.quick, seed=options.seed)
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes, {(time.process_time() - cpu) / 60:.1f} of CPU time")


if __name__ == "__main__":
    main()
