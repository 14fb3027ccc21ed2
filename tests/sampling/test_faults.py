"""Faults of a run, each with what must happen then; those of energies are in tests/energies."""

import contextlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ebm_ppl as ebm

NORMAL = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
SHORT = {"num_chains": 4, "num_warmup": 0, "num_samples": 120, "progress_bar": False}


def trap(x):
    """N(0, 1), and far off a well so narrow that no proposal falls into it."""
    return jnp.where(x[0] < 50, jnp.sum(x**2) / 2, 1e8 * jnp.sum((x - 100) ** 2))


def test_one_stuck_chain_of_four_is_named(key):
    starts = jnp.zeros((4, 1)).at[2].set(100.0)
    with pytest.warns(ebm.SamplingWarning, match=r"1 of 4 chains \(chain 2\): ZERO_ACCEPTANCE"):
        draws = ebm.sample(ebm.FunctionEnergy(trap, (1,)), ebm.MALA(0.5), key=key, initial_positions=starts, **SHORT)
    assert [(problem.code, problem.chain) for problem in draws.problems] == [("ZERO_ACCEPTANCE", 2)]
    assert "ZERO_ACCEPTANCE" in ebm.diagnose(draws).codes


def test_zero_acceptance_shows_while_the_run_goes_on(key, capsys, monkeypatch):
    monkeypatch.setattr("ebm_ppl._progress.PLAIN_INTERVAL", 0.0)
    with pytest.warns(ebm.SamplingWarning, match="ZERO_ACCEPTANCE"):
        ebm.sample(NORMAL, ebm.MALA(1e6), key=key, **(SHORT | {"progress_bar": True}))
    lines = capsys.readouterr().err.splitlines()
    assert "chains without acceptance 4 of 4" in lines[-1]
    assert "chains without acceptance" not in lines[1]  # fewer than 100 steps so far


def mostly_nan(x):
    """A normal law on a sliver; NaN everywhere else."""
    return jnp.where(jnp.abs(x[0]) < 0.1, jnp.sum(x**2) / 2, jnp.nan)


def test_a_chain_that_meets_mostly_nan_is_not_to_be_used(key):
    with pytest.warns(ebm.SamplingWarning, match="NONFINITE_PROPOSAL"):
        draws = ebm.sample(
            ebm.FunctionEnergy(mostly_nan, (1,)), ebm.MALA(1.0), key=key, initial_positions=np.zeros((4, 1)), **SHORT
        )
    nonfinite = [problem for problem in draws.problems if problem.code == "NONFINITE_PROPOSAL"]
    assert [problem.value for problem in nonfinite] == draws.stats["nonfinite_proposal"].sum(1).tolist()
    assert all("do not use this chain" in problem.advice for problem in nonfinite)


@pytest.mark.parametrize("event_shape", [(), (1,), (10_000,), (2, 3, 4)])
def test_one_chain_one_draw_any_shape(event_shape, key):
    energy = ebm.FunctionEnergy(lambda x: jnp.sum(x**2) / 2, event_shape)
    draws = ebm.sample(energy, key=key, num_chains=1, num_warmup=20, num_samples=1, progress_bar=False)
    assert draws.positions.shape == (1, 1, *event_shape)
    assert np.isfinite(draws.positions).all()


def test_too_many_transitions_are_refused(key):
    for counts in ({"thinning": 2**31}, {"num_warmup": 10**30}, {"num_samples": 2**16, "thinning": 2**15}):
        with pytest.raises(ValueError, match=r"`num_warmup` \+ `num_samples` \* `thinning` must be below"):
            ebm.sample(NORMAL, key=key, **(SHORT | counts))


JUNK = [
    None, -1, -(10**30), 2.5, np.nan, np.inf, -np.inf, "", "junk", b"junk", [], {}, (), [1, "a"], object(), len, int,
    1j, np.array(["a"]), np.zeros((0,)), np.zeros((7, 7)), np.array(None), np.datetime64(0, "s"), jnp.zeros(5, bool),
]  # fmt: skip
CALLS = {
    "sample": (ebm.sample, {"energy": NORMAL, "kernel": ebm.MALA(), "key": jax.random.key(0), "num_chains": 2,
                            "num_warmup": 0, "num_samples": 1, "thinning": 1, "initial_positions": np.ones((2, 2)),
                            "init_strategy": "uniform", "condition": np.ones(1), "precondition": "none"}),
    "ula_within_bias": (ebm.sampling.ula_within_bias,
                        {"energy": NORMAL, "positions": np.ones((1, 2)), "key": jax.random.key(0),
                         "relative_bias": 0.1, "num_iterations": 3}),
    "DataSumEnergy": (ebm.energies.DataSumEnergy, {"prior": NORMAL, "term": NORMAL, "data": np.ones((2, 2))}),
    **{
        name: (getattr(ebm.kernels, name), {argument: 1.0 for argument in arguments})
        for name, arguments in {
            "ULA": ["step_size", "largest_curvature"], "MALA": ["step_size"], "HMC": ["num_integration_steps"],
            "NUTS": ["step_size", "max_num_doublings"], "Barker": ["step_size"], "RandomWalk": ["step_size"],
            "MCLMC": ["step_size", "decoherence_length"], "GeneralizedHMC": ["step_size", "damping"],
            "SGLD": ["step_size", "batch_size"], "SGHMC": ["step_size", "friction", "batch_size"],
            "AnnealedLangevin": ["levels", "step_size", "over", "num_steps"], "EllipticalSlice": ["base", "step_size"],
        }.items()
    },
}  # fmt: skip
DOCUMENTED = (ValueError, TypeError, MemoryError, NotImplementedError, ebm.EbmPplError)


@settings(max_examples=500, deadline=10_000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(CALLS)), st.integers(0, 10**6), st.sampled_from(range(len(JUNK))))
def test_junk_arguments_raise_documented_exceptions_only(name, which, junk):
    """Whatever is passed for one argument: a result, or an exception that the docstring knows; quickly."""
    call, arguments = CALLS[name]
    argument = sorted(arguments)[which % len(arguments)]
    others = {key: value for key, value in arguments.items() if name in ("sample", "ula_within_bias", "DataSumEnergy")}
    assert argument in inspect.signature(call).parameters
    with contextlib.suppress(*DOCUMENTED):
        call(**(others | {argument: JUNK[junk]}))
