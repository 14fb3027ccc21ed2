"""log Z of a neural energy learnt from data: four methods that have nothing in common but the answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ebm_ppl as ebm
from ebm_ppl import energies, normalizers
from tests.statistics import StatisticalError, assert_close

DATA = energies.GaussianMixture([0.3, 0.7], [[-1.5, 0.0], [1.0, 1.0]], np.tile(0.4 * np.eye(2), (2, 1, 1)))
START = energies.Gaussian(jnp.zeros(2), 6.0 * jnp.eye(2))


@pytest.fixture(scope="module")
def learnt():
    """A network tilting a wide normal, so that the integral exists, trained by denoising score matching."""
    key = jax.random.key(1)
    network = ebm.MLPEnergy((2,), width=32, depth=2, key=jax.random.fold_in(key, 0))
    model = ebm.SumEnergy(network, energies.Gaussian(jnp.zeros(2), 4.0 * jnp.eye(2)))
    data = DATA.sample(jax.random.fold_in(key, 1), (2000,))
    result = ebm.fit(
        model,
        data,
        ebm.objectives.DenoisingScoreMatching(0.3),
        key=jax.random.fold_in(key, 2),
        optimizer=optax.adam(3e-3),
        num_steps=1500,
        batch_size=256,
        progress_bar=False,
    )
    return result.model


@pytest.mark.slow
def test_four_methods_agree_on_a_neural_energy(learnt, key):
    exact = normalizers.quadrature(learnt)
    keys = jax.random.split(key, 4)
    draws = ebm.parallel_tempering(learnt, key=keys[3], reference=START, num_samples=2000, progress_bar=False)
    estimates = [
        normalizers.annealed_importance(learnt, START, key=keys[0]),
        normalizers.sequential_monte_carlo(learnt, START, key=keys[1]),
        normalizers.bridge(learnt, draws, key=keys[2]),
    ]
    for estimate in [exact, *estimates]:
        print(estimate)  # noqa: T201
        assert estimate.ok
    assert exact.standard_error < 1e-3
    for estimate in estimates:
        error = np.hypot(estimate.standard_error, exact.standard_error)
        assert error < 0.1
        assert_close(estimate.value, exact.value, error, what=estimate.method)
        with pytest.raises(StatisticalError):
            assert_close(estimate.value, 0.0, error)  # the data's own log Z: the network's is another
