"""What a run shows while it goes on, and what it refuses before it begins."""

import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.sampling import _memory
from ebm_ppl.sampling._live import MAX_BATCHES, LiveDiagnostics


def autoregressive(coefficient, num_draws, num_chains=4, coordinates=3, seed=0):
    """AR(1) chains of unit variance: ESS / n is (1 - r) / (1 + r), r the coefficient."""
    rng = np.random.default_rng(seed)
    draws = np.empty((num_draws, num_chains, coordinates))
    draws[0] = rng.normal(size=draws.shape[1:])
    for t in range(1, num_draws):
        draws[t] = coefficient * draws[t - 1] + np.sqrt(1 - coefficient**2) * rng.normal(size=draws.shape[1:])
    return draws


def live_of(draws, chunks):
    live = LiveDiagnostics()
    for part in np.split(draws, chunks):
        live.add(part)
    return live


@pytest.mark.parametrize("coefficient", [0.0, 0.9])
def test_the_live_estimates_agree_with_the_closed_form_and_arviz(coefficient):
    draws = autoregressive(coefficient, 20_000)
    live = live_of(draws, [7, 100, 5000, 5001])
    exact = 4 * len(draws) * (1 - coefficient) / (1 + coefficient)
    assert 0.6 * exact < live.slowest_ess < 1.3 * exact  # batch means: some 128 of them, the worst of three coordinates
    arviz = max(float(arviz_stats.base.array_stats.rhat(draws[..., i].T, method="split")) for i in range(3))
    assert live.worst_rhat == pytest.approx(arviz, abs=5e-4)


def test_disagreeing_and_frozen_chains_show():
    draws = autoregressive(0.0, 1000)
    draws[:, 0] += 3.0
    assert live_of(draws, [500]).worst_rhat > 1.5
    draws[:, :, 1] = 1.0
    live = live_of(draws, [500])
    assert live.slowest_ess == 0
    assert live_of(np.ones((100, 4, 1)), [50]).facts() == {"slowest ESS": "0", "worst R-hat": "undefined"}


def test_memory_is_bounded_and_chunks_do_not_matter():
    draws = autoregressive(0.5, 6000, num_chains=50, coordinates=40)
    whole, parts = live_of(draws, []), live_of(draws, np.cumsum([1, 2, 3, 500, 1, 4000]))
    assert whole._sums.shape == parts._sums.shape == (6000 // 32, 16, 16)
    assert len(whole._sums) < 2 * MAX_BATCHES
    np.testing.assert_allclose(whole._sums, parts._sums)
    np.testing.assert_allclose(whole._squares, parts._squares)
    assert LiveDiagnostics().facts() == {}


def test_progress_shows_them(capsys, monkeypatch):
    monkeypatch.setattr("ebm_ppl._progress.PLAIN_INTERVAL", 0.0)
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    ebm.sample(energy, key=jax.random.key(0), num_chains=3, num_warmup=60, num_samples=100)
    last = capsys.readouterr().err.splitlines()[-1]
    for word in ("160/160 steps", "0 s left", "step size", "non-finite 0", "acceptance", "slowest ESS", "worst R-hat"):
        assert word in last


ENERGY = ebm.energies.Gaussian(jnp.zeros(100), jnp.eye(100))


def test_too_many_draws_are_refused_before_anything_is_allocated():
    with pytest.raises(ebm.InsufficientMemoryError, match=r"draws .*GiB are free.*`store=`") as caught:
        ebm.sample(ENERGY, key=jax.random.key(0), num_samples=10**9, progress_bar=False)
    assert isinstance(caught.value, MemoryError)
    with pytest.raises(MemoryError, match="num_chains"):
        ebm.sample(ENERGY, key=jax.random.key(0), num_chains=10**9, num_samples=1, progress_bar=False)


def need(**settings):
    """GiB that a run is said to need."""
    default = {"num_chains": 4, "num_samples": 1000, "event_shape": (100,), "itemsize": 4, "precondition": "diagonal",
               "stored": False}  # fmt: skip
    with pytest.raises(ebm.InsufficientMemoryError) as caught:
        _memory.check_memory(**(default | settings))
    return float(str(caught.value).split("about ")[1].split(" GiB")[0])


def test_the_estimate_is_what_the_arrays_take(monkeypatch):
    monkeypatch.setattr(_memory, "free_memory", lambda: 0.0)
    exact = 2 * 4e6 * (400 + _memory.STATS_BYTES) / 2**30
    assert exact < need(num_samples=1_000_000) < 1.1 * exact + 0.25  # a chunk is at most 64 MiB, twice
    assert need(num_samples=1_000_000, stored=True) < 0.25
    assert need(num_chains=10_000, precondition="dense") > 10_000 * 6 * 100**2 * 4 / 2**30
    monkeypatch.setattr(_memory, "free_memory", lambda: 10.0 * 2**30)
    _memory.check_memory(
        num_chains=4, num_samples=1000, event_shape=(100,), itemsize=4, precondition="dense", stored=False
    )
    monkeypatch.setattr(_memory, "free_device_memory", lambda: 2.0**20)
    with pytest.raises(ebm.InsufficientMemoryError, match="on the device"):
        _memory.check_memory(
            num_chains=4, num_samples=1000, event_shape=(100,), itemsize=4, precondition="dense", stored=True
        )


def test_the_limit_of_the_address_space_counts():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = _memory.free_memory()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (2**45, hard))
        assert _memory._address_space() < 2**45
        assert _memory.free_memory() <= before * 1.5
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
