"""What a row of the contract table is: see `cases.py`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import ebm_ppl as ebm
from ebm_ppl import energies


@dataclasses.dataclass(frozen=True)
class Case:
    """One module, how to feed it, how to call it, and what must come out.

    Args:
        make: a fresh and equal module at each call.
        draw: `draw(module, key)`: a tuple of inputs, of arrays in JAX's default floating dtype.
        call: `call(module, key, *inputs)`: a dict of arrays.
        reference: `reference(module, key, *inputs)`: the same entries of that dict, or some, computed otherwise.
        value: the entry of `call` whose gradient must be right; None where the call is not differentiable.
        random: whether another key must give another result.
    """

    make: Callable[[], eqx.Module]
    draw: Callable[..., tuple[Any, ...]]
    call: Callable[..., dict[str, Any]]
    reference: Callable[..., dict[str, Any]] | None
    value: str | None
    random: bool

    @functools.cached_property
    def name(self) -> str:
        """The class of the row."""
        return type(self.make()).__name__


def _draw_event(energy: Any, key: Any) -> tuple[Any, ...]:
    energy = energy.energy if isinstance(energy, energies.LogDensity) else energy
    x_key, condition_key = jax.random.split(key)
    x = jax.random.normal(x_key, energy.event_shape)
    if energy.condition_shape is None:
        return (x,)
    return x, jax.random.normal(condition_key, energy.condition_shape)


def _call_energy(energy: Any, key: Any, *inputs: Any) -> dict[str, Any]:
    return {"energy": energy(*inputs)}


def energy_case(make: Callable[[], Any], formula: Callable[..., Any]) -> Case:
    """A row of `ENERGIES`; `formula(energy, x, condition)` in NumPy."""

    def reference(energy: Any, key: Any, *inputs: Any) -> dict[str, Any]:
        arrays = [np.asarray(value, np.float64) for value in inputs]
        return {"energy": formula(energy, *arrays, *([None] if len(arrays) == 1 else []))}

    return Case(make, _draw_event, _call_energy, reference, "energy", random=False)


def target_case(make: Callable[[], Any], formula: Callable[..., Any]) -> Case:
    """The row of a target on all reals; supports and derivatives are in tests/energies."""

    def call(target: Any, key: Any, x: Any) -> dict[str, Any]:
        return {"log density": target(x)}

    def reference(target: Any, key: Any, x: Any) -> dict[str, Any]:
        return {"log density": -formula(make(), np.asarray(x, np.float64), None)}

    def draw(target: Any, key: Any) -> tuple[Any, ...]:
        return (jax.random.normal(key, target.shape),)

    return Case(lambda: ebm.Target(make()), draw, call, reference, None, random=False)


def skewed(x: Any) -> Any:
    """The energy on which kernels move: not symmetric, so that a wrong sign shows."""
    return jnp.sum(x + jnp.exp(-x))


TARGET = ebm.log_density(ebm.FunctionEnergy(skewed, (3,)))
STEP = 0.3


def square_distance(x: Any, y: Any) -> Any:
    """The term of one datum in a sum over data."""
    return jnp.sum((x - y) ** 2) / 2


DATA = np.array([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0], [3.0, 1.0, 1.0], [-2.0, 0.0, 0.5], [0.0, 1.0, -1.0]])


def data_sum() -> Any:
    """A skewed prior, and a parabola for each of five data."""
    term = ebm.FunctionEnergy(square_distance, (3,), condition_shape=(3,))
    return energies.DataSumEnergy(ebm.FunctionEnergy(skewed, (3,)), term, DATA)


DATA_TARGET = ebm.log_density(data_sum())


def kernel_case(
    make: Callable[[], Any], theirs: Callable[..., dict[str, Any]], target: Any = TARGET, *, random: bool = True
) -> Case:
    """A row of `KERNELS`; `theirs(key, x)` is the same transition by other means."""

    def call(kernel: Any, key: Any, x: Any) -> dict[str, Any]:
        algorithm = kernel.build(target)
        state, info = algorithm.step(key, algorithm.init(x, key))
        return {"position": state.position, "logdensity": state.logdensity, **kernel.stats(state, info)}

    return Case(
        make,
        lambda kernel, key: (jax.random.normal(key, (3,)),),
        call,
        lambda _, key, x: theirs(key, x),
        None,
        random=random,
    )


def sampler_case(make: Callable[[], Any]) -> Case:
    """A row of `SAMPLERS`; that the draws have the right law is shown in tests/distributions/test_samplers.py."""

    def call(sampler: Any, key: Any, mean: Any) -> dict[str, Any]:
        return {"draws": sampler(energies.Gaussian(mean, jnp.eye(2)), key, (3,))}

    return Case(make, lambda _, key: (jax.random.normal(key, (2,)),), call, None, None, random=True)


@dataclasses.dataclass(frozen=True)
class ObjectiveCase(Case):
    """An objective at its minimiser.

    Args:
        expected_loss: the exact expectation of the loss where `draw` puts the model; None only where the objective
            says that its value means nothing (`comparable` False).
        off: the same model with one parameter moved, which the statistical tests must notice.
    """

    expected_loss: float | None
    off: Callable[[Any], Any]


def buffer_case(make: Callable[[], Any]) -> Case:
    """The row of a replay buffer: draw, refresh some, write back; the reference is the same in NumPy."""

    def call(buffer: Any, key: Any, new: Any, fresh: Any) -> dict[str, Any]:
        slots = buffer.draw(len(new), key=key)
        buffer = buffer.refresh(slots, fresh > 0, new)
        moved = buffer.positions[slots] + 1
        return {"slots": slots, "moved": moved, **vars(buffer.write(slots, moved, num_steps=3))}

    def reference(buffer: Any, key: Any, new: Any, fresh: Any) -> dict[str, Any]:
        slots = np.asarray(call(buffer, key, new, fresh)["slots"])
        assert len(set(slots.tolist())) == len(slots)
        positions, age, visits = (np.array(part) for part in (buffer.positions, buffer.age, buffer.visits))
        for slot, row, starts_afresh in zip(slots, np.asarray(new), np.asarray(fresh) > 0, strict=True):
            positions[slot] = (row if starts_afresh else positions[slot]) + 1
            age[slot] = (0 if starts_afresh else age[slot]) + 3
            visits[slot] += 1
        return {"positions": positions, "age": age, "visits": visits}

    def draw(buffer: Any, key: Any) -> tuple[Any, ...]:
        new = jax.random.normal(key, (4, *buffer.positions.shape[1:]))
        return new, new.reshape(4, -1)[:, 0]

    return Case(make, draw, call, reference, None, random=True)


def objective_case(
    make: Callable[[], Any],
    model: Callable[[], Any],
    sample: Callable[..., Any],
    expected_loss: float | None,
    off: Callable[[Any], Any],
    *,
    random: bool = True,
    value: str | None = "loss",
) -> ObjectiveCase:
    """A row of `OBJECTIVES`; `value` is None where the gradient is not that of the value."""

    def call(objective: Any, key: Any, model: Any, batch: Any) -> dict[str, Any]:
        init_key, step_key = jax.random.split(key)
        state = objective.init(model, batch, key=init_key)
        loss, (_, metrics) = objective(model, state, batch, key=step_key)
        return {"loss": loss, **metrics}

    def draw(objective: Any, key: Any) -> tuple[Any, ...]:
        return model(), sample(key, 8)

    return ObjectiveCase(make, draw, call, None, value, random, expected_loss, off)
