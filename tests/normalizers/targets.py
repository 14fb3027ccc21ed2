"""Energies with known log Z, gathered in menageries that share one compiled program, and many estimates at once.

A menagerie is one conditional energy whose condition says which of its members is meant. So the methods are compiled
once for all of them, and every test is also one of batches of conditions. Truths are closed forms or of the reference
energies, none from the package's normalisers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

import ebm_ppl as ebm
from ebm_ppl import energies
from ebm_ppl.energies._coordinate_energy import coordinate_energy
from ebm_ppl.normalizers import _annealed_importance, _bridge, _importance, _sequential_monte_carlo
from ebm_ppl.normalizers import _thermodynamic_integration as _integration
from ebm_ppl.normalizers._inputs import check_base, draws_and_log_weights
from ebm_ppl.normalizers._path import check_mover
from tests import references as reference


class Menagerie(ebm.AbstractEnergy):
    """E(x; k) of its k-th member."""

    members: tuple[Any, ...]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=(), kw_only=True)

    def __call__(self, x, condition=None):
        branches = [lambda x, member=member: member(x) for member in self.members]
        return jax.lax.switch(condition.astype(jnp.int32), branches, x)


@dataclasses.dataclass(frozen=True)
class Target:
    """One energy; `start`: where chains may begin; `without`: the methods that do not apply, and say so themselves.

    (`test_coverage.py` holds them to that: nearly all of their estimates carry a problem.)
    """

    name: str
    energy: Any
    truth: float
    start: Any = 0.5
    without: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Group:
    """Targets of one event shape with one reference."""

    targets: tuple[Target, ...]
    reference: Any
    without: tuple[str, ...] = ()

    @property
    def energy(self) -> Menagerie:
        return Menagerie(tuple(target.energy for target in self.targets), self.targets[0].energy.event_shape)

    def others(self, method: str) -> "Group":
        """The members to which a method does not apply, as if it did."""
        chosen = self.chosen(method)
        targets = [dataclasses.replace(t, without=()) for i, t in enumerate(self.targets) if i not in chosen]
        return Group(tuple(targets), self.reference)

    def chosen(self, method: str) -> list[int]:
        """The members to which a method applies."""
        if method in self.without:
            return []
        return [index for index, target in enumerate(self.targets) if method not in target.without]


def known(name: str, energy: Any, **settings: Any) -> Target:
    return Target(name, energy, float(energy.log_normalizer), **settings)


def walled(name: str, fn: Callable[..., Any], truth: float, shape: tuple[int, ...] = (), **settings: Any) -> Target:
    return Target(name, ebm.FunctionEnergy(fn, shape), float(truth), **settings)


def _half_normal(x: Any) -> Any:
    return jnp.where(x > 0, x**2 / 2, jnp.inf)


def _gamma(x: Any) -> Any:
    safe = jnp.where(x > 0, x, jnp.ones_like(x))
    return jnp.where(x > 0, safe - 2 * jnp.log(safe), jnp.inf)


def _beta(x: Any) -> Any:
    inside = (x > 0) & (x < 1)
    safe = jnp.where(inside, x, jnp.full_like(x, 0.5))
    return jnp.where(inside, -jnp.log(safe) - 2 * jnp.log1p(-safe), jnp.inf)


def _von_mises(x: Any) -> Any:
    return jnp.where(jnp.abs(x) <= float(np.pi), -2 * jnp.cos(x), jnp.inf)


def _quartic(x: Any) -> Any:
    return x**4


def _wedge(x: Any) -> Any:
    """A normal in the plane, cut to 0 < x_1 < x_2: an eighth of it."""
    return jnp.where((x[0] > 0) & (x[1] > x[0]), jnp.sum(x**2) / 2, jnp.inf)


def _grid_of_modes() -> Any:
    axis = np.arange(-2, 3) * np.sqrt(2)
    means = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    return energies.GaussianMixture(np.full(25, 0.04), means, np.tile(0.02 * np.eye(2), (25, 1, 1)))


def _three_modes() -> Any:
    means = [[-3.0, 0.0], [3.0, 3.0], [2.0, -3.0]]
    return energies.GaussianMixture([0.2, 0.3, 0.5], means, np.tile(0.5 * np.eye(2), (3, 1, 1)))


def normal(scale: float, *shape: int) -> Any:
    return energies.Gaussian(jnp.zeros(shape), scale**2 * (jnp.eye(*shape) if shape else jnp.ones(())))


CHAINS = ("bridge",)  # needs chains that travel between the modes
WEIGHTS = ("importance",)  # needs a proposal that is close
GROUPS = {
    "line": Group(
        (
            known("gaussian", energies.Gaussian(1.0, 0.5)),
            known("two_modes", energies.GaussianMixture([0.3, 0.7], [-1.5, 1.5], [0.5, 0.3])),
            walled("quartic", _quartic, np.log(2 * special.gamma(1.25))),
            walled("half_normal", _half_normal, 0.5 * np.log(np.pi / 2)),
            walled("gamma", _gamma, np.log(2.0)),
            walled("beta", _beta, special.betaln(2, 3)),
            walled("von_mises", _von_mises, np.log(2 * np.pi * special.i0(2.0))),
        ),
        normal(2.5),
    ),
    "plane": Group(
        (
            known("correlated", energies.Gaussian(jnp.array([1.0, -0.5]), jnp.asarray(reference.COVARIANCE, float))),
            known("double_well", energies.DoubleWell(2.0, dim=2), without=CHAINS),
            known("three_modes", _three_modes(), without=CHAINS),
            known("grid_of_25", _grid_of_modes(), without=CHAINS),
            known("banana", energies.Banana(0.4, 1.2)),
            known("ring", energies.Ring(1.5, 0.4)),
            known("funnel", energies.Funnel(2, scale=1.0)),
            walled("wedge", _wedge, np.log(2 * np.pi / 8), (2,), start=(0.5, 1.0)),
        ),
        normal(2.5, 2),
    ),
    "heavy_tails": Group(
        (known("student_t", energies.StudentT(5.0, jnp.zeros(2))),), energies.StudentT(3.0, jnp.zeros(2), 1.5)
    ),
    "ten": Group(
        (
            known("scaled", energies.Gaussian(np.linspace(-1, 1, 10), np.diag(np.geomspace(0.5, 2, 10) ** 2))),
            known("double_wells", energies.DoubleWell(2.0, dim=10), without=(*CHAINS, *WEIGHTS)),
        ),
        normal(1.6, 10),
        without=("quadrature",),
    ),
    "hundred": Group(
        (known("gaussian_100", energies.Gaussian(jnp.full(100, 0.3), jnp.eye(100))),),
        normal(1.2, 100),
        without=("quadrature", *WEIGHTS),
    ),
    "wells": Group(
        (known("many_well_32", energies.ManyWell(32)),),
        normal(1.6, 32),
        # By integration round trips are too rare; annealing leaves a few weights to make the whole estimate.
        without=("quadrature", *WEIGHTS, "annealed_importance", *CHAINS, "thermodynamic_integration"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Study:
    """Estimates of one method on the members of a group, `(member, replicate)`."""

    names: list[str]
    truths: np.ndarray
    estimate: ebm.LogNormalizerEstimate
    count: int

    def table(self, numbers: Any) -> np.ndarray:
        return np.asarray(numbers).reshape(len(self.names), self.count)

    @property
    def z(self) -> np.ndarray:
        estimate = self.estimate
        return (self.table(estimate.value) - self.truths[:, None]) / self.table(estimate.standard_error)

    @property
    def flagged(self) -> np.ndarray:
        """Whether an estimate carries a problem."""
        rows = np.zeros(self.count * len(self.names), bool)
        for problem in self.estimate.problems:
            rows[slice(None) if problem.condition is None else problem.condition] = True
        return self.table(rows)

    def covered(self, probability: float = 0.9) -> np.ndarray:
        low, high = (self.table(end) for end in self.estimate.interval(probability))
        return (low <= self.truths[:, None]) & (self.truths[:, None] <= high)


def study(method: str, group: Group, key: Any, count: int, **settings: Any) -> Study:
    """`count` independent estimates for every member to which the method applies, in one compiled program."""
    chosen = group.chosen(method)
    conditions = jnp.repeat(jnp.asarray(chosen, float), count)
    estimate = ROWS[method](group, key, conditions, **settings)
    targets = [group.targets[index] for index in chosen]
    return Study([t.name for t in targets], np.array([t.truth for t in targets]), estimate, count)


def _importance_rows(group: Group, key: Any, conditions: Any, *, num_samples: int = 2000) -> Any:
    energy = coordinate_energy(group.energy)
    base = check_base("proposal", group.reference, energy)
    keys = jax.random.split(key, len(conditions))
    _, log_weights = draws_and_log_weights(energy, base, keys, conditions, num_samples=num_samples)
    return _importance.estimate_from_weights(np.asarray(log_weights))


def _annealed_rows(
    group: Group,
    key: Any,
    conditions: Any,
    *,
    num_temperatures: int = 64,
    num_samples: int = 512,
    num_steps: int = 1,
) -> Any:
    energy = coordinate_energy(group.energy)
    runs = _annealed_importance.annealed_runs(
        energy,
        check_base("reference", group.reference, energy),
        check_mover(None, num_steps),
        jax.random.split(key, len(conditions)),
        conditions,
        None,
        num_temperatures=num_temperatures,
        num_samples=num_samples,
        num_pilot=128,
        reverse=False,
        exact=None,
    )
    return _annealed_importance.estimate_from_annealing(runs, independent=True)


def _smc_rows(
    group: Group,
    key: Any,
    conditions: Any,
    *,
    num_particles: int = 256,
    num_runs: int = 10,
    num_steps: int = 3,
    target_effective_fraction: float = 0.5,
) -> Any:
    energy = coordinate_energy(group.energy)
    runs = _sequential_monte_carlo.smc_runs(
        energy,
        check_base("reference", group.reference, energy),
        check_mover(None, num_steps),
        jax.random.split(key, len(conditions)),
        conditions,
        jnp.asarray(target_effective_fraction),
        num_particles=num_particles,
        num_runs=num_runs,
    )
    return _sequential_monte_carlo.estimate_from_runs(runs)


def _bridge_rows(
    group: Group,
    key: Any,
    conditions: Any,
    *,
    num_chains: int = 4,
    num_samples: int = 1000,
    num_warmup: int = 300,
    dispersion: float = 0.0,
) -> Any:
    energy, rows = group.energy, len(conditions)
    draw_key, bridge_key = jax.random.split(key)
    starts = [jnp.broadcast_to(jnp.asarray(target.start), energy.event_shape) for target in group.targets]
    starts = jnp.repeat(jnp.stack(starts)[conditions.astype(int)], num_chains, axis=0)
    starts = starts + dispersion * jax.random.normal(jax.random.fold_in(key, 0), starts.shape)
    draws = ebm.sample(
        energy,
        key=draw_key,
        num_chains=rows * num_chains,
        num_warmup=num_warmup,
        num_samples=num_samples,
        initial_positions=starts,
        condition=jnp.repeat(conditions, num_chains),
        progress_bar=False,
    )
    positions = jnp.asarray(draws.positions).reshape(rows, num_chains, num_samples, *energy.event_shape)
    keys = jax.random.split(bridge_key, rows)
    terms = _bridge.bridge_terms(energy, None, keys, conditions, positions, num_proposals=None)
    return _bridge.estimate_from_bridge(*(np.asarray(term) for term in terms))


def _integration_rows(
    group: Group,
    key: Any,
    conditions: Any,
    *,
    num_chains: int = 2,
    num_samples: int = 600,
    num_warmup: int = 310,
    inverse_temperatures: int = 16,
    num_steps: int = 2,
) -> Any:
    parts = []
    for index, condition in enumerate(np.unique(conditions)):
        count = int((np.asarray(conditions) == condition).sum())
        draws = ebm.parallel_tempering(
            group.energy,
            key=jax.random.fold_in(key, index),
            reference=group.reference,
            inverse_temperatures=inverse_temperatures,
            num_chains=count * num_chains,
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_steps=num_steps,
            condition=jnp.asarray(condition, float),
            progress_bar=False,
        )
        tempering = draws.tempering
        groups = tempering.potentials.reshape(count, num_chains, *tempering.potentials.shape[1:])
        ladders = [dataclasses.replace(tempering, potentials=potentials) for potentials in groups]
        parts += [_integration.estimate_from_tempering(ladder) for ladder in ladders]
    return _integration.stacked(parts)


def _quadrature_rows(group: Group, key: Any, conditions: Any) -> Any:
    estimates = [ebm.normalizers.quadrature(group.energy, key=key, condition=condition) for condition in conditions]
    return _integration.stacked(estimates)


ROWS: dict[str, Callable[..., Any]] = {
    "quadrature": _quadrature_rows,
    "importance": _importance_rows,
    "annealed_importance": _annealed_rows,
    "sequential_monte_carlo": _smc_rows,
    "bridge": _bridge_rows,
    "thermodynamic_integration": _integration_rows,
}


def names_of(groups: Sequence[str], method: str) -> list[str]:
    return [GROUPS[name].targets[index].name for name in groups for index in GROUPS[name].chosen(method)]
