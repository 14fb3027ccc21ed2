"""FunctionEnergy, score, log_density: the contract every other layer builds on."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ebm_ppl as ebm


def square_sum(x):
    return jnp.sum(x**2)


def scaled_square_sum(params, x):
    return params["precision"] * jnp.sum(x**2) / 2


def conditional(params, x, condition):
    return params * jnp.sum((x - condition) ** 2)


def test_values_and_gradients_of_the_harmonic_energy():
    """PEERS case 1."""
    energy = ebm.FunctionEnergy(square_sum, (2,))
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_allclose(jax.vmap(energy)(x), [5, 25], rtol=1e-6)
    np.testing.assert_allclose(-jax.vmap(ebm.score, (None, 0))(energy, x), [[2, 4], [6, 8]], rtol=1e-6)


def test_params_condition_and_both():
    assert float(ebm.FunctionEnergy(scaled_square_sum, (2,), {"precision": 3.0})(jnp.ones(2))) == 3
    energy = ebm.FunctionEnergy(conditional, (2,), jnp.asarray(2.0), condition_shape=(2,))
    assert float(energy(jnp.ones(2), jnp.zeros(2))) == 4
    only_condition = ebm.FunctionEnergy(lambda x, y: y * x, (), condition_shape=())
    assert float(only_condition(jnp.asarray(2.0), jnp.asarray(3.0))) == 6
    np.testing.assert_allclose(ebm.score(energy, jnp.ones(2), jnp.zeros(2)), [-4, -4])


def test_python_floats_and_numpy_arrays_in_params_are_traced():
    energy = ebm.FunctionEnergy(scaled_square_sum, (2,), {"precision": 3.0, "numpy": np.ones(2), "degree": 2})
    arrays, static = eqx.partition(energy, eqx.is_array)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arrays))
    assert 2 in jax.tree.leaves(static)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: jnp.sum(x, keepdims=True), r"\(\), *got shape \(1,\).*squeeze|got shape \(1,\): apply .squeeze"),
        (lambda x: x, r"got shape \(2,\): sum over the event"),
        (lambda x: None, "no return statement"),
        (lambda x: (jnp.sum(x), x), "a tuple of 2: return the energy alone"),
        (lambda x: {"energy": jnp.sum(x)}, "a dict of 1"),
    ],
)
def test_not_a_scalar(fn, message):
    with pytest.raises(ebm.EnergyShapeError, match=message):
        ebm.FunctionEnergy(fn, (2,))(jnp.ones(2))


def test_integer_energy_is_refused():
    with pytest.raises(ebm.EnergyDtypeError, match="int32"):
        ebm.FunctionEnergy(lambda x: jnp.sum(x).astype(jnp.int32), (2,))(jnp.ones(2))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2), (1, 2)])
def test_wrong_event_shape_names_both(shape):
    with pytest.raises(ebm.EnergyShapeError, match=r"shape \(2,\); got"):
        ebm.FunctionEnergy(square_sum, (2,))(jnp.ones(shape))


def test_condition_misuse():
    unconditional = ebm.FunctionEnergy(square_sum, (2,))
    with pytest.raises(ebm.EnergyShapeError, match="takes no condition"):
        unconditional(jnp.ones(2), jnp.ones(1))
    needs = ebm.FunctionEnergy(conditional, (2,), jnp.asarray(1.0), condition_shape=(2,))
    with pytest.raises(ebm.EnergyShapeError, match="needs a condition"):
        needs(jnp.ones(2))
    with pytest.raises(ebm.EnergyShapeError, match=r"condition of shape \(2,\); got \(3,\)"):
        ebm.log_density(needs, jnp.ones(3))


def test_construction_errors():
    with pytest.raises(TypeError):
        ebm.FunctionEnergy(3.0, (2,))
    with pytest.raises(ValueError, match="event_shape"):
        ebm.FunctionEnergy(square_sum, (-2,))
    with pytest.raises(ValueError, match="condition_shape"):
        ebm.FunctionEnergy(square_sum, (2,), condition_shape=(0,))
    with pytest.raises(TypeError):
        ebm.log_density(square_sum)


def test_log_density_is_minus_the_energy_and_hits_caches():
    traces = []

    def fn(params, x):
        traces.append(1)
        return params * jnp.sum(x**2)

    @eqx.filter_jit
    def run(log_p, x):
        return log_p(x)

    for precision in (1.0, 2.0):
        log_p = ebm.log_density(ebm.FunctionEnergy(fn, (2,), jnp.asarray(precision)))
        assert float(run(log_p, jnp.ones(2))) == -2 * precision
    assert len(traces) == 1
    assert hash(log_p) == hash(log_p)
    assert float(jax.jit(log_p)(jnp.ones(2))) == -4
    assert float(jax.lax.cond(True, log_p, log_p, jnp.ones(2))) == -4


def test_log_density_fixes_the_condition():
    energy = ebm.FunctionEnergy(conditional, (2,), jnp.asarray(2.0), condition_shape=(2,))
    assert float(ebm.log_density(energy, jnp.zeros(2))(jnp.ones(2))) == -4


def test_half_precision_events_give_float32_energies():
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    for dtype in (jnp.bfloat16, jnp.float16):
        x = jnp.ones(2, dtype)
        assert energy(x).dtype == jnp.float32
        assert ebm.score(energy, x).dtype == dtype
        assert ebm.log_density(ebm.FunctionEnergy(square_sum, (2,)))(x).dtype == jnp.float32


def test_score_refuses_integers():
    with pytest.raises(ebm.EnergyDtypeError, match="int32"):
        ebm.score(ebm.FunctionEnergy(square_sum, (2,)), jnp.ones(2, jnp.int32))


def train(energy, key):
    """Fit the energy's value to ‖x‖² by gradient descent on whatever arrays it has; returns first and last loss."""
    params, static = eqx.partition(energy, eqx.is_inexact_array)
    optimizer = optax.sgd(1e-2)
    x = jax.random.normal(key, (32, 2))

    def loss(params):
        model = eqx.combine(params, static)
        return jnp.mean((jax.vmap(model)(x) - jnp.sum(x**2, axis=1)) ** 2)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(100):
        params, state, value = step(params, state)
        losses.append(float(value))
    return losses[0], losses[-1]


class NNXPotential(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(2, 8, rngs=rngs)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.silu(self.hidden(x))).squeeze(-1)


def test_flax_nnx_module_trains(key):
    graphdef, state = nnx.split(NNXPotential(nnx.Rngs(0)))

    def apply(state, x):
        return nnx.merge(graphdef, state)(x)

    energy = ebm.FunctionEnergy(apply, (2,), params=state)
    x = jnp.array([0.5, -1.0])
    np.testing.assert_allclose(energy(x), nnx.merge(graphdef, state)(x), rtol=1e-6)
    assert ebm.score(energy, x).shape == (2,)
    first, last = train(energy, key)
    assert last < first / 2


class LinenPotential(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.silu(nn.Dense(8)(x))).squeeze(-1)


def test_flax_linen_apply_trains(key):
    module = LinenPotential()
    energy = ebm.FunctionEnergy(module.apply, (2,), module.init(key, jnp.ones(2)))
    first, last = train(energy, key)
    assert last < first / 2


def test_equinox_module_as_fn_trains(key):
    mlp = eqx.nn.MLP(2, "scalar", 8, 1, activation=jax.nn.silu, key=key)
    energy = ebm.FunctionEnergy(mlp, (2,))
    assert len(jax.tree.leaves(eqx.filter(energy, eqx.is_array))) == 4
    first, last = train(energy, key)
    assert last < first / 2


def test_plain_closure():
    centre = jnp.array([1.0, 2.0])
    energy = ebm.FunctionEnergy(lambda x: jnp.sum((x - centre) ** 2), (2,))
    np.testing.assert_allclose(ebm.score(energy, jnp.zeros(2)), [2, 4])
