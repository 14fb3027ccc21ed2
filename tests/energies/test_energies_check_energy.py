"""The pre-flight checks: each fault is named by its own check, and honest energies pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl as ebm
from ebm_ppl.energies import Banana, DoubleWell, Funnel, Gaussian, GaussianMixture, ManyWell, Ring, Rosenbrock, StudentT
from ebm_ppl.energies._tails import final_slope, slowest_ray


def function(fn, dim=2):
    return ebm.FunctionEnergy(fn, (dim,))


def multivariate_t(x):
    """One degree of freedom in five dimensions: the slope, 6, is barely above the dimension."""
    return 3 * jnp.log1p(jnp.sum(x**2))


PROPER = {
    "gaussian": Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]]),
    "narrow": Gaussian(jnp.zeros(2), 1e-6 * jnp.eye(2)),
    "wide": Gaussian(jnp.zeros(2), 1e6 * jnp.eye(2)),
    "mixture": GaussianMixture([0.3, 0.7], [-1.0, 8.0], [0.5, 0.2]),
    "double well": DoubleWell(3.0, dim=3),
    "funnel": Funnel(),
    "banana": Banana(),
    "rosenbrock": Rosenbrock(),
    "ring": Ring(),
    "many well": ManyWell(dim=4),
    "cauchy": StudentT(1.0, 0.0),
    "cauchy product": StudentT(1.0, jnp.zeros(10)),
    "wide cauchy": StudentT(1.0, jnp.zeros(2), 100.0),
    "half a degree of freedom": StudentT(0.5, jnp.zeros(2)),
    "log(1 + x²)": function(lambda x: jnp.log1p(x[0] ** 2), 1),
    "multivariate cauchy": function(multivariate_t, 5),
    "laplace": function(lambda x: jnp.sum(jnp.abs(x)), 3),
    "square root": function(lambda x: jnp.sum(jnp.sqrt(jnp.abs(x))), 3),
    "logistic": function(lambda x: jnp.sum(jax.nn.softplus(x) + jax.nn.softplus(-x))),
    "box": function(lambda x: jnp.where(jnp.all(jnp.abs(x) < 3), 0.0, jnp.inf)),
    "half line": function(lambda x: jnp.sum(x) - jnp.sum(jnp.log(x))),
    "wavy": function(lambda x: jnp.sum(3 * jnp.log1p(x**2) + jnp.sin(x))),
}

IMPROPER = {
    "-sum x": lambda x: -jnp.sum(x),
    "-x⁴": lambda x: -jnp.sum(x**4),
    "log(1 + x²)/4": lambda x: jnp.sum(jnp.log1p(x**2)) / 4,
    "flat": lambda x: 0.0 * jnp.sum(x),
    "flat in one direction": lambda x: (x[0] + x[1]) ** 2 / 2 + 0.0 * x[0],
    "one coordinate down": lambda x: x[0] ** 2 - x[1],
    "one coordinate slow": lambda x: x[0] ** 2 + jnp.log1p(x[1] ** 2) / 4,
    "bounded": lambda x: jnp.tanh(jnp.sum(x**2)),
    "radial at the limit": lambda x: jnp.log1p(jnp.sum(x**2)),
    "cubic": lambda x: jnp.sum(x**3),
}


@pytest.mark.parametrize("name", PROPER)
def test_proper_energies_pass_the_tail_check(name):
    """Row 13: at most 1 false alarm in 400; here the fixed seeds must give none."""
    energy = PROPER[name]
    start = jnp.full(energy.event_shape, 0.7, jnp.float32)
    for seed in range(5):
        assert slowest_ray(energy, start, None, jax.random.key(seed)) is None, seed


@pytest.mark.parametrize("name", [name for name in IMPROPER if name != "flat in one direction"])
def test_improper_energies_fail_the_tail_check(name):
    """Row 12: at least 19 of 20 seeds."""
    energy = function(IMPROPER[name])
    found = [slowest_ray(energy, jnp.full(2, 0.7), None, jax.random.key(seed)) is not None for seed in range(20)]
    assert sum(found) >= 19


def test_flat_in_one_direction_off_the_axes_is_not_found():
    """What the check cannot do: a single flat direction has measure zero and is on no axis."""
    energy = function(IMPROPER["flat in one direction"])
    assert slowest_ray(energy, jnp.full(2, 0.7), None, jax.random.key(0)) is None


def test_network_without_base_is_flagged_and_with_base_passes():
    energy = ebm.MLPEnergy((3,), width=8, key=jax.random.key(0))
    report = ebm.check_energy(energy, jnp.ones(3))
    assert [problem.code for problem in report.problems] == ["POSSIBLY_IMPROPER"]
    assert "SumEnergy(energy, Gaussian" in repr(report)
    based = ebm.SumEnergy(energy, Gaussian(jnp.zeros(3), jnp.eye(3)))
    assert slowest_ray(based, jnp.ones(3), None, jax.random.key(0)) is None


@pytest.mark.parametrize(
    ("energies", "slope"),
    [
        (2 * np.log(4.0) * np.arange(13), 2.0),
        (np.r_[np.arange(6.0), np.inf, np.inf], np.inf),
        (np.r_[np.arange(6.0), -np.inf, np.nan], -np.inf),
        (np.r_[np.log(4.0) * np.arange(6.0), np.nan, np.inf], 1.0),
        (np.r_[0.0, 1.0, np.nan, 3.0], None),
    ],
)
def test_slope_of_a_ray(energies, slope):
    assert final_slope(energies) == (slope if slope is None else pytest.approx(slope))


@pytest.mark.parametrize(
    ("fn", "name", "code", "error", "words"),
    [
        (lambda x: x, "shape", "ENERGY_SHAPE", ebm.EnergyShapeError, r"got shape \(2,\)"),
        (lambda x: None, "shape", "ENERGY_SHAPE", ebm.EnergyShapeError, "no return"),
        (
            lambda x: jnp.argmax(x).astype(jnp.int32),
            "dtype",
            "ENERGY_DTYPE",
            ebm.EnergyDtypeError,
            "must return a floating scalar",
        ),
        (lambda x: jnp.sum(jnp.log(-x)), "finite", "NONFINITE_ENERGY", ebm.NonFiniteEnergyError, "is NaN at x"),
        (lambda x: jnp.linalg.norm(x - 0.7), "finite", "NONFINITE_ENERGY", ebm.NonFiniteEnergyError, "gradient"),
        (
            lambda x: jnp.asarray(np.sum(np.exp(x))),
            "differentiable",
            "NON_DIFFERENTIABLE",
            ebm.NonDifferentiableEnergyError,
            "NumPy",
        ),
        (
            lambda x: jax.lax.while_loop(lambda v: v < 10, lambda v: 2 * v, 1 + jnp.sum(x**2)),
            "differentiable",
            "NON_DIFFERENTIABLE",
            ebm.NonDifferentiableEnergyError,
            "scan",
        ),
        (
            lambda x: jnp.sum(jnp.round(x) ** 2),
            "differentiable",
            "ZERO_GRADIENT",
            ebm.NonDifferentiableEnergyError,
            "round",
        ),
        (
            lambda x: jax.lax.stop_gradient(jnp.sum(x**2)),
            "differentiable",
            "ZERO_GRADIENT",
            ebm.NonDifferentiableEnergyError,
            "exactly zero",
        ),
        (
            lambda x: jnp.sum(x**2) + 2 * jax.lax.stop_gradient(jnp.sum(x**2)),
            "differentiable",
            "WRONG_GRADIENT",
            ebm.NonDifferentiableEnergyError,
            "is not its derivative",
        ),
        (lambda x: x[0] ** 2, "coordinates", "UNUSED_COORDINATE", ebm.EnergyShapeError, r"1 of 2 coordinates.*x\[1\]"),
        (lambda x: -jnp.sum(x**4), "tails", "POSSIBLY_IMPROPER", ValueError, "grows too slowly"),
    ],
)
def test_each_fault_fails_its_own_check(fn, name, code, error, words):
    energy = function(fn)
    report = ebm.check_energy(energy, jnp.full(2, 0.7))
    outcomes = {item.name: item.outcome for item in report.checks}
    assert not report.ok
    assert report.problems[0].code == code
    assert outcomes[name] == "FAILED"
    with pytest.raises(error, match=words):
        ebm.check_energy(energy, jnp.full(2, 0.7), strict=True)


def test_a_wrong_event_is_reported():
    report = ebm.check_energy(PROPER["gaussian"], jnp.ones(3))
    assert [item.outcome for item in report.checks] == ["FAILED"] + ["not run"] * 5
    assert ebm.check_energy(PROPER["gaussian"], jnp.ones(2, jnp.int32)).problems[0].code == "ENERGY_DTYPE"
    assert ebm.check_energy(PROPER["gaussian"], jnp.ones(2), jnp.ones(1)).problems[0].code == "ENERGY_SHAPE"


@pytest.mark.parametrize("name", ["gaussian", "rosenbrock", "laplace", "cauchy", "wavy", "funnel"])
def test_honest_energies_pass_everything(name):
    energy = PROPER[name]
    for seed in range(3):
        report = ebm.check_energy(energy, jnp.full(energy.event_shape, 0.7), key=jax.random.key(seed), strict=True)
        assert report.ok, report


def test_conditional_energy_and_double_precision():
    energy = ebm.SumEnergy(
        ebm.MLPEnergy((2,), width=4, key=jax.random.key(0), condition_shape=(3,)), Gaussian(jnp.zeros(2), jnp.eye(2))
    )
    assert ebm.check_energy(energy, jnp.ones(2), jnp.ones(3)).ok
    with jax.enable_x64(True):
        report = ebm.check_energy(PROPER["gaussian"], jnp.ones(2, jnp.float64))
        assert report.ok
        assert "float64" in repr(report)


def test_report_reads_well():
    report = ebm.check_energy(function(lambda x: x[0] ** 2), jnp.ones(2))
    lines = repr(report).splitlines()
    assert lines[0] == "EnergyCheck of FunctionEnergy(<lambda>): 4 of 6 checks passed"
    assert [line.split()[1] for line in lines[1:]] == [
        "shape",
        "dtype",
        "finite",
        "differentiable",
        "coordinates",
        "tails",
    ]
    page = report._repr_html_()
    assert "&lt;lambda&gt;" in page
    assert page.count("<tr>") == 6


def test_many_coordinates():
    energy = function(lambda x: jnp.sum(x[:4990] ** 2), 5000)
    report = ebm.check_energy(energy, jnp.ones(5000))
    assert "10 of 5000 coordinates" in repr(report)
