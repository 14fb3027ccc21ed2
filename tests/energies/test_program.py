"""A traced energy is what it computes: equal functions are one program, and everything that changes it is seen."""

import functools
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.energies import Target

ARRAY = jnp.array([1.0, 2.0])
SCALE = 2.0
HOST = np.array([1.0, 2.0])


def identity_of(energy):
    """Program and values: what a checkpoint records."""
    target = Target(energy)
    return target.program_fingerprint, tuple(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(target))


def same_program(one, other):
    """Whether compiled code of one serves for the other."""
    structures = [jax.tree.structure(Target(energy)) for energy in (one, other)]
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(Target(energy))] for energy in (one, other)]
    return structures[0] == structures[1] and shapes[0] == shapes[1]


def of(fn):
    return ebm.FunctionEnergy(fn, (2,))


def helper(x):
    return jnp.sum(x**2)


class Holder:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return jnp.sum(x * self.scale)

    def method(self, x):
        return self(x) + 1


def custom(factor):
    """An energy of fixed value whose derivative rule holds `factor`."""

    @jax.custom_jvp
    def fn(x):
        return jnp.sum(x**2)

    fn.defjvp(lambda primals, tangents: (fn(*primals), factor * jnp.sum(primals[0] * tangents[0])))
    return lambda x: fn(x)


def test_an_equal_function_defined_afresh_is_the_same_program_and_shares_compiled_code():
    one, other = of(lambda x: jnp.sum((x - ARRAY) ** 2) * SCALE), of(lambda y: jnp.sum((y - ARRAY) ** 2) * SCALE)
    assert one.fn is not other.fn
    assert identity_of(one) == identity_of(other)
    assert same_program(one, other)
    assert same_program(of(custom(2.0)), of(custom(2.0)))


def test_arrays_that_a_function_closes_over_are_arguments():
    shifted = [of(lambda x, shift=shift: jnp.sum((x - shift) ** 2)) for shift in (ARRAY, ARRAY + 1)]
    assert same_program(*shifted)
    assert identity_of(shifted[0]) != identity_of(shifted[1])
    inner = [jax.jit(lambda x, shift=shift: jnp.sum((x - shift) ** 2)) for shift in (ARRAY, ARRAY + 1)]
    nested = [of(lambda x, fn=fn: 2 * fn(x)) for fn in inner]  # the constants of a compiled function inside
    assert same_program(*nested)
    assert identity_of(nested[0]) != identity_of(nested[1])
    x = jnp.array([0.5, -1.0])
    for energy, shift in zip(nested, (ARRAY, ARRAY + 1), strict=True):
        target = Target(energy)
        np.testing.assert_allclose(target(x), -2 * np.sum((np.asarray(x) - np.asarray(shift)) ** 2), rtol=1e-6)
        np.testing.assert_allclose(jax.grad(target)(x), -4 * (np.asarray(x) - np.asarray(shift)), rtol=1e-6)


BASE = [
    lambda: of(lambda x: jnp.sum((x - ARRAY) ** 2)),
    lambda: of(functools.partial(lambda scale, x: scale * jnp.sum(x), 2.0)),
    lambda: of(Holder(jnp.ones(2))),
    lambda: of(Holder(jnp.ones(2)).method),
    lambda: ebm.FunctionEnergy(lambda p, x: p["a"] * jnp.sum(x), (2,), {"a": 1.0}),
    lambda: of(custom(jnp.asarray(2.0))),
    lambda: ebm.MLPEnergy((2,), width=4, depth=1, key=jax.random.key(0)),
]
MUTATED = [
    (0, lambda: of(lambda x: jnp.sum((x - ARRAY - 1) ** 2))),  # an operation more
    (0, lambda: of(lambda x, shift=ARRAY + 1: jnp.sum((x - shift) ** 2))),  # another array
    (0, lambda: of(lambda x: jnp.sum((x - ARRAY) ** 4))),  # another power
    (0, lambda: of(lambda x: -jnp.sum((x - ARRAY) ** 2))),  # the sign
    (0, lambda: of(lambda x: jnp.sum((ARRAY - x) ** 2) / 2)),  # a factor
    (0, lambda: of(lambda x: jnp.sum((x[::-1] - ARRAY) ** 2))),  # the order
    (0, lambda: of(lambda x: jnp.mean((x - ARRAY) ** 2))),  # a mean for a sum
    (0, lambda: of(lambda x: jnp.sum((x - ARRAY.astype(jnp.float16).astype(jnp.float32)) ** 2) + 1e-3)),  # a constant
    (0, lambda: ebm.FunctionEnergy(lambda x: jnp.sum((x - 1.0) ** 2), (3,))),  # another event
    (0, lambda: ebm.ShiftedEnergy(of(lambda x: jnp.sum((x - ARRAY) ** 2)), 1.0)),  # a wrapper
    (0, lambda: ebm.TemperedEnergy(of(lambda x: jnp.sum((x - ARRAY) ** 2)), 0.5)),  # a temperature
    (1, lambda: of(functools.partial(lambda scale, x: scale * jnp.sum(x), 3.0))),  # another argument of a partial
    (2, lambda: of(Holder(2 * jnp.ones(2)))),  # another attribute
    (3, lambda: of(Holder(2 * jnp.ones(2)).method)),  # another bound self
    (4, lambda: ebm.FunctionEnergy(lambda p, x: p["a"] * jnp.sum(x), (2,), {"a": 2.0})),  # another parameter
    (5, lambda: of(custom(jnp.asarray(3.0)))),  # another derivative of the same value
    (5, lambda: of(custom(2.0))),  # the same derivative as a literal: another program, and refused for safety
    (6, lambda: ebm.MLPEnergy((2,), width=4, depth=1, key=jax.random.key(1))),  # other weights
    (6, lambda: ebm.MLPEnergy((2,), width=4, depth=2, key=jax.random.key(0))),  # another depth
    (6, lambda: ebm.MLPEnergy((2,), width=4, depth=1, key=jax.random.key(0), activation=jnp.tanh)),  # an activation
]


@pytest.mark.parametrize(("base", "mutated"), MUTATED)
def test_a_mutated_energy_is_another_one(base, mutated):
    assert identity_of(BASE[base]()) != identity_of(mutated())
    assert identity_of(BASE[base]()) == identity_of(BASE[base]())


def test_what_a_function_reads_from_its_surroundings_is_read_at_every_call(monkeypatch):
    def reads():
        return jnp.stack([jnp.sum(ARRAY), jnp.asarray(SCALE), jnp.asarray(HOST).sum()])

    energy = of(lambda x: jnp.sum(x) * SCALE + jnp.sum(x * ARRAY) + jnp.sum(x * jnp.asarray(HOST, jnp.float32)))
    jitted = of(jax.jit(lambda x: jnp.sum(x * ARRAY)))
    x = jnp.ones(2)
    before = float(reads()[1] * 2 + reads()[0] + reads()[2])
    assert float(Target(energy)(x)) == -before
    assert float(Target(jitted)(x)) == -3.0
    monkeypatch.setitem(globals(), "ARRAY", ARRAY + 10)  # a rebound global
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    HOST[0] += 100  # an array changed in place
    try:
        after = float(reads()[1] * 2 + reads()[0] + reads()[2])
        assert after != before
        assert float(Target(energy)(x)) == -after
        assert float(Target(jitted)(x)) == -23.0  # JAX itself would keep the old value
    finally:
        HOST[0] -= 100
    holder = Holder(jnp.ones(2))
    energy = of(holder.method)
    assert float(Target(energy)(x)) == -3.0
    holder.scale = 3 * jnp.ones(2)  # a changed attribute
    assert float(Target(energy)(x)) == -7.0


def test_an_energy_that_calls_back_into_python_equals_only_itself_and_has_no_checkpoint(tmp_path):
    def make():
        shape = jax.ShapeDtypeStruct((), jnp.float32)

        @jax.custom_jvp
        def fn(x):
            return jax.pure_callback(lambda x: np.float32(np.sum(x**2)), shape, x, vmap_method="sequential")

        fn.defjvp(lambda primals, tangents: (fn(*primals), 2 * jnp.sum(primals[0] * tangents[0])))
        return of(lambda x: fn(x))

    assert Target(make()).has_callback
    assert not same_program(make(), make())
    with pytest.raises(ValueError, match="`checkpoint` must be None"):
        ebm.sample(make(), key=jax.random.key(0), checkpoint=tmp_path / "run", progress_bar=False)
    assert not (tmp_path / "run").exists()


def test_the_fingerprint_is_the_same_in_another_process():
    energy = of(lambda x: jnp.sum(jnp.logaddexp(x, 0.0)))
    code = (
        "import jax.numpy as jnp, ebm_ppl as ebm\n"
        "f = ebm.FunctionEnergy(lambda z: jnp.sum(jnp.logaddexp(z, 0.0)), (2,))\n"
        "print(ebm.Target(f).program_fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == Target(energy).program_fingerprint


def test_a_target_is_made_while_tracing():
    @jax.jit
    def value(scale, z):
        return Target(of(lambda x: scale * jnp.sum(x**2)))(z)

    z = jnp.array([1.0, 2.0])
    assert float(value(jnp.asarray(3.0), z)) == -15.0
    assert float(jax.grad(value)(jnp.asarray(3.0), z)) == -5.0
    scales = jnp.array([1.0, 2.0])
    np.testing.assert_allclose(jax.vmap(value, (0, None))(scales, z), [-5.0, -10.0])


def test_a_sum_over_data_keeps_its_minibatches():
    term = ebm.FunctionEnergy(lambda x, y: jnp.sum((x - y) ** 2) / 2, (1,), condition_shape=(1,))
    energy = ebm.energies.DataSumEnergy(of_one(), term, jnp.arange(6.0)[:, None])
    target = Target(energy)
    np.testing.assert_allclose(target(jnp.ones(1)), -energy(jnp.ones(1)), rtol=1e-6)
    key = jax.random.key(0)
    expected = -energy.minibatch(key, 2)(jnp.ones(1))
    np.testing.assert_allclose(target.minibatch(key, 2)(jnp.ones(1)), expected, rtol=1e-6)
    with pytest.raises(TypeError, match="sum over data"):
        Target(of_one()).minibatch(key, 2)


def of_one():
    return ebm.FunctionEnergy(lambda x: jnp.sum(x**2) / 2, (1,))


def test_the_program_holds_no_array_of_its_first_use():
    big = jnp.ones(1000)
    target = Target(of(lambda x: jnp.sum(x) * jnp.sum(big)))
    assert any(leaf.shape == (1000,) for leaf in jax.tree.leaves(target))
    static = jax.tree.leaves(eqx.partition(target, eqx.is_array)[1])
    assert not any(hasattr(leaf, "shape") for leaf in static)
