r"""Do neighbouring states vote alike? An Ising model of an election, fitted without its normalising constant.

Data: x_i = +1 where Biden won in the US presidential election of 2020, -1 where Trump did, in the 48 contiguous states
and the District of Columbia (Federal Election Commission, Federal Elections 2020); i ~ j where two share a land or
river border of more than a point. The autologistic model of Besag (1974) is an energy,

    E(x; alpha, beta) = -(alpha sum_i x_i + beta sum_{i ~ j} x_i x_j),    p(x) = exp(-E) / Z(alpha, beta),

whose Z is a sum over 2^49 maps. Leaving it out is refused, and the example shows why; `ebm.ExchangeKernel` does
without it. This graph is so thin that variable elimination yields Z after all, so the posterior is known exactly, on a
grid, and everything is compared with it: the exchange algorithm, the pseudo-likelihood, and what the refused model
would have said.

`python examples/04_autologistic.py`; `--short` is a smoke test, too short to conclude anything.

References:
    Besag (1974). Spatial interaction and the statistical analysis of lattice systems. Journal of the Royal Statistical
    Society B 36(2), 192-236. doi:10.1111/j.2517-6161.1974.tb00999.x
    Murray, Ghahramani, MacKay (2006). MCMC for doubly-intractable distributions. UAI 22. arXiv:1206.6848
    Reeves, Pettitt (2004). Efficient recursions for general factorisable models. Biometrika 91(3), 751-757.
    doi:10.1093/biomet/91.3.751
"""

import argparse
import itertools
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
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.special import logsumexp

import ebm_ppl as ebm

# Every state once per line: the state, then neighbours that come later in the alphabet.
BORDERS = """
AL FL GA MS TN / AR LA MO MS OK TN TX / AZ CA NM NV UT / CA NV OR / CO KS NE NM OK UT WY / CT MA NY RI / DC MD VA
DE MD NJ PA / FL GA / GA NC SC TN / IA IL MN MO NE SD WI / ID MT NV OR UT WA WY / IL IN KY MO WI / IN KY MI OH
KS MO NE OK / KY MO OH TN VA WV / LA MS TX / MA NH NY RI VT / MD PA VA WV / ME NH / MI OH WI / MN ND SD WI
MO NE OK TN / MS TN / MT ND SD WY / NC SC TN VA / ND SD / NE SD WY / NH VT / NJ NY PA / NM OK TX / NV OR UT
NY PA VT / OH PA WV / OK TX / OR WA / PA WV / SD WY / TN VA / UT WY / VA WV
"""
BIDEN = {*"AZ CA CO CT DC DE GA IL MA MD ME MI MN NH NJ NM NV NY OR PA RI VA VT WA WI".split()}  # noqa: SIM905
TILES = """
..  ..  ..  ..  ..  ..  ..  ..  ..  ..  ME
..  ..  ..  ..  ..  WI  ..  ..  ..  VT  NH
WA  ID  MT  ND  MN  IL  MI  ..  NY  MA  ..
OR  NV  WY  SD  IA  IN  OH  PA  NJ  CT  RI
CA  UT  CO  NE  MO  KY  WV  VA  MD  DE  ..
..  AZ  NM  KS  AR  TN  NC  SC  DC  ..  ..
..  ..  ..  OK  LA  MS  AL  GA  ..  ..  ..
..  ..  ..  TX  ..  ..  ..  ..  FL  ..  ..
"""
PRIOR_SD = 0.5  # of alpha and of beta, both normal about 0


class Settings(NamedTuple):
    """How much work is done."""

    num_warmup: int
    num_samples: int  # per chain, of 4
    num_sweeps: int  # Gibbs sweeps over the map for each proposal
    grid: int  # points per parameter


FULL = Settings(num_warmup=500, num_samples=4000, num_sweeps=100, grid=201)
SHORT = Settings(num_warmup=50, num_samples=100, num_sweeps=10, grid=41)


# --- 1. The data and the model ---------------------------------------------------------------------------------------


def load_graph() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, results `(state,)` of +1 and -1, and edges `(edge, 2)`."""
    lines = [line.split() for line in BORDERS.replace("\n", " / ").split("/") if line.strip()]
    pairs = [(first, other) for first, *others in lines for other in others]
    names = sorted({name for pair in pairs for name in pair})
    edges = np.array([[names.index(a), names.index(b)] for a, b in pairs])
    return names, np.array([1.0 if name in BIDEN else -1.0 for name in names], np.float32), edges


NAMES, RESULT, EDGES = load_graph()


def sums(x: Array) -> tuple[Array, Array]:
    """The two sums of the energy."""
    return jnp.sum(x), jnp.sum(x[EDGES[:, 0]] * x[EDGES[:, 1]])


def autologistic(params: dict[str, Array], x: Array) -> Array:
    """E(x; alpha, beta)."""
    balance, agreement = sums(x)
    return -(params["alpha"] * balance + params["beta"] * agreement)


def election(x: Array, log_normalizer: float | None = None) -> None:
    """The NumPyro model."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, PRIOR_SD))
    beta = numpyro.sample("beta", dist.Normal(0.0, PRIOR_SD))
    energy = ebm.FunctionEnergy(autologistic, x.shape, {"alpha": alpha, "beta": beta})
    numpyro.sample("x", ebm.EnergyDistribution(energy, log_normalizer=log_normalizer), obs=x)


# --- 2. The truth: log Z by variable elimination, the posterior on a grid --------------------------------------------


def eliminate(num_nodes: int, edges: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    r"""Exact log Z of the Ising model on any graph, for parameters `(n,)`.

    Nodes are summed out one after the other, always one with the fewest neighbours left. That leaves a table over its
    neighbours, which from then on are neighbours of each other; its size 2^neighbours is all that this costs.
    """
    tables = [((i,), alpha[:, None] * np.array([-1.0, 1.0])) for i in range(num_nodes)]
    tables += [((i, j), beta[:, None, None] * np.outer([-1.0, 1.0], [-1.0, 1.0])) for i, j in edges.tolist()]
    left = set(range(num_nodes))
    log_z = np.zeros(len(alpha))
    while left:
        around = {i: set().union(*(scope for scope, _ in tables if i in scope)) - {i} for i in left}
        node = min(left, key=lambda i: (len(around[i]), i))
        scope = (*sorted(around[node]), node)
        touched = [table for table in tables if node in table[0]]
        tables = [table for table in tables if node not in table[0]]
        total = np.zeros((len(alpha), *[2] * len(scope)))
        for names, values in touched:
            order = np.argsort([scope.index(name) for name in names])
            sizes = [2 if name in names else 1 for name in scope]
            total += values.transpose(0, *(order + 1)).reshape(-1, *sizes)
        total = np.logaddexp(total[..., 0], total[..., 1])
        if len(scope) > 1:
            tables.append((scope[:-1], total))
        else:
            log_z += total
        left.remove(node)
    return log_z


def enumerate_all(num_nodes: int, edges: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """The same by brute force, for small graphs."""
    x = np.array(list(itertools.product([-1.0, 1.0], repeat=num_nodes)))
    exponents = np.stack([x.sum(1), (x[:, edges[:, 0]] * x[:, edges[:, 1]]).sum(1)])
    return logsumexp(np.stack([alpha, beta], 1) @ exponents, axis=1)


def check_elimination(size: int = 14) -> float:
    """The largest difference between the two on the first `size` states."""
    inside = EDGES[(size > EDGES).all(1)]
    alpha, beta = np.random.default_rng(0).normal(size=(2, 5))
    return np.abs(eliminate(size, inside, alpha, beta) - enumerate_all(size, inside, alpha, beta)).max()


class Posterior(NamedTuple):
    """A density on a grid: weights sum to one."""

    alpha: np.ndarray
    beta: np.ndarray
    weights: np.ndarray

    def moments(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of each parameter."""
        axes = np.meshgrid(self.alpha, self.beta, indexing="ij")
        means = [(self.weights * axis).sum() for axis in axes]
        sds = [np.sqrt((self.weights * (axis - mean) ** 2).sum()) for axis, mean in zip(axes, means, strict=True)]
        return dict(zip(["alpha", "beta"], zip(means, sds, strict=True), strict=True))


def on_grid(size: int) -> tuple[Posterior, Posterior]:
    """The exact posterior, and the one with Besag's pseudo-likelihood prod_i p(x_i | all others) instead."""
    alpha, beta = np.linspace(-1, 1, size), np.linspace(-0.5, 1.0, size)
    a, b = (axis.ravel() for axis in np.meshgrid(alpha, beta, indexing="ij"))
    prior = -(a**2 + b**2) / (2 * PRIOR_SD**2)
    balance, agreement = (float(total) for total in sums(jnp.asarray(RESULT)))
    exact = prior + a * balance + b * agreement - eliminate(len(RESULT), EDGES, a, b)
    around = np.zeros(len(RESULT))
    for i, j in EDGES:
        around[i] += RESULT[j]
        around[j] += RESULT[i]
    pseudo = prior - np.logaddexp(0, -2 * RESULT * (a[:, None] + b[:, None] * around)).sum(1)
    densities = [np.exp(log_p - logsumexp(log_p)).reshape(size, size) for log_p in (exact, pseudo)]
    return Posterior(alpha, beta, densities[0]), Posterior(alpha, beta, densities[1])


# --- 3. Without log Z ------------------------------------------------------------------------------------------------


def run(kernel: ebm.BlackJAXKernel, settings: Settings, key: Array, *args: float) -> numpyro.infer.MCMC:
    """NumPyro's MCMC, after its run."""
    how = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=settings.num_warmup, num_samples=settings.num_samples, **how)
    mcmc.run(key, jnp.asarray(RESULT), *args)
    return mcmc


def refusal(key: Array) -> str:
    """What the library says to the model without log Z."""
    try:
        run(ebm.BlackJAXKernel(election), SHORT, key)
    except ebm.MissingLogNormalizerError as error:
        return str(error)
    sys.exit("A posterior without log Z was not refused.")


def compare(draws: dict[str, np.ndarray], exact: Posterior) -> dict[str, np.ndarray]:
    """For each parameter, (mean, sd) and how many Monte Carlo standard errors (MCSE) each is from the truth."""
    rows = {}
    for name, (mean, sd) in exact.moments().items():
        x = draws[name].astype(float)
        found = np.array([x.mean(), x.std()])
        errors = np.array([float(az.mcse(x, method=method)) for method in ("mean", "sd")])
        rows[name] = np.stack([found, (found - [mean, sd]) / errors])
    return rows


def print_table(rows: dict[str, dict[str, np.ndarray]]) -> None:
    print(f"\n{'':26}{'alpha: mean':>12}{'sd':>8}{'beta: mean':>14}{'sd':>8}   distance from exact, in MCSE")
    for name, row in rows.items():
        (a, *far_a), (b, *far_b) = row["alpha"], row["beta"]
        text = "  ".join(f"{value:+.1f}" for value in np.ravel([*far_a, *far_b]))
        print(f"{name:26}{a[0]:12.3f}{a[1]:8.3f}{b[0]:14.3f}{b[1]:8.3f}   {text}")


# --- 4. Show it ------------------------------------------------------------------------------------------------------


def draw_map(axis: Any) -> None:
    """One tile per state, one line per border; dotted ones join states that differ."""
    rows = enumerate(TILES.strip().split("\n"))
    where = {name: (column, -row) for row, line in rows for column, name in enumerate(line.split()) if name != ".."}
    for i, j in EDGES:
        (x0, y0), (x1, y1) = where[NAMES[i]], where[NAMES[j]]
        agree = RESULT[i] == RESULT[j]
        axis.plot([x0, x1], [y0, y1], color="0.6" if agree else "k", lw=1.2, ls="-" if agree else ":", zorder=1)
    colours = [to_rgb("C0") if name in BIDEN else to_rgb("C1") for name in where]
    axis.scatter(*np.array(list(where.values())).T, s=210, marker="s", c=colours, zorder=2)
    for name, (x, y) in where.items():
        axis.text(x, y, name, ha="center", va="center", fontsize=7, color="w")
    axis.set_axis_off()
    axis.set_title("2020: Biden blue, Trump orange;\ndotted: neighbours that differ", fontsize=9)


def draw_figure(path: pathlib.Path, draws: dict[str, np.ndarray], exact: Posterior, pseudo: Posterior) -> None:
    """The map; the joint posterior; the marginal of beta."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    states, joint, marginal = figure.subplots(1, 3, width_ratios=[1.15, 1, 1])
    draw_map(states)
    joint.plot(draws["alpha"].ravel()[::8], draws["beta"].ravel()[::8], ".", ms=1.5, color="0.6", zorder=0)
    for posterior, colour in ((exact, "k"), (pseudo, "C3")):
        levels = np.sort(posterior.weights.ravel())
        inside = np.cumsum(levels)
        levels = [levels[np.searchsorted(inside, 1 - share)] for share in (0.9, 0.5)]
        joint.contour(posterior.alpha, posterior.beta, posterior.weights.T, levels, colors=colour, linewidths=1)
        width = posterior.beta[1] - posterior.beta[0]
        label = "exact" if colour == "k" else "pseudo-likelihood"
        marginal.plot(posterior.beta, posterior.weights.sum(0) / width, color=colour, lw=1.2, label=label)
    marginal.hist(draws["beta"].ravel(), 60, density=True, color="0.75", label="ExchangeKernel")
    joint.set(
        xlabel="alpha", ylabel="beta", title="50 % and 90 % regions; dots: draws", xlim=(-0.4, 0.6), ylim=(-0.1, 0.6)
    )
    marginal.set(xlabel="beta", yticks=[], title="posterior of beta", xlim=(-0.1, 0.6))
    marginal.legend(fontsize=7)
    for axis in (joint, marginal):
        axis.title.set_fontsize(9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="An autologistic model of an election, by the exchange algorithm.")
    parser.add_argument("--short", action="store_true", help="a smoke test: too short to conclude anything")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings, started = SHORT if arguments.short else FULL, time.perf_counter()
    arguments.output.mkdir(parents=True, exist_ok=True)
    refused_key, naive_key, key = jax.random.split(jax.random.key(arguments.seed), 3)

    agree = int((RESULT[EDGES[:, 0]] == RESULT[EDGES[:, 1]]).sum())
    print(f"{len(NAMES)} states, {len(EDGES)} borders; neighbours agree across {agree} of them.")
    print(f"log Z by elimination and by enumeration differ by at most {check_elimination():.1e} on 14 states.")
    exact, pseudo = on_grid(settings.grid)

    print(f"\nWithout log Z the model is refused:\n  {refusal(refused_key)}")
    naive = run(ebm.BlackJAXKernel(election), settings, naive_key, 0.0).get_samples(group_by_chain=True)

    inner = ebm.kernels.BinaryGibbs()
    kernel = ebm.ExchangeKernel(election, inner_kernel=inner, num_inner_steps=settings.num_sweeps)
    mcmc = run(kernel, settings, key)
    tree = az.from_numpyro(mcmc)
    report = ebm.diagnose(tree)
    print(f"\n{report}")
    ebm.diagnostics.save_datatree(tree, arguments.output / "autologistic.nc", overwrite=True)
    draws = {name: np.asarray(x) for name, x in mcmc.get_samples(group_by_chain=True).items()}

    rows = {"ExchangeKernel": compare(draws, exact)}
    known = {"exact": exact, "pseudo-likelihood": pseudo}
    shown = {name: {k: np.array([m]) for k, m in p.moments().items()} for name, p in known.items()}
    wrong = {k: np.array([[x.mean(), x.std()]]) for k, x in naive.items()}
    print_table(shown | rows | {"log Z declared constant": wrong})
    distance = max(np.abs(row[1]).max() for row in rows["ExchangeKernel"].values())
    chance = exact.weights[:, exact.beta > 0].sum()
    print(f"\nP(beta > 0 | data): {chance:.4f} exactly, {np.mean(draws['beta'] > 0):.4f} by the exchange algorithm.")
    trusted = report.ok and distance <= 4
    print(f"verdict: exchange within 4 MCSE of the exact posterior: {'yes' if distance <= 4 else 'NO'}", end="; ")
    print(f"diagnostics: {'ok' if report.ok else ', '.join(report.codes)}")
    draw_figure(arguments.output / "autologistic.png", draws, exact, pseudo)
    print(f"Figure and draws are in {arguments.output}; {time.perf_counter() - started:.0f} s")
    if arguments.short:
        print("This was the short mode: a smoke test, too short to conclude anything.")
    elif not trusted:
        sys.exit("The exchange algorithm did not reproduce the exact posterior.")


if __name__ == "__main__":
    main()
