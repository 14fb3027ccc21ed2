"""`sample` as a tool: reproducible, checked, honest about trouble, interruptible, and compiled once."""

import itertools
import os
import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.sampling import _driver, _pace
from tests.compilation import count_lowerings

ENERGY = ebm.energies.Gaussian(jnp.zeros(2), jnp.diag(jnp.array([1.0, 4.0])))
SHORT = {"num_chains": 3, "num_warmup": 60, "num_samples": 40, "progress_bar": False}


def short(energy=ENERGY, kernel=None, **settings):
    return ebm.sample(energy, kernel, **({"key": jax.random.key(3)} | SHORT | settings))


class Conditional(ebm.AbstractEnergy):
    """N(condition, 1) in one dimension."""

    event_shape: tuple[int, ...] = eqx.field(static=True, default=(1,))

    def __call__(self, x, condition=None):
        return jnp.sum((x - condition) ** 2) / 2


def test_shapes_and_names():
    draws = short(thinning=2)
    assert draws.positions.shape == (3, 40, 2)
    assert draws.positions.dtype == np.float32
    assert {"lp", "acceptance_rate", "step_size", "diverging", "n_steps", "nonfinite_proposal"} <= set(draws.stats)
    assert all(values.shape == (3, 40) for values in draws.stats.values())
    assert (draws.stats["n_steps"] == 2).all()
    np.testing.assert_allclose(
        draws.stats["lp"], -jax.vmap(jax.vmap(ENERGY))(draws.positions), rtol=1e-5, atol=16 * np.finfo(np.float32).eps
    )


def test_same_key_same_draws_and_another_key_others():
    assert np.array_equal(short().positions, short().positions)
    assert not np.array_equal(short().positions, short(key=jax.random.key(4)).positions)


def test_legacy_key_gives_the_same_bits():
    assert np.array_equal(short().positions, short(key=jax.random.PRNGKey(3)).positions)


def test_a_chain_does_not_depend_on_how_many_there_are():
    assert np.array_equal(short(num_chains=3).positions, short(num_chains=5).positions[:3])


@pytest.mark.parametrize("first_chunk", [1, 7, 64])
def test_draws_do_not_depend_on_the_chunks(first_chunk, monkeypatch):
    expected = short()
    monkeypatch.setattr(_pace, "FIRST_CHUNK", first_chunk)
    monkeypatch.setattr(_pace, "CHUNK_SECONDS", 1e-9)
    draws = short()
    assert np.array_equal(draws.positions, expected.positions)
    assert all(np.array_equal(draws.stats[name], values) for name, values in expected.stats.items())


def test_thinning_keeps_every_kth_draw():
    settings = {"num_warmup": 0, "initial_positions": np.zeros((3, 2))}
    every, third = short(num_samples=60, **settings), short(num_samples=20, thinning=3, **settings)
    assert np.array_equal(third.positions, every.positions[:, 2::3])
    rate = every.stats["acceptance_rate"].reshape(3, 20, 3).mean(-1)
    np.testing.assert_allclose(third.stats["acceptance_rate"], rate, rtol=1e-6)


@pytest.mark.optimized  # else the two round apart, and a hundred transitions carry it further
def test_run_chains_is_the_same_program_under_jit():
    starts = np.ones((3, 2), np.float32)
    draws = short(initial_positions=starts)

    @jax.jit
    def run(starts):
        return ebm.sampling.run_chains(
            ENERGY, ebm.MALA(), starts, key=jax.random.key(3), num_warmup=60, num_samples=40
        )[:2]  # fmt: skip

    positions, stats = run(starts)
    np.testing.assert_allclose(positions, draws.positions, rtol=1e-5, atol=1e-5)
    assert set(stats) == set(draws.stats)


def test_the_second_call_compiles_nothing():
    short()
    with count_lowerings() as lowered:
        short()
        short(key=jax.random.key(9))
        short(kernel=ebm.MALA(0.02))  # another number is another array, not another program
    assert lowered == []
    with count_lowerings() as lowered:
        short(num_chains=4)
    assert lowered  # the counter can count


def test_conditions_shared_or_per_chain():
    shared = short(Conditional(condition_shape=(1,)), condition=jnp.array([5.0]), num_samples=400)
    assert abs(shared.positions.mean() - 5.0) < 0.5
    per_chain = short(Conditional(condition_shape=(1,)), condition=jnp.array([[-50.0], [0.0], [50.0]]), num_samples=400)
    assert np.all(np.abs(per_chain.positions.mean((1, 2)) - np.array([-50.0, 0.0, 50.0])) < 1.0)


def test_float64_is_kept():
    with jax.enable_x64():
        energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
        draws = ebm.sample(energy, key=jax.random.key(0), **SHORT)
        promoted = ebm.sample(energy, key=jax.random.key(0), initial_positions=np.zeros((3, 2), np.float32), **SHORT)
    assert draws.positions.dtype == np.float64
    assert draws.stats["lp"].dtype == np.float64
    assert promoted.positions.dtype == np.float64  # BlackJAX's noise is float64 there


@pytest.mark.parametrize("key", [None, 0, np.int64(1), jax.random.split(jax.random.key(0), 3), "seed"])
def test_bad_keys(key):
    with pytest.raises(ebm.KeyArgumentError, match="key"):
        short(key=key)


@pytest.mark.parametrize("name", ["num_chains", "num_samples", "thinning", "num_warmup"])
@pytest.mark.parametrize("value", [-1, 1.5, True, "4", None])
def test_bad_counts(name, value):
    with pytest.raises(ValueError, match=name):
        short(**{name: value})


def test_bad_settings():
    with pytest.raises(ValueError, match="precondition"):
        short(precondition="dense?")
    with pytest.raises(TypeError, match="FunctionEnergy"):
        short(energy=lambda x: x)
    with pytest.raises(TypeError, match="kernel"):
        short(kernel=0.1)
    with pytest.raises(ebm.EnergyShapeError, match=r"\(3, 2\).*\(3, 1\)"):
        short(initial_positions=np.zeros((3, 1)))
    with pytest.raises(ebm.EnergyDtypeError, match="initial_positions"):
        short(initial_positions=np.zeros((3, 2), int))
    with pytest.raises(ebm.EnergyShapeError, match="condition"):
        short(condition=np.zeros(1))
    with pytest.raises(ebm.EnergyShapeError, match="condition"):
        short(Conditional(condition_shape=(1,)))


@pytest.mark.parametrize(
    ("energy", "error", "match"),
    [
        (lambda x: x**2, ebm.EnergyShapeError, r"\(2,\)"),
        (lambda x: jnp.sum(x, keepdims=True), ebm.EnergyShapeError, r"\(1,\)"),
        (lambda x: None, ebm.EnergyShapeError, "None"),
        (lambda x: np.sum(np.asarray(x)), ebm.NonDifferentiableEnergyError, "jax.numpy"),
        (lambda x: jnp.sum(x) * jnp.nan, ebm.NonFiniteEnergyError, "chain 0"),
        (lambda x: jnp.sum(x) - jnp.inf, ebm.NonFiniteEnergyError, "unbounded below"),
        (lambda x: jnp.linalg.norm(0.0 * x), ebm.NonFiniteEnergyError, "gradient"),
    ],
)
def test_bad_energies_are_refused_before_anything_long(energy, error, match):
    with pytest.raises(error, match=match):
        short(ebm.FunctionEnergy(energy, (2,)))


def test_our_own_bad_starts_are_redrawn_and_recorded():
    half_line = ebm.FunctionEnergy(lambda x: jnp.sum(x) - jnp.sum(jnp.log(x)), (1,))
    with pytest.warns(ebm.SamplingWarning):  # NaN beyond 0
        draws = short(half_line, num_chains=64)
    assert draws.settings["redrawn_starts"] >= 1
    assert (draws.positions > 0).all()


def test_exploding_ula_is_stopped_and_named():
    with pytest.warns(ebm.SamplingWarning, match="4 of 4 chains .*DIVERGED") as caught:
        draws = short(ebm.FunctionEnergy(lambda x: jnp.sum(x**4), (2,)), ebm.ULA(0.5), num_chains=4, num_warmup=0)
    assert len(caught) == 1
    assert caught[0].message.chain == (0, 1, 2, 3)
    assert np.isfinite(draws.positions).all()
    assert not draws.ok
    for problem in draws.problems:
        first = int(np.argmax(draws.stats["diverging"][problem.chain]))
        assert (problem.code, problem.value) == ("DIVERGED", first)


def test_zero_acceptance_and_stuck_chains_are_named():
    with pytest.warns(ebm.SamplingWarning, match="ZERO_ACCEPTANCE"):
        draws = short(kernel=ebm.MALA(1e6), num_warmup=0, num_samples=200)
    assert {problem.code for problem in draws.problems} == {"ZERO_ACCEPTANCE"}
    with pytest.warns(ebm.SamplingWarning, match="STUCK_CHAIN"):
        draws = short(kernel=ebm.MALA(1e6), num_warmup=0, num_samples=20)
    assert {problem.code for problem in draws.problems} == {"STUCK_CHAIN"}


@pytest.mark.parametrize("energy", [lambda x: -jnp.sum(x), lambda x: -jnp.sum(jnp.exp(0.1 * x))])
def test_an_improper_energy_is_flagged(energy, key):
    with pytest.warns(ebm.SamplingWarning):
        draws = ebm.sample(
            ebm.FunctionEnergy(energy, (2,)), ebm.MALA(0.1), key=key, num_warmup=0, num_samples=1000, progress_bar=False
        )
    assert not draws.ok


def test_warmup_ends_where_no_step_size_is_too_large(key):
    """BlackJAX's search for a step size, begun at infinity, would go on for ever."""
    flat = ebm.FunctionEnergy(lambda x: 0.0 * jnp.sum(x), (2,))
    with pytest.warns(ebm.SamplingWarning) as warned:
        draws = ebm.sample(flat, key=key, num_warmup=200, num_samples=20, num_chains=2, progress_bar=False)
    assert "STUCK_CHAIN" in {problem.code for problem in draws.problems}
    assert any("flat, or falling without end" in str(warning.message) for warning in warned)


def test_strict_raises_and_loses_nothing():
    with pytest.raises(ebm.ChainFailedError, match="STUCK_CHAIN") as caught:
        short(kernel=ebm.MALA(1e6), num_warmup=0, num_samples=20, strict=True)
    assert caught.value.result.positions.shape == (3, 20, 2)


@pytest.mark.parametrize("num_warmup", [0, 60])
def test_ctrl_c_returns_a_prefix(num_warmup, monkeypatch):
    whole = short(num_samples=5000, num_warmup=num_warmup)
    monkeypatch.setattr(_pace, "FIRST_CHUNK", 5)
    monkeypatch.setattr(_pace, "CHUNK_SECONDS", 1e-9)
    before = signal.getsignal(signal.SIGINT)
    chunk, calls = _driver.Run._chunk, itertools.count()

    def interrupted(self, *args):
        if next(calls) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return chunk(self, *args)

    monkeypatch.setattr(_driver.Run, "_chunk", interrupted)
    with pytest.warns(ebm.SamplingWarning, match="INTERRUPTED"):
        part = short(num_samples=5000, num_warmup=num_warmup)
    assert not part.ok
    assert part.num_draws < 5000
    assert np.array_equal(part.positions, whole.positions[:, : part.num_draws])
    assert signal.getsignal(signal.SIGINT) is before


def test_progress_is_plain_text_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("ebm_ppl._progress.PLAIN_INTERVAL", 0.0)
    short(progress_bar=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("sampling: 100/100 steps, 0 s left, step size")
    assert "acceptance" in lines[-1]
    assert not any("\r" in line or "\x1b" in line for line in lines)
    short(progress_bar=False)
    assert capsys.readouterr().err == ""


def test_repr_says_what_matters():
    draws = short()
    assert repr(draws) == "Draws: 3 chains x 40 draws of shape (2,), MALA, ok"
    assert "Draws: 3 chains" in draws._repr_html_()
