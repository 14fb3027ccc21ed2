"""`parallel_tempering`: non-reversible swaps along a tuned ladder, for energies with isolated modes."""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ebm_ppl._checks import check_condition, check_count, check_key, what_came
from ebm_ppl._progress import Interruption, Progress, deferred_interrupt
from ebm_ppl.energies import AbstractEnergy, AbstractReferenceEnergy, DiagonalGaussian
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy, coordinate_energy
from ebm_ppl.energies._coordinates import Coordinates
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.energies._support import describe_support
from ebm_ppl.errors import ChainFailedError, EnergyShapeError, Problem, warn_problems
from ebm_ppl.kernels import MALA, AbstractKernel
from ebm_ppl.kernels._base import check_invariant, with_step_size
from ebm_ppl.sampling._draws import Draws
from ebm_ppl.sampling._pace import Pace
from ebm_ppl.sampling._problems import find_problems
from ebm_ppl.sampling._run_chains import chain_keys
from ebm_ppl.sampling._tempering_core import Ensemble, Path, finish_tuning, iterate, start_ensemble
from ebm_ppl.sampling._tempering_report import Tempering

TUNING_ROUNDS = 5  # of doubling length: the last one, half of warm-up, settles the step sizes
START_TRIES = 64  # draws of the reference to find one within the walls
DEFAULT_SCALE = 3.0  # of the default reference, in every coordinate
START = 2**31  # folded into an ensemble's key beside the iteration numbers, which stay below it


def parallel_tempering(
    energy: AbstractEnergy | Any,
    kernel: AbstractKernel | Any = None,
    *,
    key: Array | Any,
    reference: AbstractReferenceEnergy | Any = None,
    inverse_temperatures: Any = 16,
    num_chains: int | Any = 4,
    num_warmup: int | Any = 1000,
    num_samples: int | Any = 1000,
    num_steps: int | Any = 5,
    condition: Any = None,
    progress_bar: bool = True,
    strict: bool = False,
) -> Draws:
    r"""Draw from an energy with isolated modes, by replicas that travel between it and an easy reference.

    Level k of the ladder targets \(E_\beta = (1 - \beta) E_0 + \beta E\) at \(\beta = \beta_k\). An iteration makes
    `num_steps` transitions at every level (an exact fresh draw at the reference) and then attempts swaps between
    neighbours, the even pairs and the odd pairs in turn: this order carries replicas through the ladder
    without the back and forth of random swaps. A swap of levels i, i+1 is accepted with probability
    \(\min(1, \exp((\beta_{i+1} - \beta_i)(V_{i+1} - V_i)))\), \(V = E - E_0\). On a support all of this happens in its
    real coordinates, the Jacobian counted into E; the draws, and log Z, are those of the events.

    Warm-up tunes the step size of every level to the kernel's target acceptance and respaces the ladder until all
    neighbours reject equally often; the draws come after, with everything fixed.

    Args:
        energy: the target; nats.
        kernel: how each level is explored; `MALA()` by default.
        key: one JAX key.
        reference: \(E_0\), with exact draws and log Z, in the real coordinates of the energy's support (the event
            itself where it has none); by default N(0, 3^2) in every coordinate. It should cover the modes: too narrow a
            reference makes the swaps near it rare.
        inverse_temperatures: the number of levels, or the ladder to start from: increasing, first 0, last 1.
        num_chains: independent ladders; each gives one chain of draws.
        num_warmup: iterations of tuning, 0 to keep ladder and step sizes as given.
        num_samples: iterations that are kept; one draw each.
        num_steps: transitions between two swap attempts, at least 1.
        condition: one condition for a conditional energy.
        progress_bar: a bar in a terminal or notebook, one line per 10 s elsewhere.
        strict: raise `ChainFailedError` (carrying the draws) instead of warning when there is a problem.

    Returns:
        `Draws` of the target whose `.tempering` holds the ladder, swap rejection rates, round trips and log Z. Where no
        replica made a round trip the draws carry the problem `NO_ROUND_TRIPS`.

    Raises:
        KeyArgumentError: `key` is not one JAX key.
        EnergyShapeError: the reference or condition has another event shape.
        ValueError: a count or the ladder is out of range, or the kernel has no Metropolis correction.
        ChainFailedError: `strict=True` and there is a problem.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.GaussianMixture(jnp.array([.5, .5]), jnp.array([[-4.], [4.]]), jnp.ones((2, 1, 1)))
        >>> draws = ebm.parallel_tempering(energy, key=jax.random.key(0), inverse_temperatures=6, progress_bar=False)
        >>> bool(abs((draws.positions > 0).mean() - 0.5) < 0.1)          # both modes, in the right proportions
        True
        >>> value, error = draws.tempering.log_normalizer               # the mixture is normalised: log Z = 0
        >>> bool(abs(value) < 4 * error)
        True

    References:
        Syed, Bouchard-Cote, Deligiannidis, Doucet (2022). Non-reversible parallel tempering: a scalable highly
        parallel MCMC scheme. Journal of the Royal Statistical Society B 84(2), 321-350. doi:10.1111/rssb.12464
        Geyer (1991). Markov chain Monte Carlo maximum likelihood. Computing Science and Statistics 23, 156-163.
    """
    started = time.perf_counter()
    kernel = MALA() if kernel is None else kernel
    check_energy_type("energy", energy)
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"`kernel` must be an ebm.AbstractKernel such as ebm.MALA(); got {what_came(kernel)}.")
    check_invariant("kernel", kernel)
    inner = coordinate_energy(energy)
    reference = check_reference(inner, reference)
    counts = {
        "num_chains": check_count("num_chains", num_chains),
        "num_warmup": check_count("num_warmup", num_warmup, 0),
        "num_samples": check_count("num_samples", num_samples),
        "num_steps": check_count("num_steps", num_steps),
    }
    key = check_key(key)
    condition = check_condition(condition, energy.condition_shape)
    ladder = check_ladder(inverse_temperatures)
    path = Path(inner, reference, condition, jnp.ones(()))
    run = _TemperedRun(kernel, path, ladder, key, **counts)
    draws = run.go(progress_bar=progress_bar, started=started)
    if draws.problems and strict:
        raise ChainFailedError("; ".join(map(str, draws.problems)), draws)
    warn_problems(draws.problems, num_chains)
    return draws


def check_reference(energy: CoordinateEnergy, reference: Any) -> AbstractReferenceEnergy:
    """A reference energy of the coordinates; N(0, 3^2) in each where None."""
    if reference is None:
        return DiagonalGaussian(jnp.zeros(energy.event_shape), DEFAULT_SCALE)
    if not isinstance(reference, AbstractReferenceEnergy):
        raise TypeError(
            f"`reference` must be an ebm.AbstractReferenceEnergy with exact draws; got {what_came(reference)}."
        )
    if reference.event_shape != energy.event_shape:
        where = "" if energy.coordinates.is_identity else ", in the real coordinates of its support"
        raise EnergyShapeError(
            f"`reference` must have the event_shape of the energy{where}, {energy.event_shape}; "
            f"got {reference.event_shape}."
        )
    return reference


def check_ladder(inverse_temperatures: Any) -> np.ndarray:
    """The ladder, from a number of levels or from itself."""
    if np.ndim(inverse_temperatures) == 0:
        levels = check_count("inverse_temperatures", inverse_temperatures, 2)
        return np.linspace(0, 1, levels) ** 2  # denser near the reference, where the law changes fastest
    ladder = np.asarray(inverse_temperatures, float)
    if ladder.ndim != 1 or len(ladder) < 2 or ladder[0] != 0 or ladder[-1] != 1 or not np.all(np.diff(ladder) > 0):
        raise ValueError(
            "`inverse_temperatures` must be a number of levels >= 2 or increase from 0 to 1; "
            f"got {inverse_temperatures!r}."
        )
    return ladder


def _inside(path: Path, position: Array, key: Array) -> Array:
    """The position, or where it lies beyond a wall of the target the first of `START_TRIES` fresh draws that does not.

    Replicas beyond a wall come in one by one through the reference only, and spoil the tuning of every level meanwhile.
    """
    fresh = path.reference.sample(jax.random.fold_in(key, START), (START_TRIES,)).astype(position.dtype)
    tries = jnp.concatenate([position[None], fresh])
    return tries[jnp.argmax(jax.vmap(path.potential)(tries) != jnp.inf)]


@eqx.filter_jit
def start_ladders(
    kernel: AbstractKernel, path: Path, betas: Float[Array, " level"], keys: Array, *, tune: bool
) -> Ensemble:
    """Every replica at an exact draw of the reference, within the walls of the target where one of many draws is."""

    def one(key: Array) -> Ensemble:
        key = jax.random.fold_in(key, START)
        positions = path.reference.sample(key, (len(betas),))
        positions = jax.vmap(lambda x, key: _inside(path, x, key))(positions, jax.random.split(key, len(betas)))
        return start_ensemble(kernel, path, betas, positions.astype(betas.dtype), key, tune=tune)

    return jax.vmap(one)(keys)


@eqx.filter_jit
def run_iterations(
    kernel: AbstractKernel,
    path: Path,
    betas: Float[Array, " level"],
    ensembles: Ensemble,
    keys: Array,
    first: Int[Array, ""],
    count: Int[Array, ""],
    *,
    capacity: int,
    num_steps: int,
) -> tuple[Ensemble, dict[str, Array]]:
    """`count <= capacity` iterations of every ensemble; records are `(iteration, chain, ...)`."""

    def one_iteration(i: Array, ensembles: Ensemble) -> tuple[Ensemble, dict[str, Array]]:
        step = first + i

        def one(ensemble: Ensemble, key: Array) -> tuple[Ensemble, dict[str, Array]]:
            return iterate(kernel, path, betas, ensemble, jax.random.fold_in(key, step), step % 2, num_steps)

        return jax.vmap(one)(ensembles, keys)

    shapes = eqx.filter_eval_shape(one_iteration, jnp.zeros((), jnp.int32), ensembles)[1]
    records = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)

    def body(i: Array, carry: tuple) -> tuple:
        ensembles, records = carry
        ensembles, new = one_iteration(i, ensembles)
        write = jax.lax.dynamic_update_index_in_dim
        return ensembles, jax.tree.map(lambda rows, row: write(rows, row, i, 0), records, new)

    return jax.lax.fori_loop(0, count, body, (ensembles, records))


@eqx.filter_jit
def finish_ladders(kernel: AbstractKernel, ensembles: Ensemble) -> Ensemble:
    """Fix the step sizes of all ensembles."""
    return jax.vmap(lambda ensemble: finish_tuning(kernel, ensemble))(ensembles)


def respaced(ladder: np.ndarray, rejection_rates: np.ndarray) -> np.ndarray:
    """The ladder along which the cumulative rejection, interpolated, rises by equal amounts.

    Example:
        >>> import numpy as np
        >>> respaced(np.array([0.0, 0.5, 1.0]), np.array([0.6, 0.2])).round(3).tolist()
        [0.0, 0.333, 1.0]
    """
    barrier = np.concatenate([[0.0], np.cumsum(np.maximum(rejection_rates, 1e-3))])
    return np.interp(np.linspace(0, barrier[-1], len(ladder)), barrier, ladder)


@dataclasses.dataclass
class _TemperedRun:
    """The host side of one call."""

    kernel: AbstractKernel
    path: Path
    ladder: np.ndarray
    key: Array
    num_chains: int
    num_warmup: int
    num_samples: int
    num_steps: int

    def go(self, *, progress_bar: bool, started: float) -> Draws:
        """Tune, draw, judge."""
        keys = chain_keys(self.key, self.num_chains)
        tune = self.num_warmup > 0 and self.kernel.target_acceptance_rate is not None
        self._set_dtype(keys)
        total = self.num_warmup + self.num_samples
        progress = Progress(total, "tempering: tuning", unit="iteration", enabled=progress_bar)
        with deferred_interrupt() as interruption:
            ensembles = start_ladders(self.kernel, self.path, self._betas(), keys, tune=tune)
            done = 0
            for length in self._rounds():
                ensembles, records = self._run(ensembles, keys, done, length, progress, interruption)
                done += length
                if interruption.requested:
                    break
                # The last round only settles the step sizes: the ladder is fixed before it.
                if done <= self.num_warmup - length or len(self._rounds()) == 1:
                    self.ladder = respaced(self.ladder, _rejection(records))
            if tune:
                ensembles = finish_ladders(self.kernel, ensembles)
            progress.relabel("tempering: sampling")
            trips = np.asarray(ensembles.round_trips)
            ensembles, records = self._run(ensembles, keys, done, self.num_samples, progress, interruption)
        progress.close()
        trips = np.asarray(ensembles.round_trips) - trips
        return self._judge(ensembles, records, trips, time.perf_counter() - started)

    def _set_dtype(self, keys: Array) -> None:
        dtype = eqx.filter_eval_shape(self.path.reference.sample, keys[0]).dtype
        self.kernel = with_step_size(self.kernel, jnp.asarray(self.kernel.step_size, dtype))
        self.path = eqx.tree_at(lambda p: p.inverse_temperature, self.path, jnp.ones((), dtype))

    def _betas(self) -> Array:
        return jnp.asarray(self.ladder, self.path.inverse_temperature.dtype)

    def _rounds(self) -> list[int]:
        """Lengths of the tuning rounds: doubling, adding up to `num_warmup`."""
        if self.num_warmup < 2**TUNING_ROUNDS:
            return [self.num_warmup] if self.num_warmup else []
        unit = self.num_warmup // (2**TUNING_ROUNDS - 1)
        lengths = [unit * 2**r for r in range(TUNING_ROUNDS - 1)]
        return [*lengths, self.num_warmup - sum(lengths)]

    def _run(
        self, ensembles: Ensemble, keys: Array, first: int, count: int, progress: Progress, interruption: Interruption
    ) -> tuple[Ensemble, dict[str, np.ndarray]]:
        """`count` iterations in chunks; records on the host as `(iteration, chain, ...)`."""
        betas, pieces, done, pace = self._betas(), [], 0, Pace()
        capacity = 2 ** (max(1, min(self.num_samples, 1024)) - 1).bit_length()
        while done < count and not interruption.requested:
            chunk = min(count - done, pace.count, capacity)
            with pace.timed(chunk):
                ensembles, records = run_iterations(
                    self.kernel,
                    self.path,
                    betas,
                    ensembles,
                    keys,
                    jnp.asarray(first + done, jnp.int32),
                    jnp.asarray(chunk, jnp.int32),
                    capacity=capacity,
                    num_steps=self.num_steps,
                )
                pieces.append(jax.tree.map(lambda rows, n=chunk: np.array(np.asarray(rows)[:n]), records))
            done += chunk
            rejection = _rejection(pieces[-1])
            trips = int(np.asarray(ensembles.round_trips).sum())
            progress.update(chunk, rejection=f"{rejection.mean():.2f}", round_trips=str(trips))
        if not pieces:
            raise KeyboardInterrupt("interrupted before the first draw")
        return ensembles, jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)

    def _judge(self, ensembles: Ensemble, records: dict[str, np.ndarray], trips: np.ndarray, seconds: float) -> Draws:
        records = {name: np.swapaxes(rows, 0, 1) for name, rows in records.items()}
        positions, potentials = records.pop("position"), records.pop("potentials")
        rates = records.pop("swap_acceptance")
        tempering = Tempering(
            self.ladder,
            1 - np.nanmean(rates.reshape(-1, rates.shape[-1]), axis=0),
            trips,
            positions.shape[1],
            potentials,
            float(self.path.reference.log_normalizer),
        )
        problems = find_problems(positions, records, self.kernel, num_warmup=self.num_warmup, thinning=1)
        problems = [problem for problem in problems if problem.code != "POSSIBLY_IMPROPER"]
        for chain in np.flatnonzero(trips == 0):
            advice = "no replica travelled from the reference to the target and back: add levels, widen the reference, "
            problems.append(Problem("NO_ROUND_TRIPS", advice + "or run longer.", int(chain), 0))
        if positions.shape[1] < self.num_samples:
            advice = f"stopped by the user after {positions.shape[1]} of {self.num_samples} draws."
            problems.append(Problem("INTERRUPTED", advice, None, positions.shape[1]))
        step_size = np.asarray(ensembles.chains.step_size)
        settings = {
            "num_chains": self.num_chains,
            "num_warmup": self.num_warmup,
            "num_samples": self.num_samples,
            "num_steps": self.num_steps,
            "kernel": type(self.kernel).__name__,
            "adjusted": self.kernel.adjusted,
            "energy": self.path.energy.name.split("(", maxsplit=1)[0],
            "support": describe_support(self.path.energy.coordinates.support),
            "reference": type(self.path.reference).__name__,
            "inverse_temperatures": [float(beta) for beta in self.ladder],
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "seconds": round(seconds, 3),
        }
        kernel = with_step_size(self.kernel, float(step_size[:, -1].mean()))
        scale = np.ones((self.num_chains, *positions.shape[2:]), positions.dtype)
        coordinates = self.path.energy.coordinates
        if not coordinates.is_identity:
            events, log_jacobians = events_of(coordinates, jnp.asarray(positions))
            positions = jax.tree.map(np.asarray, events)
            records = records | {"lp": records["lp"] - np.asarray(log_jacobians, records["lp"].dtype)}
        return Draws(positions, records, kernel, tuple(problems), settings, scale, tempering)


@eqx.filter_jit
def events_of(coordinates: Coordinates, rows: Array) -> tuple[Any, Array]:
    """Events and log-Jacobians at coordinates `(chain, draw, ...)`."""
    return jax.vmap(jax.vmap(coordinates.to_event_and_log_jacobian))(rows)


def _rejection(records: dict[str, np.ndarray]) -> np.ndarray:
    rates = records["swap_acceptance"]
    rates = rates.reshape(-1, rates.shape[-1])
    attempted = np.isfinite(rates)
    return 1 - np.where(attempted, rates, 0).sum(0) / np.maximum(attempted.sum(0), 1)
