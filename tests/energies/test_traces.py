"""What JAX remembers of a user's functions is not believed, and programs that differ anywhere are told apart."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.ode import odeint
from numpyro.distributions import constraints

import ebm_ppl as ebm
from ebm_ppl.energies import Target

DATA = jnp.array([1.0, 2.0])


def total(x):
    return jnp.sum(x * DATA)


def nothing(x):
    return 0.0 * jnp.sum(x)


def body(carry, x):
    return carry + jnp.sum(x * DATA), None


helper = jax.jit(total)
checkpointed = jax.checkpoint(total)
NESTED = {
    "scan": lambda x: jax.lax.scan(body, 0.0, x[None])[0],
    "cond": lambda x: jax.lax.cond(x[0] > 0, total, nothing, x),
    "switch": lambda x: jax.lax.switch(1, [nothing, total], x),
    "while": lambda x: jax.lax.fori_loop(0, 1, lambda i, value: value + total(x), 0.0),
    "checkpoint": lambda x: checkpointed(x),
    "compiled helper": lambda x: helper(x),
    "partial of a compiled helper": functools.partial(helper),
}


@pytest.mark.parametrize("name", NESTED)
def test_functions_that_jax_has_traced_before_are_traced_again(name, monkeypatch):
    x = jnp.ones(2)

    def make():
        fn = NESTED[name]
        return ebm.FunctionEnergy(lambda x: fn(x), (2,))

    first = Target(make())
    assert float(first(x)) == -3.0
    monkeypatch.setitem(globals(), "DATA", 10 * DATA)
    second = Target(make())
    assert float(second(x)) == -30.0
    assert first.program_fingerprint == second.program_fingerprint  # compiled code is shared all the same


def solved(operator):
    operator = np.asarray(operator, np.float32)
    product = jax.jit(lambda v: operator @ v)
    return ebm.FunctionEnergy(lambda x: x @ jax.scipy.sparse.linalg.cg(product, x, maxiter=5)[0] / 2, (2,))


def test_constants_inside_a_linear_solve_are_seen():
    values = [ebm.normalizers.quadrature(solved(scale * np.eye(2))).value for scale in (1.0, 100.0)]
    np.testing.assert_allclose(values, [np.log(2 * np.pi), np.log(200 * np.pi)], atol=1e-3)


@jax.custom_vjp
def squared(x):
    return jnp.sum(x**2)


squared.defvjp(lambda x: (squared(x), x), lambda x, g: (2 * x * g,))

PLAIN = {
    "custom_vjp": lambda x: squared(x),
    "odeint": lambda x: jnp.sum(odeint(lambda y, t: -y, x, jnp.array([0.0, 1.0]))[-1] ** 2),
    "reduce": lambda x: jax.lax.reduce(x, jnp.float32(0), lambda a, b: a + b, (0,)),
    "solve": lambda x: x @ jnp.linalg.solve(jnp.eye(2) * 2, x),
    "logsumexp of a key": lambda x: jnp.sum(x**2) + jax.random.normal(jax.random.key(3)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_unusual_programs_are_equal_to_themselves_and_fit_into_checkpoints(name, tmp_path):
    def make():
        fn = PLAIN[name]
        return ebm.FunctionEnergy(lambda x: jnp.sum(x**2) + fn(x), (2,))

    assert not Target(make()).is_opaque
    assert Target(make()).program_fingerprint == Target(make()).program_fingerprint


def test_an_energy_with_a_custom_rule_or_a_key_is_resumed(tmp_path):
    key = jax.random.key(3)
    energy = ebm.FunctionEnergy(lambda x: squared(x) + 0 * jax.random.normal(key), (2,))
    settings = {"num_warmup": 20, "num_samples": 20, "progress_bar": False}
    draws = ebm.sample(energy, key=jax.random.key(0), checkpoint=tmp_path / "run", **settings)
    again = ebm.resume(tmp_path / "run", energy, progress_bar=False)
    np.testing.assert_array_equal(again.positions, draws.positions)


def test_a_traced_energy_keeps_its_support():
    gamma = ebm.FunctionEnergy(lambda x: x, (), support=constraints.positive)
    assert Target(Target(gamma).energy).shape == (1,)


def test_a_support_in_a_class_body_is_refused_by_name():
    class Exponential(ebm.AbstractEnergy):
        event_shape: tuple[int, ...] = eqx.field(static=True, default=())
        support = constraints.positive

        def __call__(self, x, condition=None):
            return x

    with pytest.raises(TypeError, match=r"`Exponential\.support` must be a field"):
        Exponential()


def test_the_order_of_named_parts_is_part_of_their_identity():
    one, other = ({"a": (1,), "b": (2,)}, {"b": (2,), "a": (1,)})
    energies = [ebm.FunctionEnergy(lambda x: jnp.sum(x["a"]) + jnp.sum(x["b"]), shape) for shape in (one, other)]
    assert energies[0].event_shape != energies[1].event_shape
    assert energies[0].event_shape == one
