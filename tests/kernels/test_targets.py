"""Every adjusted kernel on every target: moments, agreement of chains; and eight broken kernels that must fail.

The complete table is a slow study (`-m slow`); a part of it belongs to the unit suite.
"""

import functools
import warnings

import jax
import numpy as np
import pytest

import ebm_ppl as ebm
from tests.broken_kernels import FAULTS, BrokenMALA
from tests.kernels import targets
from tests.kernels.targets import judge
from tests.statistics import StatisticalError

FAMILY_WISE_ERROR = 1e-3  # of the whole table: every cell gets its share

TARGETS = {
    "normal_2": functools.partial(targets.gaussian, 2),
    "normal_100": functools.partial(targets.gaussian, 100),
    "banana": targets.banana,
    "funnel": targets.funnel,
    "student_t": targets.student_t,
    "double_well": targets.double_well,
    "truncated": targets.truncated,
    "log_gamma": targets.log_gamma,
}
KERNELS = {
    "MALA": lambda target: ebm.MALA(),
    "Barker": lambda target: ebm.Barker(),
    "RandomWalk": lambda target: ebm.RandomWalk(),
    "HMC": lambda target: ebm.HMC(),
    "NUTS": lambda target: ebm.NUTS(),
    "AdjustedMCLMC": lambda target: ebm.kernels.AdjustedMCLMC(),
    "GeneralizedHMC": lambda target: ebm.kernels.GeneralizedHMC(),
    "EllipticalSlice": lambda target: ebm.kernels.EllipticalSlice(target.base),
}
STUDY = [name for name in TARGETS if name != "log_gamma"]
CELL_ERROR = FAMILY_WISE_ERROR / (len(STUDY) * len(KERNELS))
ONE_STEP = {"MALA", "Barker", "RandomWalk", "GeneralizedHMC"}  # one evaluation per transition
THINNING = {  # of the kernels with one evaluation per transition; R-hat < 1.01 needs some 2000 effective draws
    "normal_2": 20,
    "normal_100": 100,
    "banana": 80,
    "funnel": 8,
    "student_t": 10,
    "double_well": 30,
    "truncated": 4,
}


def draw(target, kernel, key, **settings):
    """Draws whose faults are expected and counted: a NaN beyond the wall, a trajectory that diverges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ebm.SamplingWarning)
        return ebm.sample(target.energy, kernel, key=key, progress_bar=False, **settings)


def study_settings(target_name, kernel_name):
    settings = {"num_chains": 8, "num_warmup": 2000, "num_samples": 4000, "thinning": 4}
    if kernel_name in ONE_STEP:
        settings |= {"thinning": THINNING[target_name]}
    if (target_name, kernel_name) == ("normal_100", "RandomWalk"):
        # Unpreconditioned, 100 dimensions of condition number 100 cost it some 30,000 steps per independent draw.
        settings |= {"precondition": "dense", "pool_warmup": True, "num_warmup": 60_000}
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("target_name", STUDY)
@pytest.mark.parametrize("kernel_name", KERNELS)
def test_every_adjusted_kernel_on_every_target(kernel_name, target_name, key):
    target = TARGETS[target_name]()
    draws = draw(target, KERNELS[kernel_name](target), key, **study_settings(target_name, kernel_name))
    judge(target, draws.positions, CELL_ERROR)
    if target_name == "truncated":
        assert (draws.positions[..., 0] < 1).all()
        assert draws.stats["nonfinite_proposal"].any()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_every_broken_kernel_fails_in_the_study(fault, key):
    """Not only somewhere; but MALA with a stale gradient is, on normal targets, too good to be caught by this test."""
    names = [name for name in STUDY if name != "normal_100"]
    failed = {name for name in names if fails(name, fault, key, study_settings(name, "MALA"))}
    assert failed >= ({"truncated"} if fault == "nan_accepted" else {"banana", "funnel", "student_t", "double_well"})


def fails(target_name, fault, key, settings):
    target = TARGETS[target_name]()
    try:
        judge(target, draw(target, BrokenMALA(fault=fault), key, **settings).positions, CELL_ERROR)
    except StatisticalError:
        return True
    return False


SHORT = {"num_chains": 8, "num_warmup": 500, "num_samples": 2000, "thinning": 4}


@pytest.mark.parametrize("kernel_name", KERNELS)
def test_every_adjusted_kernel_on_an_asymmetric_target(kernel_name, key):
    target = targets.log_gamma()
    draws = draw(target, KERNELS[kernel_name](target), key, **SHORT)
    judge(target, draws.positions, FAMILY_WISE_ERROR / len(KERNELS))
    assert draws.ok


def test_nan_beyond_a_wall_is_rejected_and_counted(key):
    target = targets.truncated()
    draws = draw(target, ebm.RandomWalk(), key, **SHORT)
    judge(target, draws.positions, FAMILY_WISE_ERROR)
    assert (draws.positions[..., 0] < 1).all()
    assert {problem.code for problem in draws.problems} == {"NONFINITE_PROPOSAL"}
    assert draws.stats["nonfinite_proposal"].sum() == sum(problem.value for problem in draws.problems)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_broken_kernel_fails(fault, key):
    failed = {name for name in ("log_gamma", "truncated") if fails(name, fault, key, SHORT)}
    assert failed >= ({"truncated"} if fault == "nan_accepted" else {"log_gamma"})


def test_the_kernel_without_a_fault_passes(key):
    assert not any(fails(name, "", key, SHORT) for name in ("log_gamma", "truncated"))


def test_the_judge_is_not_fooled_by_frozen_or_disagreeing_chains():
    target = targets.gaussian(2)
    draws = np.asarray(target.energy.sample(jax.random.key(0), (4, 1000)))
    judge(target, draws, 1e-3)
    with pytest.raises(StatisticalError):
        judge(target, np.repeat(draws[:, :1], 1000, axis=1), 1e-3)
    pooled = draws.reshape(-1, 2)
    disagreeing = pooled[np.argsort(pooled[:, 0])].reshape(draws.shape)
    with pytest.raises(StatisticalError, match="R-hat"):
        judge(target, disagreeing, 1e-3)
    with pytest.raises(StatisticalError):
        judge(target, np.where(draws > 15, np.nan, draws), 1e-3)
