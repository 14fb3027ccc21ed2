"""Score and divergence in one forward sweep against JAX's own gradient and Hessian."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from benchmarks.score_matching_cost import BackwardExact, HandWrittenExact, step
from ebm_ppl import energies
from ebm_ppl.energies._forward_laplacian import _has_custom_vjp, score_and_divergence
from ebm_ppl.objectives import ExactScoreMatching

KEY = jax.random.key(0)


def looped(x):
    def body(carry, _):
        return jnp.tanh(1.1 * carry + x), jnp.sum(carry)

    carry, sums = jax.lax.scan(body, x, None, length=3)
    return jnp.sum(carry**3) + jnp.sum(sums)


def branched(x):
    return jax.lax.cond(x[0] > 0, lambda x: jnp.sum(x**3), lambda x: jnp.sum(jnp.sin(x)), x)


@jax.custom_vjp
def quartic(x):
    return jnp.sum(x**4)


quartic.defvjp(lambda x: (jnp.sum(x**4), x), lambda x, g: (g * 4 * x**3,))


def reductions(x):
    whole = jax.nn.logsumexp(x * x) + jnp.linalg.norm(x) + jnp.prod(x) + jnp.max(x) * x[0]
    return whole + jnp.where(x[0] > 0, x[1] ** 2 * x[2], x[0] ** 3)


def products(x):
    softened = jnp.sum(jax.nn.softmax(x) * jnp.sort(x))
    return softened + jnp.sum(jnp.outer(x, x) ** 2) + jnp.sum(jnp.cumsum(x) ** 3) + jnp.sum(jax.nn.relu(x) ** 3)


def constant(x):
    return jnp.sum(jnp.zeros_like(x))


def network(activation):
    return ebm.MLPEnergy((2, 2), width=6, depth=2, key=KEY, activation=activation)


CASES = {
    "silu": network(jax.nn.silu),
    "softplus": network(jax.nn.softplus),
    "gelu": network(jax.nn.gelu),
    "convolution": ebm.ConvEnergy((1, 4, 4), channels=(3,), key=KEY),
    "mixture": energies.GaussianMixture([0.3, 0.7], [[-1.0, 0, 1], [2.0, 1, 0]], np.stack([np.eye(3), 2 * np.eye(3)])),
    "funnel": energies.Funnel(dim=4),
    "scalar": energies.GaussianMixture([0.3, 0.7], [-1.0, 2.0], [0.5, 0.2]),
    "conditional": ebm.MLPEnergy((3,), width=6, depth=1, key=KEY, condition_shape=(2,)),
} | {fn.__name__: ebm.FunctionEnergy(fn, (3,)) for fn in (looped, branched, reductions, products, constant, jnp.sum)}
CASES["custom_vjp"] = ebm.FunctionEnergy(quartic, (3,))


@pytest.mark.parametrize("energy", CASES.values(), ids=CASES.keys())
def test_it_is_the_gradient_and_the_trace_of_the_hessian(energy, key):
    with jax.enable_x64(True):
        energy = jax.tree.map(lambda leaf: leaf.astype(float) if eqx.is_inexact_array(leaf) else leaf, energy)
        x = jax.random.normal(key, energy.event_shape, float)
        y = None if energy.condition_shape is None else jnp.ones(energy.condition_shape, float)

        @jax.jit
        def both(x):
            flat = eqx.Partial(lambda flat: energy(flat.reshape(x.shape), y))
            hessian = jax.jacfwd(jax.grad(flat))(x.reshape(-1))
            expected = -jax.grad(lambda x: energy(x, y))(x), -jnp.trace(hessian)
            return expected, [score_and_divergence(energy, x, y, chunk_size=size) for size in (None, 2)]

        expected, found = both(x)
        for score, divergence in found:
            np.testing.assert_allclose(score, expected[0], rtol=1e-11, atol=1e-13)
            np.testing.assert_allclose(divergence, expected[1], rtol=1e-11, atol=1e-13)


def test_only_a_custom_vjp_needs_backward_passes():
    x = jnp.ones(3)
    assert _has_custom_vjp(jax.make_jaxpr(lambda x: jax.jit(quartic)(x) + 1)(x).jaxpr)
    assert not _has_custom_vjp(jax.make_jaxpr(lambda x: looped(x) + reductions(x))(x).jaxpr)


def test_a_step_takes_the_work_of_a_network_differentiated_by_hand(key):
    """Operations as XLA counts them, loss and gradient in the parameters. Not more than twice; backward, many times."""
    model = ebm.MLPEnergy((64,), width=32, key=KEY)
    batch = jax.random.normal(key, (16, 64))

    def flops(objective):
        (analysis,) = [step.lower(objective, model, batch, key).compile().compiled.cost_analysis()]
        return analysis["flops"]

    by_hand = flops(HandWrittenExact())
    assert flops(ExactScoreMatching()) < 2 * by_hand
    assert flops(ExactScoreMatching(chunk_size=16)) < 3 * by_hand  # the sweep is repeated instead of stored
    assert flops(BackwardExact()) > 2 * by_hand


@pytest.mark.parametrize("size", [0, -1, True])
def test_chunk_size_is_checked_by_name(size):
    with pytest.raises(ValueError, match="`chunk_size` must be an integer >= 1"):
        ExactScoreMatching(chunk_size=size)
