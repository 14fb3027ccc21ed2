"""Objectives: value, and slope at a wrong parameter in every direction, against closed forms and quadrature.

Data are normal with a mean that is not zero, the model is E = a |x|^2 / 2 + b sum(x), so that neither a flipped sign
nor a factor of the dimension goes unnoticed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import Normal
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ebm_ppl import energies, kernels, objectives
from ebm_ppl._verify._games import contrast_slope, contrast_value, game_slope, game_value
from ebm_ppl._verify._oracles import expectation, log_normal, slopes, softplus
from ebm_ppl._verify._row import Row, mean_rows
from ebm_ppl.objectives import AbstractObjective

NUM_BATCHES, NUM_ROWS = 512, 64
MEAN, VARIANCES = np.array([1.0, -0.5, 0.25]), np.array([1.0, 2.0, 0.5])
SQUARE, SUM = float(np.sum(MEAN**2 + VARIANCES)), float(np.sum(MEAN))  # E |x|^2, E sum(x)
SCALES = np.array([1.0, 0.5])
STEP = 0.2  # of the Langevin chains that make negatives


@dataclasses.dataclass(frozen=True)
class Setting:
    """An objective, a model and a law of the data for which its expectation is known.

    Args:
        objective: what is checked.
        model: with wrong parameters, so that the slope is not zero.
        data: the law of the data.
        loss: expectation of the loss as a function of the model's parameters in the order of its leaves.
        slope: expectation of the gradient, where it is not that of the value.
        label: what is special about this setting.
        num_calls: how often the objective is called, each time with the state that the call before left.
    """

    objective: AbstractObjective
    model: Any
    data: Any
    loss: Callable[[np.ndarray], float] | None
    slope: Callable[[np.ndarray], np.ndarray] | None = None
    label: str = ""
    num_calls: int = 1


def check_objective(what: str, settings: list[Setting], key: Array) -> list[Row]:
    """Loss and gradient of every setting, averaged over independent batches."""
    rows = []
    for setting in settings:
        draws = _replicate(setting, key)
        params = eqx.filter(setting.model, eqx.is_inexact_array)
        theta = np.asarray(ravel_pytree(params)[0], float)
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        names = [f"d loss/d {path.removeprefix('.')}" for path in paths]
        expected = [] if setting.loss is None else [setting.loss(theta)]
        slope = setting.slope(theta) if setting.slope is not None else slopes(_known(setting.loss), theta)
        names = [setting.label + name for name in (["loss"] if setting.loss is not None else []) + names]
        columns = draws if setting.loss is not None else draws[:, 1:]
        rows += mean_rows(what, names, [*expected, *slope], columns)
    return rows


def _known(loss: Callable[[np.ndarray], float] | None) -> Callable[[np.ndarray], float]:
    if loss is None:
        raise ValueError("a setting needs a loss or a slope.")
    return loss


def _replicate(setting: Setting, key: Array) -> np.ndarray:
    """`(batch, 1 + parameter)`: loss and gradient. Compiled anew: what is verified is the code as it is now."""
    params, static = eqx.partition(setting.model, eqx.is_inexact_array)
    theta, unravel = ravel_pytree(params)

    def one(key: Array) -> Array:
        data_key, init_key, step_key = jax.random.split(key, 3)
        batch = setting.data.sample(data_key, (NUM_ROWS,))
        state = setting.objective.init(setting.model, batch, key=init_key)
        for call in range(setting.num_calls - 1):
            _, (state, _) = setting.objective(setting.model, state, batch, key=jax.random.fold_in(init_key, call))

        def loss(theta: Array) -> Array:
            return setting.objective(eqx.combine(unravel(theta), static), state, batch, key=step_key)[0]

        value, gradient = jax.value_and_grad(loss)(theta)
        return jnp.concatenate([value[None], gradient])

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=32))(jax.random.split(key, NUM_BATCHES)))


def _quadratic(params: Any, x: Array) -> Array:
    return params["a"] * jnp.sum(x**2) / 2 + params["b"] * jnp.sum(x)


def _scaled_quadratic(params: Any, x: Array, log_scale: Array) -> Array:
    return jnp.exp(log_scale) * params["a"] * jnp.sum(x**2) / 2 + params["b"] * jnp.sum(x)


def _model(
    event_shape: tuple[int, ...], condition_shape: tuple[int, ...] | None = None, a: float = 0.3, b: float = 0.2
) -> energies.FunctionEnergy:
    params = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
    function = _quadratic if condition_shape is None else _scaled_quadratic
    return energies.FunctionEnergy(function, event_shape, params, condition_shape=condition_shape)


def _data() -> energies.Gaussian:
    return energies.Gaussian(jnp.asarray(MEAN, float), jnp.diag(jnp.asarray(VARIANCES, float)))


def _line(mean: float, variance: float) -> energies.Gaussian:
    return energies.Gaussian(jnp.full(1, mean), jnp.full((1, 1), variance))


def _half_square(a: float, b: float, noise: float = 0.0) -> float:
    """E |a (x + noise e) + b|^2 / 2."""
    return (a**2 * (SQUARE + 3 * noise**2) + 2 * a * b * SUM + 3 * b**2) / 2


def _score_matching(theta: np.ndarray) -> float:
    """E |score|^2 / 2 + div score, score = -(a x + b)."""
    return _half_square(theta[0], theta[1]) - 3 * theta[0]


def _denoising(theta: np.ndarray, scale: float = 0.5) -> float:
    """E |a (x + s e) + b - e / s|^2 / 2."""
    return _half_square(theta[0], theta[1], scale) - 3 * theta[0] + 3 / (2 * scale**2)


def _multiscale(theta: np.ndarray) -> float:
    a, b = theta
    return float(np.mean([s**2 * _denoising(np.array([a * s, b]), s) for s in SCALES]))


def _noise_contrast(ratio: int) -> Callable[[np.ndarray], float]:
    """Data N(1, 1), noise N(0, 4), E = a x^2 / 2 + b x + c."""

    def loss(theta: np.ndarray) -> float:
        a, b, c = theta

        def log_odds(x: np.ndarray) -> np.ndarray:
            return -(a * x**2 / 2 + b * x + c) - log_normal(x, 0.0, 2.0) - np.log(ratio)

        of_data = expectation(lambda x: softplus(-log_odds(x)), (1.0, 1.0))
        return of_data + ratio * expectation(lambda x: softplus(log_odds(x)), (0.0, 2.0))

    return loss


def _energy(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    return theta[0] * x**2 / 2 + theta[1] * x


def _ranking(theta: np.ndarray) -> float:
    """Data N(1, 1) among two noise events from N(0, 4)."""

    def log_weight(x: np.ndarray) -> np.ndarray:
        return -_energy(theta, x) - log_normal(x, 0.0, 2.0)

    def rank(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        weights = np.stack([log_weight(x), log_weight(y), log_weight(z)])
        return np.logaddexp.reduce(weights) - weights[0]

    return expectation(rank, (1.0, 1.0), (0.0, 2.0), (0.0, 2.0), points=60)


def _conditional_contrast(theta: np.ndarray) -> float:
    def loss(x: np.ndarray, e: np.ndarray) -> np.ndarray:
        return 2 * softplus(_energy(theta, x) - _energy(theta, x + 0.5 * e))

    return expectation(loss, (1.0, 1.0), (0.0, 1.0))


def _probability_flow(theta: np.ndarray) -> float:
    def loss(x: np.ndarray, e: np.ndarray) -> np.ndarray:
        return np.exp((_energy(theta, x) - _energy(theta, x + 0.5 * e)) / 2)

    return expectation(loss, (1.0, 1.0), (0.0, 1.0))


def _discrepancy(theta: np.ndarray) -> float:
    """Two draws around a centre, weight 1."""

    def loss(x: np.ndarray, *noise: np.ndarray) -> np.ndarray:
        centre, *draws = noise
        there = [np.exp(_energy(theta, x) - _energy(theta, x + 0.7 * (centre + draw))) for draw in draws]
        return np.log((1 + sum(there)) / 2)

    return expectation(loss, (1.0, 1.0), *[(0.0, 1.0)] * 3, points=28)


def _likelihood(theta: np.ndarray) -> float:
    """E E(x) + log Z, data N(1, 1)."""
    a, b = theta
    return a + b + np.log(2 * np.pi / a) / 2 + b**2 / (2 * a)


def _magnitude(theta: np.ndarray) -> float:
    return expectation(lambda x: _energy(theta, x) ** 2, (1.0, 1.0))


def _steepness(theta: np.ndarray) -> float:
    return 2 * _half_square(theta[0], theta[1])


def _sum(theta: np.ndarray) -> float:
    return _score_matching(theta) + 0.25 * _steepness(theta)


def _chains(objective: AbstractObjective, num_steps: int, num_calls: int = 1) -> Setting:
    value, slope = contrast_value(STEP, num_steps), contrast_slope(STEP, num_steps)
    return Setting(objective, _model((1,), a=1.2, b=0.5), _line(1.0, 1.0), value, slope, num_calls=num_calls)


def _game(objective: AbstractObjective) -> Setting:
    players = energies.ShiftedEnergy(_model((1,), a=1.2, b=0.5), 0.7), Normal(jnp.full(1, 0.3), 1.5)
    return Setting(objective, players, _line(1.0, 1.0), game_value, game_slope)


def _on_a_line(objective: AbstractObjective, loss: Callable[[np.ndarray], float]) -> Setting:
    return Setting(objective, _model((1,), a=1.2, b=0.5), _line(1.0, 1.0), loss)


def _matching(objective: AbstractObjective, label: str = "") -> Setting:
    return Setting(objective, _model((3,)), _data(), _score_matching, label=label)


OBJECTIVES: dict[str, Callable[[Any], list[Setting]]] = {
    "ExactScoreMatching": lambda cls: [_matching(cls())],
    "HutchinsonScoreMatching": lambda cls: [_matching(cls()), _matching(cls(2, "gaussian"), "gaussian: ")],
    "SlicedScoreMatching": lambda cls: [_matching(cls()), _matching(cls(variance_reduced=False), "plain: ")],
    "FiniteDifferenceScoreMatching": lambda cls: [_matching(cls(0.3))],
    "DenoisingScoreMatching": lambda cls: [Setting(cls(0.5), _model((3,)), _data(), _denoising)],
    "MultiscaleDenoisingScoreMatching": lambda cls: [
        Setting(cls(jnp.asarray(SCALES, float)), _model((3,), ()), _data(), _multiscale)
    ],
    "NoiseContrastive": lambda cls: [
        Setting(cls(_line(0.0, 4.0), 2), energies.ShiftedEnergy(_model((1,)), 1.0), _line(1.0, 1.0), _noise_contrast(2))
    ],
    "RankingNoiseContrastive": lambda cls: [_on_a_line(cls(_line(0.0, 4.0), 2), _ranking)],
    "ConditionalNoiseContrastive": lambda cls: [_on_a_line(cls(0.5, 2), _conditional_contrast)],
    "MinimumProbabilityFlow": lambda cls: [_on_a_line(cls(0.5, 2), _probability_flow)],
    "EnergyDiscrepancy": lambda cls: [_on_a_line(cls(0.7, 2), _discrepancy)],
    "MaximumLikelihood": lambda cls: [_on_a_line(cls(-12.0, 12.0, 64), _likelihood)],
    "EnergyMagnitudePenalty": lambda cls: [_on_a_line(cls(), _magnitude)],
    "GradientPenalty": lambda cls: [Setting(cls(), _model((3,)), _data(), _steepness)],
    "SumObjective": lambda cls: [
        Setting(
            cls(objectives.ExactScoreMatching(), objectives.GradientPenalty(), weights=[1.0, 0.25]),
            _model((3,)),
            _data(),
            _sum,
        )
    ],
    "ContrastiveDivergence": lambda cls: [_chains(cls(kernels.ULA(STEP), 3), 3)],
    # As many chains as rows: all of them move in every call, and go on from where they were.
    "PersistentContrastiveDivergence": lambda cls: [
        _chains(cls(kernels.ULA(STEP), 2, num_particles=NUM_ROWS), 4, num_calls=2)
    ],
    "FlowContrastive": lambda cls: [_game(cls())],
}
