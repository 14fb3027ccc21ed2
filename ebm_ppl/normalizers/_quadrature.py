"""Adaptive quadrature of log Z in one to three dimensions."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.integrate import cubature

from ebm_ppl._checks import check_count, check_key, check_positive
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._event import evaluate
from ebm_ppl.errors import EnergyShapeError, Problem
from ebm_ppl.normalizers._estimate import LogNormalizerEstimate, finish
from ebm_ppl.normalizers._inputs import Rows, check_rows
from ebm_ppl.normalizers._weights import nonfinite_problems, rounding_error

RULES = {1: "gk21", 2: "gk15", 3: "gk15"}
TOLERANCES = {1: 1e-8, 2: 1e-6, 3: 1e-4}
SUBDIVISIONS = {1: 1000, 2: 300, 3: 30}
LARGE_ERROR = 0.01  # nats: a bound above it is called a problem
PILOT_POINTS = {1: 4001, 2: 301, 3: 51}  # per dimension, of the grid that finds where the mass is
PILOT_ROUNDS, PILOT_SCALE = 3, 5.0
ROUNDING_UNITS = 100  # tolerance, in units of the precision, below which subdividing chases rounding errors
SECOND_SCALE, SECOND_SHIFT = 1.37, 0.29  # of the second set of nodes, in spreads: they share no node with the first


def quadrature(
    energy: AbstractEnergy | Any,
    *,
    key: Array | Any = None,
    bounds: Any = None,
    relative_tolerance: float | Any = None,
    max_subdivisions: int | Any = None,
    condition: Any = None,
    strict: bool = False,
) -> LogNormalizerEstimate:
    r"""Adaptive quadrature in 1 to 3 dimensions, twice with different nodes.

    The space is mapped to a cube, x = m + s u / (1 - u^2) in every unbounded coordinate, with location m and scale s of
    the bulk found on a grid; the cube is subdivided where the error is (products of Gauss-Kronrod rules, by
    `scipy.integrate.cubature`). The second run uses another m and s. `standard_error` is what the rules bound the
    error by, plus the difference between the runs, plus rounding: no random error, and usually far too large.

    Args:
        energy: E, nats.
        key: moves the second set of nodes; None: moved by a fixed amount. Nothing else is random.
        bounds: (lower, upper), each a number or an array of `event_shape`, infinite by default; only for an energy
            without support, whose own bounds are known. Walls need not be
            given, but giving them makes it exact and fast.
        relative_tolerance: of Z, by default 1e-8, 1e-6, 1e-4 in 1, 2, 3 dimensions; in float32 not below 1.2e-5, where
            rounding begins.
        max_subdivisions: after which the rest is called error; by default 1000, 300, 30 in 1, 2, 3 dimensions.
        condition: for conditional energies: one condition, or several along a leading axis.
        strict: raise `LogNormalizerError` (carrying the estimate) instead of warning when there is a problem.

    Returns:
        `LogNormalizerEstimate`, one entry per condition where several were given.

    Raises:
        NotImplementedError: the energy has more than 3 real coordinates.
        EnergyShapeError: bounds or condition do not fit the energy.
        ValueError: a number is out of range, or the bounds are empty.
        LogNormalizerError: `strict=True` and there is a problem.

    Example:
        >>> import ebm_ppl as ebm
        >>> energy = ebm.energies.DoubleWell(2.0, dim=1)
        >>> estimate = ebm.normalizers.quadrature(energy)
        >>> print(f"{estimate.value:.4f} {estimate.ok}")
        0.3442 True

    References:
        Berntsen, Espelid, Genz (1991). An adaptive algorithm for the approximate calculation of multiple integrals.
        ACM Transactions on Mathematical Software 17(4), 437-451. doi:10.1145/210232.210233
    """
    rows = check_rows(energy, jax.random.key(0) if key is None else key, condition)
    size = rows.energy.target.dimension
    if size > 3:
        raise NotImplementedError(
            f"quadrature works in at most 3 dimensions; this energy has {size} real coordinates: use "
            "ebm.normalizers.sequential_monte_carlo or ebm.normalizers.annealed_importance."
        )
    relative_tolerance = TOLERANCES[size] if relative_tolerance is None else relative_tolerance
    check_positive("relative_tolerance", relative_tolerance)
    subdivisions = SUBDIVISIONS[size] if max_subdivisions is None else check_count("max_subdivisions", max_subdivisions)
    if bounds is not None and not rows.energy.coordinates.is_identity:
        raise ValueError("`bounds` must be None for an energy with a support or named parts; its coordinates are real.")
    lower, upper = _check_bounds(bounds, rows.energy.event_shape)
    integrand = _Integrand(rows.energy, rows, lower, upper)
    integrand.find_bulk()
    tolerance = max(float(relative_tolerance), ROUNDING_UNITS * float(np.finfo(integrand.dtype).eps))
    first, first_error = integrand.integrate(tolerance, subdivisions)
    shift = np.full(size, SECOND_SHIFT)
    if key is not None:
        shift = np.asarray(jax.random.uniform(check_key(key), (size,), minval=-0.5, maxval=0.5), np.float64)
    integrand.centre = integrand.centre + shift * integrand.spread
    integrand.spread = integrand.spread * SECOND_SCALE
    second, second_error = integrand.integrate(tolerance, subdivisions)
    error = np.maximum(first_error, second_error) + np.abs(first - second)
    return finish(_estimate(first, error, integrand), batched=rows.batched, strict=strict)


def _check_bounds(bounds: Any, event_shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = (-np.inf, np.inf) if bounds is None else bounds
    try:
        ends = [np.broadcast_to(np.asarray(end, np.float64), event_shape).reshape(-1) for end in (lower, upper)]
    except ValueError:
        raise EnergyShapeError(
            f"`bounds` must be two numbers or arrays of event_shape {event_shape}; got shapes {np.shape(lower)} and "
            f"{np.shape(upper)}."
        ) from None
    if not (ends[0] < ends[1]).all():
        raise ValueError(f"`bounds` must have lower < upper; got {bounds!r}.")
    return ends[0], ends[1]


@eqx.filter_jit
def _log_densities(energy: AbstractEnergy, x: Array, conditions: Array | None, rows: Array) -> Array:
    """-E at `(point, *event)` for every condition: `(point, row)`."""

    def at(x: Array, condition: Array | None) -> Array:
        return -evaluate(energy, x, condition)

    if conditions is None:
        return jax.vmap(lambda x: jnp.broadcast_to(at(x, None), rows.shape))(x)
    return jax.vmap(lambda x: jax.vmap(lambda condition: at(x, condition))(conditions))(x)


class _Integrand:
    """exp(-E) on the cube (-1, 1)^d, in units of its largest value on the pilot's grid; host code."""

    def __init__(self, energy: AbstractEnergy, rows: Rows, lower: np.ndarray, upper: np.ndarray) -> None:
        self.energy, self.rows, self.lower, self.upper = energy, rows, lower, upper
        self.centre, self.spread = np.zeros(len(lower)), np.full(len(lower), PILOT_SCALE)
        self.dtype = np.dtype(jnp.result_type(float))
        self.log_scale = np.zeros(len(rows))

    def find_bulk(self) -> None:
        """Location and scale of the mass over all conditions, in a few rounds on ever better grids."""
        size = len(self.lower)
        points = PILOT_POINTS[size]
        axis = np.linspace(-1, 1, points + 2)[1:-1]
        grid = np.stack(np.meshgrid(*[axis] * size, indexing="ij"), axis=-1).reshape(-1, size)
        self.log_scale = np.full(len(self.rows), -np.inf)
        for _ in range(PILOT_ROUNDS):
            x, log_jacobian = self.to_event(grid)
            density = self.log_density(x)
            finite = np.where(np.isfinite(density), density, -np.inf)
            self.log_scale = np.maximum(self.log_scale, finite.max(axis=0))
            if not np.isfinite(self.log_scale).all():
                break
            mass = np.exp(finite + log_jacobian[:, None] - (finite + log_jacobian[:, None]).max(axis=0))
            weights = (mass / mass.sum(axis=0)).mean(axis=1)
            centre = weights @ x
            spread = np.sqrt(weights @ (x - centre) ** 2)
            # Mass on one grid point has no spread yet: that of its cell.
            self.centre, self.spread = centre, np.maximum(2 * spread, 4 * self.spread / points)
        self.log_scale = np.where(np.isfinite(self.log_scale), self.log_scale, 0.0)

    def to_event(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of the cube as points of the space, and the log-Jacobian."""
        with np.errstate(divide="ignore", over="ignore"):
            low, high = np.isfinite(self.lower), np.isfinite(self.upper)
            open_x = self.centre + self.spread * u / (1 - u**2)
            open_log = np.log(self.spread) + np.log1p(u**2) - 2 * np.log1p(-(u**2))
            # A half line starts at its end; its scale reaches to the bulk.
            start, end = np.where(low, self.lower, 0), np.where(high, self.upper, 0)
            reach = np.where(low, self.centre - start, end - self.centre)
            half = np.where(reach > 0, reach, 0) + self.spread / 2
            ray_x = np.where(
                low,
                start + half * (1 + u) / (1 - u),
                end - half * (1 - u) / (1 + u),
            )
            ray_log = np.log(2 * half) - 2 * np.where(low, np.log1p(-u), np.log1p(u))
            width = np.where(low & high, self.upper - self.lower, 1.0)
            box_x = start + width * (1 + u) / 2
            x = np.where(low & high, box_x, np.where(low | high, ray_x, open_x))
            log_jacobian = np.where(low & high, np.log(width / 2), np.where(low | high, ray_log, open_log))
        return x, log_jacobian.sum(axis=-1)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """-E, `(point, row)`, in double precision but as exact as the energy computes it."""
        events = jnp.asarray(x.reshape(-1, *self.energy.event_shape), self.dtype)
        rows = jnp.zeros(len(self.rows), self.dtype)
        values = np.asarray(_log_densities(self.energy, events, self.rows.conditions, rows))
        self.dtype = values.dtype if values.dtype in (np.float32, np.float64) else self.dtype
        return values.astype(np.float64)

    def __call__(self, u: np.ndarray) -> np.ndarray:
        x, log_jacobian = self.to_event(u)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.exp(self.log_density(x) - self.log_scale + log_jacobian[:, None])

    def integrate(self, tolerance: float, max_subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
        """Value of log Z per condition, and a bound on its error."""
        size = len(self.lower)
        cube = np.ones(size)
        with np.errstate(divide="ignore", invalid="ignore"):
            result = cubature(
                self, -cube, cube, rule=RULES[size], rtol=tolerance, atol=0, max_subdivisions=max_subdivisions
            )
            return np.log(result.estimate) + self.log_scale, result.error / result.estimate


def _estimate(value: np.ndarray, error: np.ndarray, integrand: _Integrand) -> LogNormalizerEstimate:
    problems = []
    for index in range(len(value)):
        found = nonfinite_problems(float(value[index]), index)
        if not found and not error[index] <= LARGE_ERROR:
            advice = (
                "subdividing ended before the error was small: `standard_error` bounds what is missing. Give `bounds` "
                "where the energy has walls, or raise max_subdivisions."
            )
            found.append(Problem("NOT_CONVERGED", advice, None, float(error[index]), index))
        problems += found
    none = np.full(len(value), np.nan)
    rounding = [rounding_error(integrand.dtype, v) if np.isfinite(v) else np.nan for v in value]
    return LogNormalizerEstimate(value, error + np.array(rounding), none, none, "quadrature", tuple(problems))
