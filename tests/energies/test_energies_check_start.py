"""Rows 1, 2, 8-11 of the fault catalogue at the chain driver's door."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.energies import check_start, start_is_finite


def start(*rows):
    return jnp.asarray(rows, jnp.float32)


def log_energy(x):
    return jnp.sum(jnp.log(x))


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: jnp.sum(jnp.sqrt(x)), "is NaN"),
        (lambda x: jnp.where(x[0] < 0, jnp.inf, jnp.sum(x**2)), r"is \+inf \(density zero\)"),
        (lambda x: jnp.where(x[0] < 0, -jnp.inf, jnp.sum(x**2)), "is -inf.*unbounded below"),
    ],
)
def test_non_finite_energy_names_chain_position_and_number(fn, words):
    positions = start([1, 1], [2, 1], [-0.5, 3], [1, 3])
    with pytest.raises(ebm.NonFiniteEnergyError, match=words) as caught:
        check_start(ebm.FunctionEnergy(fn, (2,)), positions)
    assert "chain 2, [-0.5,  3. ]; 1 of 4 chains" in str(caught.value)


def test_all_chains_nan_is_found_in_two_seconds():
    began = time.perf_counter()
    with pytest.raises(ebm.NonFiniteEnergyError, match=r"chain 0.*4 of 4"):
        check_start(ebm.FunctionEnergy(log_energy, (2,)), -jnp.ones((4, 2)))
    assert time.perf_counter() - began < 2


def test_non_finite_gradient_is_called_a_gradient():
    energy = ebm.FunctionEnergy(jnp.linalg.norm, (2,))
    with pytest.raises(ebm.NonFiniteEnergyError, match=r"non-finite gradient \[nan, nan\].*energy is 0.*kink"):
        check_start(energy, jnp.zeros((3, 2)))
    assert not start_is_finite(energy, jnp.zeros((3, 2))).any()
    check_start(energy, jnp.zeros((3, 2)), needs_gradient=False)


def test_start_is_finite_flags_single_chains():
    energy = ebm.FunctionEnergy(lambda x: jnp.sum(jnp.sqrt(x)), (2,))
    positions = jnp.ones((64, 2)).at[17, 0].set(-1)
    flags = np.asarray(start_is_finite(energy, positions))
    assert flags.shape == (64,)
    np.testing.assert_array_equal(np.flatnonzero(~flags), [17])


@pytest.mark.parametrize(
    "fn",
    [lambda x: jnp.sum(x, keepdims=True), lambda x: x, lambda x: None, lambda x: {"e": jnp.sum(x)}, lambda x: (x, x)],
)
def test_energy_shape(fn):
    with pytest.raises(ebm.EnergyShapeError, match="must return one floating scalar"):
        check_start(ebm.FunctionEnergy(fn, (2,)), jnp.ones((3, 2)))


class Unchecked(ebm.AbstractEnergy):
    """An energy as users write it: no checks of its own."""

    event_shape: tuple[int, ...] = eqx.field(static=True)
    fn: object = eqx.field(static=True)

    def __call__(self, x, condition=None):
        return self.fn(x)


def test_energy_shape_of_user_classes():
    with pytest.raises(ebm.EnergyShapeError, match=r"`Unchecked.* got shape \(2,\)"):
        check_start(Unchecked((2,), lambda x: x), jnp.ones((3, 2)))


@pytest.mark.parametrize("shape", [(2,), (4, 3), (4, 1), (4, 2, 1), (0, 2), ()])
def test_positions_shape(shape):
    with pytest.raises(ebm.EnergyShapeError, match=r"must have shape \(chain, 2\)"):
        check_start(ebm.FunctionEnergy(jnp.linalg.norm, (2,)), jnp.ones(shape))


def test_shape_mismatch_inside_the_energy():
    location = jnp.zeros(3)
    with pytest.raises(ebm.EnergyShapeError, match=r"fails on one event of shape \(2,\)"):
        check_start(Unchecked((2,), lambda x: jnp.sum((x - location) ** 2)), jnp.ones((4, 2)))


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: jnp.sum(jnp.round(x)), "gradient exactly zero.*round"),
        (lambda x: jnp.sum(jax.lax.stop_gradient(x)), "gradient exactly zero.*stop_gradient"),
        (
            lambda x: jax.lax.while_loop(lambda v: v < 10, lambda v: 2 * v, 1 + jnp.sum(x**2)),
            "no reverse-mode derivative",
        ),
        (lambda x: jnp.asarray(np.sum(np.exp(x))), "calls NumPy"),
        (lambda x: x[0] if x[0] > 0 else x[1], "in Python"),
        (
            lambda x: jax.pure_callback(lambda v: np.sum(v), jax.ShapeDtypeStruct((), jnp.float32), x),
            "no reverse-mode derivative",
        ),
    ],
)
def test_non_differentiable(fn, words):
    with pytest.raises(ebm.NonDifferentiableEnergyError, match=words):
        check_start(ebm.FunctionEnergy(fn, (2,)), jnp.full((2, 2), 0.7))


def test_stationary_start_and_flat_energy_are_no_fault():
    check_start(ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2)), jnp.zeros((3, 2)))
    check_start(ebm.FunctionEnergy(lambda x: 0.0, (2,)), jnp.zeros((3, 2)))


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (jnp.int32, "int32"),
        (jnp.bool_, "bool"),
        (jnp.complex64, "complex64"),
        (jnp.bfloat16, "half"),
        (jnp.float16, "half"),
    ],
)
def test_dtype_of_positions(dtype, words):
    energy = ebm.FunctionEnergy(lambda x: jnp.sum(x**2), (2,))
    with pytest.raises(ebm.EnergyDtypeError, match=words):
        check_start(energy, jnp.ones((3, 2), dtype))
    with pytest.raises(ebm.EnergyDtypeError):
        check_start(energy, [["a", "b"]])


def test_double_precision_beyond_single_is_refused_and_x64_works():
    energy = ebm.FunctionEnergy(lambda x: jnp.sum(x**2), (2,))
    with pytest.raises(ebm.EnergyDtypeError, match="beyond float32"):
        check_start(energy, np.full((3, 2), 1e300))
    with jax.enable_x64(True):
        check_start(energy, np.full((3, 2), 1e100))


def test_condition_is_checked_and_used():
    energy = ebm.MLPEnergy((2,), width=4, key=jax.random.key(0), condition_shape=(3,))
    check_start(energy, jnp.ones((2, 2)), jnp.ones(3))
    with pytest.raises(ebm.EnergyShapeError, match="needs a condition"):
        check_start(energy, jnp.ones((2, 2)))
    with pytest.raises(ebm.NonFiniteEnergyError, match="NaN"):
        check_start(energy, jnp.ones((2, 2)), jnp.full(3, jnp.nan))


def test_second_call_compiles_nothing(caplog):
    """Another energy of equal structure reuses the compiled evaluation."""
    positions = jnp.ones((8, 16))
    for seed in (0, 1):
        energy = ebm.MLPEnergy((16,), key=jax.random.key(seed))
        caplog.clear()
        with jax.log_compiles():
            check_start(energy, positions)
        compiled = [record for record in caplog.records if "Compiling" in record.getMessage()]
        assert len(compiled) == 0 or seed == 0, compiled
        assert len(compiled) > 0 or seed == 1
