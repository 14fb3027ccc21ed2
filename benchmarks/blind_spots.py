"""What estimators cannot see, computed exactly: three figures, and a table of bias and variance.

`python -m benchmarks.blind_spots` draws `docs/figures/blind_{weights,noise,chains}.svg` and prints what they show. All
of it is quadrature on one line or matrices on a grid; nothing is simulated but the crosses of the second figure and the
table of variances, which `ebm.standard_errors` reads off data.

- Weights: .2 N(-D, 1) + .8 N(D, 1), the weight to be learned. Losses over their least value; and n times the variance
  of the estimated weight.
- Noise: data N(0, 1), log Z to be learned with noise N(D, 1); log Z and precision to be learned with noise N(0, s^2).
- Chains: contrastive divergence with k transitions of MALA fits the tilt t of the double well b (x^2 - 1)^2 - t x to
  data of another shape, .7 N(.9, .3^2) + .3 N(-.9, .3^2): the share of the model in the right well, where it stops.
"""

import argparse
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import ebm_ppl as ebm
from ebm_ppl import objectives

LINE = np.linspace(-16, 16, 16001)
CELL = LINE[1] - LINE[0]
WEIGHT = 0.2


def normal_density(x, mean, deviation):
    return np.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))


def integral(values):
    return float(values.sum() * CELL)


# --- score matching and the weights of modes


def modes(distance):
    return normal_density(LINE, -distance, 1), normal_density(LINE, distance, 1)


def mixture_score(distance, weight):
    """d/dx log(w left + (1 - w) right), without dividing small densities."""
    share = 1 / (1 + (1 - weight) / weight * np.exp(2 * distance * LINE))  # of the left mode, at x
    return -LINE + distance * (1 - 2 * share)


def weight_losses(distance, weights):
    """Above their least values, at each weight: score matching, NCE (noise N(0, 1 + D^2), as many), likelihood."""
    left, right = modes(distance)
    truth = WEIGHT * left + (1 - WEIGHT) * right
    noise = normal_density(LINE, 0, np.sqrt(1 + distance**2))

    def contrast(model):
        return integral(truth * np.log1p(noise / model) + noise * np.log1p(model / noise))

    right_score = mixture_score(distance, WEIGHT)
    rows = []
    for weight in weights:
        model = weight * left + (1 - weight) * right
        fisher = integral(truth * (mixture_score(distance, weight) - right_score) ** 2) / 2
        rows.append((fisher, contrast(model) - contrast(truth), integral(truth * np.log(truth / model))))
    return np.array(rows)


def weight_variances(distance):
    """n times the variance of the estimated weight: score matching, NCE with log Z learned, maximum likelihood."""
    left, right = modes(distance)
    truth = WEIGHT * left + (1 - WEIGHT) * right
    noise = normal_density(LINE, 0, np.sqrt(1 + distance**2))
    ascent = (left - right) / truth  # of log p, in the weight
    likelihood = 1 / integral(truth * ascent**2)
    # The loss s^2/2 + s' has the derivative s ds + ds' in the weight, its second moment over the curvature squared.
    share = 1 / (1 + (1 - WEIGHT) / WEIGHT * np.exp(2 * distance * LINE))
    bend = share * (1 - share)
    turn = bend / (WEIGHT * (1 - WEIGHT))  # d share / d weight
    score = mixture_score(distance, WEIGHT)
    change = -2 * distance * turn
    slope = -2 * distance * (1 - 2 * share) * -2 * distance * turn
    rows = score * change + slope
    matching = integral(truth * rows**2) / integral(truth * change**2) ** 2
    return matching, contrastive_covariance(truth, noise, np.stack([ascent, np.ones_like(LINE)]), 1.0)[0, 0], likelihood


def contrastive_covariance(density, noise, ascents, ratio):
    """n times the covariance of parameters fitted by NCE, one of them the constant (Gutmann & Hyvarinen 2012)."""
    common = density * ratio * noise / (density + ratio * noise)
    information = np.array([[integral(common * a * b) for b in ascents] for a in ascents])
    mean = np.array([integral(common * a) for a in ascents])
    inverse = np.linalg.inv(information)
    return inverse - (1 + 1 / ratio) * np.outer(inverse @ mean, inverse @ mean)


# --- noise-contrastive estimation and far noise


def constant_variance(distance, ratio=1.0):
    """n times the variance of log Z alone: data N(0, 1), noise N(D, 1)."""
    ones = np.ones((1, len(LINE)))
    return contrastive_covariance(normal_density(LINE, 0, 1), normal_density(LINE, distance, 1), ones, ratio)[0, 0]


def precision_variance(deviation, ratio=1.0):
    """n times the variances of precision and log Z: data N(0, 1), noise N(0, s^2)."""
    ascents = np.stack([-(LINE**2) / 2, np.ones_like(LINE)])
    noise = normal_density(LINE, 0, deviation)
    return np.diag(contrastive_covariance(normal_density(LINE, 0, 1), noise, ascents, ratio))


def measured_constant_variance(distance, num_data=20_000):
    """The same by `ebm.standard_errors`, from data."""
    law = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1))
    noise = ebm.energies.Gaussian(jnp.full(1, float(distance)), jnp.eye(1))
    model = ebm.ShiftedEnergy(law, law.log_normalizer)
    only_constant = eqx.tree_at(lambda m: m.log_normalizer, jax.tree.map(lambda _: False, model), True)  # noqa: FBT003
    data = law.sample(jax.random.key(0), (num_data,))
    found = ebm.standard_errors(
        model, data, objectives.NoiseContrastive(noise), key=jax.random.key(1), trainable=only_constant
    )
    return num_data * float(found.errors.log_normalizer) ** 2


# --- contrastive divergence and short chains

GRID = np.linspace(-2.2, 2.2, 221)
STEP_SIZE = 0.02


def well(barrier, tilt):
    return barrier * (GRID**2 - 1) ** 2 - tilt * GRID


def softmax(log_weights):
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def mala_matrix(barrier, tilt):
    """Transition probabilities of MALA among the points of the grid; exact for the grid's own law."""
    energy, gradient = well(barrier, tilt), 4 * barrier * GRID * (GRID**2 - 1) - tilt
    centre = GRID - STEP_SIZE * gradient
    log_proposal = -((GRID[None] - centre[:, None]) ** 2) / (4 * STEP_SIZE)
    log_proposal -= np.log(np.exp(log_proposal).sum(1, keepdims=True))
    log_ratio = energy[:, None] - energy[None] + log_proposal.T - log_proposal
    matrix = np.exp(log_proposal + np.minimum(log_ratio, 0))
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, 1 - matrix.sum(1))
    return matrix


def data_law():
    return softmax(np.log(0.7 * normal_density(GRID, 0.9, 0.3) + 0.3 * normal_density(GRID, -0.9, 0.3)))


def fitted_tilt(barrier, num_steps):
    """Where the mean gradient of CD-k vanishes: the chains' mean is that of the data. None: maximum likelihood."""
    data = data_law()

    def excess(tilt):
        if num_steps is None:
            return softmax(-well(barrier, tilt)) @ GRID - data @ GRID
        law, matrix = data, mala_matrix(barrier, tilt)
        for _ in range(num_steps):
            law = law @ matrix
        return law @ GRID - data @ GRID

    low, high = -6.0, 6.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return (low + high) / 2


def right_share(barrier, tilt):
    return float(softmax(-well(barrier, tilt))[GRID > 0].sum())


# --- bias and variance of a parameter that all of them can learn


def precision_energy(params, x):
    return params * jnp.sum(x**2) / 2


def relative_variances(dim=10, num_data=20_000):
    """n times the variance of the precision of N(0, I) over maximum likelihood's 2/d; one draw of noise a datum."""
    law = ebm.energies.Gaussian(jnp.zeros(dim), jnp.eye(dim))
    wide = ebm.energies.Gaussian(jnp.zeros(dim), 1.5 * jnp.eye(dim))
    constant = law.log_normalizer
    data = law.sample(jax.random.key(0), (num_data,))
    methods = {
        "exact score matching": (objectives.ExactScoreMatching(), 1.0),
        "Hutchinson": (objectives.HutchinsonScoreMatching(), 1.0),
        "Hutchinson, Gaussian probes": (objectives.HutchinsonScoreMatching(probe="gaussian"), 1.0),
        "sliced": (objectives.SlicedScoreMatching(variance_reduced=False), 1.0),
        "finite differences, spacing .1": (objectives.FiniteDifferenceScoreMatching(0.1), 1.0),
        "denoising, noise .1": (objectives.DenoisingScoreMatching(0.1), 1 / 1.01),
        "denoising, noise .5": (objectives.DenoisingScoreMatching(0.5), 0.8),
        "NCE, noise the data's law": (objectives.NoiseContrastive(law), 1.0),
        "NCE, noise N(0, 1.5 I)": (objectives.NoiseContrastive(wide), 1.0),
        "NCE, noise N(0, 1.5 I), 10 per datum": (objectives.NoiseContrastive(wide, noise_ratio=10), 1.0),
        "ranking NCE, noise N(0, 1.5 I), 10 per datum": (objectives.RankingNoiseContrastive(wide, num_noise=10), 1.0),
        "conditional NCE, noise .5": (objectives.ConditionalNoiseContrastive(0.5), 1.0),
        "energy discrepancy, noise .5, 16 draws": (objectives.EnergyDiscrepancy(0.5), 1.0),
        "minimum probability flow, noise .1": (objectives.MinimumProbabilityFlow(0.1), 1.0),
    }
    for name, (objective, limit) in methods.items():
        model = ebm.FunctionEnergy(precision_energy, (dim,), jnp.asarray(limit))
        if isinstance(objective, objectives.NoiseContrastive):
            model = ebm.ShiftedEnergy(model, constant)
        found = ebm.standard_errors(model, data, objective, key=jax.random.key(1))
        params = found.errors.energy.params if isinstance(model, ebm.ShiftedEnergy) else found.errors.params
        yield name, limit, float(found.distance), num_data * float(params) ** 2 / (2 / dim)


# --- figures


def draw(path, panels):
    """`panels`: (title, x label, y label, scale of y, [(label, x, y, style)])."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "ebm_ppl", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 2.9), squeeze=False)
    for axis, (title, along, up, scale, curves) in zip(axes[0], panels, strict=True):
        for label, x, y, style in curves:
            axis.plot(x, y, style, label=label)
        axis.set(title=title, xlabel=along, ylabel=up)
        axis.set(**scale)
        axis.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def weights_figure(folder):
    weights = np.linspace(0.02, 0.9, 45)
    distances = np.linspace(0.5, 5, 19)
    losses = {distance: weight_losses(distance, weights) for distance in (1, 2, 3, 5)}
    variances = np.array([weight_variances(distance) for distance in distances])
    panels = [
        (title, "weight of the left mode", "loss above its minimum", {"ylim": (-0.01, 0.3)},
         [(f"D = {distance}", weights, losses[distance][:, column], "-") for distance in losses])
        for column, title in enumerate(["score matching", "NCE, noise N(0, 1 + D²)"])
    ]  # fmt: skip
    names = ["score matching", "NCE", "maximum likelihood"]
    curves = [(name, distances, variances[:, column], "-") for column, name in enumerate(names)]
    panels.append(("its estimate", "D", "n × variance of the weight", {"yscale": "log"}, curves))
    draw(folder / "blind_weights.svg", panels)
    print("\n| D | excess at .5: score matching | NCE | KL | n var: score matching | NCE | maximum likelihood |")
    print("|---|---|---|---|---|---|---|")
    for distance in losses:
        row = [*weight_losses(distance, [0.5])[0], *weight_variances(distance)]
        print(f"| {distance} | {' | '.join(f'{value:.3g}' for value in row)} |")


def noise_figure(folder):
    distances, deviations = np.linspace(0.25, 6, 24), np.linspace(0.75, 6, 43)
    ratios = (1.0, 10.0)
    far = [
        (f"{ratio:.0f} per datum", distances, [constant_variance(d, ratio) for d in distances], "-") for ratio in ratios
    ]
    crosses = (1, 2, 3, 4)
    measured = [measured_constant_variance(distance) for distance in crosses]
    far.append(("standard_errors, 20,000 data", crosses, measured, "kx"))
    spread = [
        (f"{name}, {ratio:.0f} per datum", deviations, [precision_variance(s, ratio)[i] for s in deviations], style)
        for i, (name, style) in enumerate([("precision", "-"), ("log Z", "--")]) for ratio in ratios
    ]  # fmt: skip
    draw(folder / "blind_noise.svg", [
        ("noise N(D, 1)", "D", "n × variance of log Z", {"yscale": "log", "ylim": (1e-2, 1e3)}, far),
        ("noise N(0, s²)", "s", "n × variance", {"yscale": "log", "ylim": (0.2, 50)}, spread),
    ])  # fmt: skip
    print("\n| D | n var log Z, 1 per datum | 10 per datum | standard_errors, 1 per datum |\n|---|---|---|---|")
    for distance, found in zip(crosses, measured, strict=True):
        one, ten = constant_variance(distance), constant_variance(distance, 10.0)
        print(f"| {distance} | {one:.3f} | {ten:.3f} | {found:.3f} |")
    print("\n| s | n var precision, 1 per datum | 10 per datum | n var log Z, 1 per datum | 10 per datum |")
    print("|---|---|---|---|---|")
    for deviation in (0.75, 1.0, 1.5, 2.0, 4.0, 6.0):
        one, ten = precision_variance(deviation), precision_variance(deviation, 10.0)
        print(f"| {deviation} | {one[0]:.2f} | {ten[0]:.2f} | {one[1]:.2f} | {ten[1]:.2f} |")


def chains_figure(folder):
    steps, barriers = [1, 3, 10, 30, 100, 300, 1000], [1.0, 2.0, 4.0]
    curves, rows = [], []
    for index, barrier in enumerate(barriers):
        limit = right_share(barrier, fitted_tilt(barrier, None))
        shares = [right_share(barrier, fitted_tilt(barrier, k)) for k in steps]
        curves.append((f"barrier {barrier:.0f}", steps, shares, f"C{index}o-"))
        curves.append((None, [steps[0], steps[-1]], [limit, limit], f"C{index}:"))
        rows.append((barrier, shares, limit))
    title = "CD-k; dotted: maximum likelihood"
    draw(folder / "blind_chains.svg", [(title, "k", "model's share in the right well", {"xscale": "log"}, curves)])
    print(f"\n| barrier | {' | '.join(f'CD-{k}' for k in steps)} | maximum likelihood |\n{'|---' * (len(steps) + 2)}|")
    for barrier, shares, limit in rows:
        print(f"| {barrier:.0f} | {' | '.join(f'{share:.3f}' for share in shares)} | {limit:.3f} |")
    print(f"\nshare of the data in the right well: {data_law()[GRID > 0].sum():.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("docs/figures"))
    options = parser.parse_args()
    weights_figure(options.folder)
    noise_figure(options.folder)
    chains_figure(options.folder)
    head = "estimator | its limit for the precision 1 | off by, standard errors | n var over maximum likelihood's"
    print(f"\n| {head} |\n|---|---|---|---|")
    for name, limit, distance, ratio in relative_variances():
        print(f"| {name} | {limit:.3f} | {distance:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
