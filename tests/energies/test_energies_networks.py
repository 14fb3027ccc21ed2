"""MLPEnergy and ConvEnergy against forward passes written out in NumPy, and their contract."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm


def silu(x):
    return x / (1 + np.exp(-x))


def test_mlp_is_the_written_out_network(key):
    energy = ebm.MLPEnergy((2, 3), width=5, depth=2, key=key, condition_shape=(4,))
    x, y = jax.random.normal(key, (2, 3)), jnp.arange(4.0)
    hidden = np.concatenate([np.ravel(x), y]).astype(float)
    for layer in energy.mlp.layers[:-1]:
        hidden = silu(np.asarray(layer.weight, float) @ hidden + np.asarray(layer.bias, float))
    expected = np.asarray(energy.mlp.layers[-1].weight, float)[0] @ hidden
    np.testing.assert_allclose(energy(x, y), expected, rtol=1e-5)
    assert energy.mlp.layers[-1].bias is None


def test_conv_is_the_written_out_network(key):
    energy = ebm.ConvEnergy((5, 7), channels=(2, 3), key=key, condition_shape=(2,))
    x, y = jax.random.normal(key, (5, 7)), jnp.array([0.5, -1.0])
    hidden = np.asarray(x, float)[None]
    for convolution, projection in zip(energy.convolutions, energy.projections, strict=True):
        weight, bias = np.asarray(convolution.weight, float), np.asarray(convolution.bias, float)
        padded = np.pad(hidden, ((0, 0), (1, 1), (1, 1)))
        rows, columns = ((size + 1) // 2 for size in hidden.shape[1:])
        output = np.zeros((len(weight), rows, columns))
        for i in range(rows):
            for j in range(columns):
                patch = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                output[:, i, j] = np.sum(weight * patch[None], axis=(1, 2, 3))
        shift = np.asarray(projection.weight, float) @ np.asarray(y, float)
        hidden = silu(output + bias + shift[:, None, None])
    expected = np.asarray(energy.head.weight, float)[0] @ hidden.sum((1, 2))
    np.testing.assert_allclose(energy(x, y), expected, rtol=1e-5)


def test_conv_layouts_and_sizes(key):
    flat = ebm.ConvEnergy((8, 8), channels=(2, 3), key=key)
    layered = ebm.ConvEnergy((1, 8, 8), channels=(2, 3), key=key)
    x = jax.random.normal(key, (8, 8))
    assert float(flat(x)) == float(layered(x[None]))
    assert flat.projections == ()
    colour = ebm.ConvEnergy((3, 8, 8), channels=(2,), kernel_size=5, key=key)
    assert ebm.score(colour, jnp.ones((3, 8, 8))).shape == (3, 8, 8)


NETWORKS = {
    "mlp": lambda key: ebm.MLPEnergy((4, 4), width=8, key=key),
    "conv": lambda key: ebm.ConvEnergy((4, 4), channels=(3,), key=key),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_contract(name, key):
    """One trace for equal configurations, same key same network, the event's dtype decides, smooth by default."""
    x = jax.random.normal(key, (4, 4))
    traced = eqx.filter_jit(eqx.debug.assert_max_traces(lambda energy, x: energy(x), max_traces=1))
    keys = jax.random.split(key)
    first, second, again = (NETWORKS[name](k) for k in (keys[0], keys[1], keys[0]))
    assert float(traced(first, x)) != float(traced(second, x))
    assert float(first(x)) == float(again(x))
    assert np.all(np.asarray(ebm.score(first, x)) != 0)
    laplacian = jnp.trace(jax.hessian(lambda v: first(v.reshape(4, 4)))(x.ravel()))
    assert float(jnp.abs(laplacian)) > 1e-6
    with jax.enable_x64(True):
        double = first(jnp.asarray(x, jnp.float64))
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(double, first(x), rtol=1e-4)
    with pytest.raises(ebm.EnergyShapeError, match=r"\(4, 4\); got \(16,\)"):
        first(x.ravel())


def test_relu_has_no_laplacian(key):
    """Why the docstring advises against it for score matching."""
    energy = ebm.MLPEnergy((3,), width=8, key=key, activation=jax.nn.relu)
    assert float(jnp.abs(jnp.trace(jax.hessian(energy)(jnp.ones(3))))) == 0


def test_scalar_event_and_scalar_condition(key):
    energy = ebm.MLPEnergy((), width=4, key=key, condition_shape=())
    assert ebm.score(energy, jnp.asarray(0.3), jnp.asarray(1.0)).shape == ()
    assert float(energy(jnp.asarray(0.3), jnp.asarray(1.0))) != float(energy(jnp.asarray(0.3), jnp.asarray(2.0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda key: ebm.MLPEnergy((2,), width=0, key=key), "`width` must be an integer >= 1"),
        (lambda key: ebm.MLPEnergy((2,), depth=0, key=key), "`depth` must be an integer >= 1"),
        (lambda key: ebm.MLPEnergy((0,), key=key), "`event_shape`"),
        (lambda key: ebm.MLPEnergy((2,), key=key, condition_shape=(0,)), "`condition_shape`"),
        (lambda key: ebm.ConvEnergy((8,), key=key), "`event_shape` must be"),
        (lambda key: ebm.ConvEnergy((1, 1, 8, 8), key=key), "`event_shape` must be"),
        (lambda key: ebm.ConvEnergy((8, 8), channels=(), key=key), "`channels` must have one entry"),
        (lambda key: ebm.ConvEnergy((8, 8), channels=(4, 0), key=key), "`channels` must be an integer >= 1"),
        (lambda key: ebm.ConvEnergy((8, 8), kernel_size=2, key=key), "`kernel_size` must be odd"),
    ],
)
def test_construction_errors(make, message, key):
    with pytest.raises(ValueError, match=message):
        make(key)
