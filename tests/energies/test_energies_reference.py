"""log Z of every reference energy against quadrature of the energy itself, gradients, dtypes, misuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

import ebm_ppl as ebm
from ebm_ppl.energies import Banana, DoubleWell, Funnel, Gaussian, GaussianMixture, ManyWell, Ring, Rosenbrock, StudentT

LOG_2PI = np.log(2 * np.pi)
COVARIANCES = np.array([[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.2], [-0.2, 0.6]]])

ENERGIES = {
    "gaussian": lambda: Gaussian([1.0, -0.5], COVARIANCES[0]),
    "scalar gaussian": lambda: Gaussian(1.0, 0.3),
    "mixture": lambda: GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [2.0, 0.0]], COVARIANCES),
    "scalar mixture": lambda: GaussianMixture([0.3, 0.7], [-1.0, 2.0], [0.5, 0.2]),
    "double well": lambda: DoubleWell(1.5, dim=2),
    "funnel": lambda: Funnel(dim=2, scale=1.0),
    "banana": lambda: Banana(0.4, 1.2),
    "rosenbrock": lambda: Rosenbrock(1.0, 5.0),
    "ring": lambda: Ring(1.0, 0.4),
    "many well": lambda: ManyWell(dim=2),
    "student t": lambda: StudentT(3.0, [0.5, -1.0], [2.0, 0.5]),
    "scalar student t": lambda: StudentT(1.0, 0.5, 2.0),
}


def log_integral(energy, half_width, num=401):
    """log ∫ exp(-E) in one or two dimensions by the trapezoidal rule on x = sinh(t), which long tails need."""
    t = np.linspace(-half_width, half_width, num)
    dims = max(1, int(np.prod(energy.event_shape)))
    grid = np.stack(np.meshgrid(*[t] * dims, indexing="ij"), -1).reshape((-1, *energy.event_shape))
    log_jacobian = np.log(np.cosh(grid)).reshape(len(grid), -1).sum(1)
    values = -np.asarray(jax.jit(jax.vmap(energy))(jnp.asarray(np.sinh(grid)))) + log_jacobian
    return special.logsumexp(values) + dims * np.log(t[1] - t[0])


@pytest.mark.parametrize("name", ENERGIES)
def test_log_normalizer_is_the_integral(name):
    with jax.enable_x64(True):
        energy = ENERGIES[name]()
        width = {"scalar student t": 36.0, "student t": 14.0, "funnel": 6.0}.get(name, 4.0)
        accuracy = 1e-6 if "student" in name or name == "funnel" else 1e-8
        exact = float(energy.log_normalizer)
        assert abs(exact - log_integral(energy, width)) < accuracy
    single = ENERGIES[name]().log_normalizer
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, exact, atol=1e-5)


def test_truths_of_the_double_well():
    """Truths A3: log Z by barrier."""
    for barrier, truth in (
        (1.0, 0.6799262428937866),
        (2.0, 0.34423821972960894),
        (4.0, -0.05357185361589506),
        (8.0, -0.4395855454795299),
    ):
        np.testing.assert_allclose(DoubleWell(barrier).log_normalizer, truth, atol=1e-6)
        np.testing.assert_allclose(DoubleWell(barrier, dim=3).log_normalizer, 3 * truth, atol=3e-6)


def test_double_well_log_normalizer_is_bessels_for_every_barrier():
    barriers = np.geomspace(1e-3, 1e4, 57)
    half = barriers / 2
    bessel = np.log(np.pi / 2) + np.log(special.ive(-0.25, half) + special.ive(0.25, half))
    with jax.enable_x64(True):

        def log_normalizer(barrier):
            return DoubleWell(barrier).log_normalizer

        ours = jax.jit(jax.vmap(log_normalizer))(jnp.asarray(barriers))
        np.testing.assert_allclose(ours, bessel, atol=1e-13)
        check_grads(log_normalizer, (jnp.asarray(39.9),), order=2, modes=["rev"])
        check_grads(log_normalizer, (jnp.asarray(0.1),), order=2, modes=["rev"])


def test_truths_of_rosenbrock_funnel_and_many_well():
    """Truths A6 and A7 (the funnel without its middle term: larger by scale² (d-1)²/8), and FAB's constant."""
    np.testing.assert_allclose(Rosenbrock(1 / 20, 5).log_normalizer, 1.8378770664093453, rtol=1e-6)
    np.testing.assert_allclose(
        Rosenbrock(2.0, 5.0, dim=4).log_normalizer, np.log(np.pi**2 / np.sqrt(2 * 125)), rtol=1e-6
    )
    np.testing.assert_allclose(Funnel().log_normalizer + 81 * 9 / 8, 101.41299762071483, rtol=1e-6)
    expected = 16 * (np.log(11784.50927) + LOG_2PI / 2)
    np.testing.assert_allclose(ManyWell().log_normalizer, expected, rtol=1e-7)


def test_known_energies():
    """PEERS cases 2 and 4."""
    well = DoubleWell(2.0)
    assert float(well(jnp.ones(1))) == float(well(-jnp.ones(1))) == 0
    assert float(well(jnp.array([0.5]))) == 1.125
    assert float(ebm.score(well, jnp.array([0.5]))[0]) == 3
    valley = Rosenbrock(1, 100)
    assert float(Rosenbrock(1, 100, dim=3)(jnp.ones(3))) == 0
    assert float(valley(jnp.zeros(2))) == 1
    np.testing.assert_allclose(valley(jnp.array([-1.2, 1.0])), 24.2, rtol=1e-6)
    np.testing.assert_allclose(Ring(2.0, 0.25)(jnp.array([2.1, 0.0])), 0.1**2 / (2 * 0.25**2), rtol=0.06)


@pytest.mark.parametrize("name", ENERGIES)
def test_gradient_jit_vmap_and_dtypes(name, key):
    with jax.enable_x64(True):
        energy = ENERGIES[name]()
        x = jax.random.normal(key, (3, *energy.event_shape), jnp.float64)
        check_grads(lambda event: energy(jnp.asarray(event)), (x[0],), order=1, modes=["rev"])
        eager = np.array([energy(row) for row in x])
        np.testing.assert_allclose(jax.jit(jax.vmap(energy))(x), eager, rtol=1e-13)
        assert eager.dtype == np.float64
        single = energy(x[0].astype(jnp.float32))  # the event's dtype decides, whatever the parameters'
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, eager[0], rtol=1e-4)


@pytest.mark.parametrize("name", ENERGIES)
def test_shapes_of_draws_and_wrong_events(name, key):
    energy = ENERGIES[name]()
    draws = energy.sample(key, (2, 3))
    assert draws.shape == (2, 3, *energy.event_shape)
    assert draws.dtype == jnp.float32
    with pytest.raises(ebm.EnergyShapeError):
        energy(jnp.zeros((*energy.event_shape, 1)))
    with pytest.raises(ebm.EnergyShapeError, match="takes no condition"):
        energy(draws[0, 0], jnp.zeros(1))


def test_far_tails_stay_finite():
    mixture = ENERGIES["mixture"]()
    far = jnp.array([1e6, -1e6])
    assert 1e11 < float(mixture(far)) < 1e13
    assert bool(jnp.all(jnp.isfinite(ebm.score(mixture, far))))
    assert float(Funnel(dim=2)(jnp.array([-120.0, 0.0]))) == pytest.approx(120**2 / 18 - 60)
    np.testing.assert_allclose(StudentT(1.0, 0.0)(jnp.asarray(1e15)), 2 * np.log(1e15), rtol=1e-6)


def test_student_t_becomes_gaussian():
    x = jnp.asarray(1.3)
    heavy = StudentT(1e6, 0.0)
    np.testing.assert_allclose(heavy(x) + heavy.log_normalizer, 1.3**2 / 2 + LOG_2PI / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianMixture([0.5, 0.6], [0.0, 1.0], [1.0, 1.0]), "sum to 1; got a sum of 1.1"),
        (lambda: GaussianMixture([1.5, -0.5], [0.0, 1.0], [1.0, 1.0]), "`weights` must be positive"),
        (lambda: GaussianMixture(1.0, [0.0], [1.0]), "`weights` must have 1 axes"),
        (lambda: GaussianMixture([0.5, 0.5], [0.0], [1.0, 1.0]), "`means` must have shape"),
        (lambda: GaussianMixture([0.5, 0.5], [0.0, 1.0], [1.0]), "`covariances` must have 2 entries"),
        (lambda: GaussianMixture([0.5, 0.5], np.zeros((2, 2)), [np.eye(2)]), "`covariances` must have 2 entries"),
        (
            lambda: GaussianMixture([1.0], np.zeros((1, 2)), [np.ones((2, 2))]),
            r"covariances\[0\]. must be positive definite",
        ),
        (lambda: DoubleWell(-1.0), "`barrier` must be positive"),
        (lambda: DoubleWell(2.0, dim=0), "`dim` must be an integer >= 1"),
        (lambda: DoubleWell(jnp.ones(2)), "`barrier` must have 0 axes"),
        (lambda: Funnel(dim=1), "`dim` must be an integer >= 2"),
        (lambda: Funnel(scale=0.0), "`scale` must be positive"),
        (lambda: Banana(np.nan), "`curvature` must be finite"),
        (lambda: Banana(scale=-1.0), "`scale` must be positive"),
        (lambda: Rosenbrock(dim=1), "`dim` must be an integer >= 2"),
        (lambda: Rosenbrock(0.0, 1.0), "`a` must be positive"),
        (lambda: Rosenbrock(1.0, -1.0), "`b` must be positive"),
        (lambda: Ring(-1.0), "`radius` must be positive"),
        (lambda: Ring(1.0, 0.0), "`width` must be positive"),
        (lambda: ManyWell(dim=3), "`dim` must be an even"),
        (lambda: StudentT(0.0), "`degrees_of_freedom` must be positive"),
        (lambda: StudentT(1.0, np.zeros((2, 2))), "`location` must have shape"),
        (lambda: StudentT(1.0, np.zeros(2), np.ones(3)), "`scale` must have the shape"),
    ],
)
def test_construction_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mixture_stays_a_mixture_under_gradient_steps():
    mixture = ENERGIES["scalar mixture"]()
    moved = jax.tree.map(lambda leaf: leaf, mixture)
    object.__setattr__(moved, "log_weights", mixture.log_weights + 3.0)
    np.testing.assert_allclose(moved(jnp.asarray(0.3)), mixture(jnp.asarray(0.3)), rtol=1e-6)
