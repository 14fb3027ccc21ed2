"""Energies on supports and with named parts: sampled in real coordinates, reported as events; nothing stale."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import special

import ebm_ppl as ebm
from ebm_ppl.objectives._negatives import advance
from tests.compilation import count_lowerings
from tests.statistics import StatisticalError, assert_iid_mean_close, assert_mean_close

QUIET = {"progress_bar": False}
CONCENTRATION = np.array([2.0, 3.0, 4.0])
OFFSET = jnp.array([1.0, 2.0])


def dirichlet(x):
    return -jnp.sum((jnp.asarray(CONCENTRATION, jnp.float32) - 1) * jnp.log(x))


SIMPLEX = ebm.FunctionEnergy(dirichlet, (3,), support=constraints.simplex)
GAMMA = ebm.FunctionEnergy(lambda x: x - 2 * jnp.log(x), (), support=constraints.positive)


def named(scale=1.0):
    """w ~ N(0, scale^2 I), tau ~ Gamma(3, 1): two independent parts."""
    return ebm.FunctionEnergy(
        lambda x: jnp.sum((x["w"] / scale) ** 2) / 2 + x["tau"] - 2 * jnp.log(x["tau"]),
        {"w": (2,), "tau": ()},
        support={"tau": constraints.positive},
    )


@pytest.mark.optimized
def test_draws_on_a_support_have_the_moments_of_the_distribution(key):
    draws = ebm.sample(SIMPLEX, key=key, num_samples=2000, **QUIET)
    assert draws.ok
    assert draws.scale.shape == (4, 2)
    np.testing.assert_allclose(draws.positions.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(draws.stats["lp"], -jax.vmap(jax.vmap(dirichlet))(draws.positions), rtol=1e-3, atol=1e-3)
    total = CONCENTRATION.sum()
    assert_mean_close(draws.positions, CONCENTRATION / total)
    second = CONCENTRATION * (CONCENTRATION + 1) / (total * (total + 1))
    assert_mean_close(draws.positions**2, second)
    with pytest.raises(StatisticalError):  # what comes without the Jacobian: one less of each concentration, and one
        assert_mean_close(draws.positions, (CONCENTRATION - 1) / (total - 3))


@pytest.mark.optimized
def test_tempered_draws_on_a_support(key):
    draws = ebm.parallel_tempering(GAMMA, key=key, inverse_temperatures=5, num_samples=1000, **QUIET)
    assert_mean_close(draws.positions, 3.0)
    assert_mean_close(draws.positions**2, 12.0)
    value, error = draws.tempering.log_normalizer
    assert abs(value - np.log(2)) < 4.5 * error
    np.testing.assert_allclose(draws.stats["lp"], 2 * np.log(draws.positions) - draws.positions, rtol=1e-3, atol=1e-3)


@pytest.mark.optimized
def test_named_parts_are_reported_by_name(key, tmp_path):
    settings = {"num_samples": 1000, **QUIET}
    draws = ebm.sample(named(), key=key, checkpoint=tmp_path / "run", store=tmp_path / "draws.zarr", **settings)
    assert draws.event_shape == {"w": (2,), "tau": ()}
    assert (draws.num_chains, draws.num_draws) == (4, 1000)
    assert list(draws.positions) == ["w", "tau"]
    assert_mean_close(draws.positions["tau"], 3.0)
    assert_mean_close(draws.positions["w"] ** 2, 1.0)
    tree = ebm.to_datatree(draws)
    assert dict(tree["posterior"].data_vars.items()).keys() == {"w", "tau"}
    assert "shape {'w': (2,), 'tau': ()}" in repr(draws)
    for other in (
        ebm.resume(tmp_path / "run", named(), **QUIET),
        ebm.Draws.load(tmp_path / "draws.zarr"),
        ebm.Draws.load(draws.save(tmp_path / "draws.npz")),
    ):
        assert all(np.array_equal(other.positions[name], draws.positions[name]) for name in draws.positions)
    with pytest.raises(ebm.CheckpointError, match=r"energy\.program"):
        ebm.resume(tmp_path / "run", named(2.0), **QUIET)


def test_run_chains_takes_and_returns_events(key):
    starts = {"w": jnp.zeros((3, 2)), "tau": jnp.ones(3)}
    positions, stats, _ = ebm.sampling.run_chains(named(), ebm.MALA(0.1), starts, key=key, num_warmup=0, num_samples=5)
    assert positions["w"].shape == (3, 5, 2)
    assert (np.asarray(positions["tau"]) > 0).all()
    again = ebm.sample(named(), ebm.MALA(0.1), key=key, num_chains=3, num_warmup=0, num_samples=5,
                       initial_positions=starts, **QUIET)  # fmt: skip
    np.testing.assert_array_equal(again.positions["tau"], positions["tau"])
    np.testing.assert_array_equal(again.stats["lp"], stats["lp"])


@pytest.mark.parametrize(
    ("energy", "positions", "error", "match"),
    [
        (SIMPLEX, jnp.ones((4, 3)), ebm.InvalidDataError, "inside the support Simplex"),
        (SIMPLEX, jnp.array([[0.0, 0.5, 0.5]] * 4), ebm.InvalidDataError, "row 0"),
        (GAMMA, -jnp.ones(4), ebm.InvalidDataError, "4 of 4 rows"),
        (GAMMA, jnp.ones((4, 1)), ebm.EnergyShapeError, r"shape \(4,\)"),
        (named(), jnp.ones((4, 3)), ebm.EnergyShapeError, "dictionary with the parts"),
        (named(), {"w": jnp.ones((4, 2))}, ebm.EnergyShapeError, r"\['w', 'tau'\]; got \['w'\]"),
        (named(), {"w": jnp.ones((4, 3)), "tau": jnp.ones(4)}, ebm.EnergyShapeError, r"initial_positions\['w'\]"),
        (ebm.FunctionEnergy(jnp.sum, (2,)), {"x": jnp.ones((4, 2))}, ebm.EnergyShapeError, "got a dictionary"),
    ],
)
def test_initial_positions_that_are_no_events_are_refused(energy, positions, error, match):
    with pytest.raises(error, match=match):
        ebm.sample(energy, key=jax.random.key(0), initial_positions=positions, **QUIET)


SHORT = {"num_chains": 4, "num_warmup": 200, "num_samples": 200, **QUIET}


def shifted():
    return ebm.FunctionEnergy(lambda x: jnp.sum((x - OFFSET) ** 2) / 2, (2,))


def test_a_rebound_global_is_seen_and_equal_functions_compile_nothing(key, monkeypatch):
    first, moved = ebm.sample(shifted(), key=key, **SHORT), OFFSET + 10
    with count_lowerings() as lowerings:
        second = ebm.sample(shifted(), key=key, **SHORT)
        monkeypatch.setitem(globals(), "OFFSET", moved)
        third = ebm.sample(shifted(), key=key, **SHORT)
    assert not lowerings
    np.testing.assert_array_equal(second.positions, first.positions)
    assert_mean_close(first.positions, [1.0, 2.0])
    assert_mean_close(third.positions, [11.0, 12.0])
    with pytest.raises(StatisticalError):
        assert_mean_close(third.positions, [1.0, 2.0])


def test_a_run_is_not_resumed_with_changed_data(key, monkeypatch, tmp_path):
    ebm.sample(shifted(), key=key, checkpoint=tmp_path / "run", **SHORT)
    monkeypatch.setitem(globals(), "OFFSET", OFFSET + 10)
    with pytest.raises(ebm.CheckpointError, match=r"energy\.arrays"):
        ebm.resume(tmp_path / "run", shifted(), **QUIET)


def test_quadrature_sees_a_rebound_scale():
    def value(scale):
        return ebm.normalizers.quadrature(ebm.FunctionEnergy(lambda x: (x / scale) ** 2 / 2, ())).value

    for scale in (1.0, 0.1):
        np.testing.assert_allclose(value(scale), np.log(scale * np.sqrt(2 * np.pi)), atol=1e-4)


@pytest.mark.parametrize("kernel", [ebm.ULA(0.5), ebm.kernels.SGLD(0.1, batch_size=1)], ids=["ULA", "SGLD"])
def test_estimators_of_log_z_refuse_kernels_without_correction(kernel):
    energy, key = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2)), jax.random.key(0)
    for name in ("annealed_importance", "sequential_monte_carlo", "bridge", "thermodynamic_integration"):
        with count_lowerings() as lowerings, pytest.raises(ValueError, match="`kernel` must leave its target exactly"):
            getattr(ebm.normalizers, name)(energy, kernel=kernel, key=key)
        assert not [name for name in lowerings if "chain" in str(name) or "run" in str(name)]


def test_the_bridge_refuses_draws_of_a_kernel_without_correction(key):
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    draws = ebm.sample(energy, ebm.ULA(0.5), key=key, **SHORT)
    with pytest.raises(ValueError, match="`draws` must have been made by a kernel that leaves its target exactly"):
        ebm.normalizers.bridge(energy, draws, key=key)


def test_tempering_by_gibbs_like_kernels_names_the_missing_acceptance_rate():
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    kernel = ebm.kernels.EllipticalSlice(ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2)))
    for name in ("annealed_importance", "sequential_monte_carlo"):
        with pytest.raises(ValueError, match="must report an acceptance rate"):
            getattr(ebm.normalizers, name)(energy, kernel=kernel, key=jax.random.key(0))


def test_every_event_shape_is_tempered_and_integrated_with_a_default_reference(key):
    energy = ebm.FunctionEnergy(lambda x: jnp.sum(x**2) / 2, (2, 2))
    estimate = ebm.normalizers.importance(energy, key=key)
    assert abs(estimate.value - 2 * np.log(2 * np.pi)) < 4.5 * estimate.standard_error
    draws = ebm.parallel_tempering(
        energy, key=key, inverse_temperatures=3, num_warmup=100, num_samples=200, num_chains=2, **QUIET
    )
    assert draws.positions.shape == (2, 200, 2, 2)


def test_stored_parts_come_back_in_their_order(key, tmp_path):
    energy = ebm.FunctionEnergy(lambda x: jnp.sum((x["w"] - 5) ** 2) + (x["tau"] - 50) ** 2, {"w": (2,), "tau": ()})
    draws = ebm.sample(energy, key=key, store=tmp_path / "draws.zarr", **SHORT)
    again = ebm.Draws.load(tmp_path / "draws.zarr")
    assert list(again.positions) == ["w", "tau"]
    np.testing.assert_array_equal(again.positions["tau"], draws.positions["tau"])
    assert float(again.positions["tau"].mean()) > 20


VON_MISES = ebm.FunctionEnergy(lambda x: -2 * jnp.cos(x - np.pi), (), support=constraints.circular)


def test_exact_draws_on_the_circle_are_draws_of_the_target(key):
    draws = np.asarray(dist.VonMises(np.pi, 2.0).sample(key, (4, 1000)))
    estimate = ebm.normalizers.bridge(VON_MISES, draws, key=key)
    assert abs(estimate.value - np.log(2 * np.pi * special.i0(2.0))) < 4.5 * estimate.standard_error
    assert ebm.diagnostics.stein_test(draws, VON_MISES).ok
    table = ebm.diagnostics.mode_occupancy(draws, VON_MISES)
    assert table.sizes["mode"] == 1  # pi and -pi are one place
    assert not ebm.diagnostics.stein_test(draws, ebm.TemperedEnergy(VON_MISES, 1.5)).ok


def test_negatives_on_the_circle_leave_the_distribution_invariant(key):
    data_key, chain_key = jax.random.split(key)
    x = dist.VonMises(np.pi, 2.0).sample(data_key, (20_000,))
    keys = jax.random.split(chain_key, len(x))
    move = jax.jit(jax.vmap(lambda x, key: advance(ebm.MALA(0.5), VON_MISES, x, None, 1, key=key).position))
    expected = special.i1(2.0) / special.i0(2.0)
    moved = np.asarray(move(x, keys))
    assert_iid_mean_close(-np.cos(moved), expected)
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(-np.cos(moved), 1.05 * expected)


def test_tempering_refuses_kernels_without_correction():
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    with pytest.raises(ValueError, match="`kernel` must leave its target exactly"):
        ebm.parallel_tempering(energy, ebm.ULA(0.5), key=jax.random.key(0))


def test_noise_and_data_must_lie_on_the_support(key):
    energy = ebm.FunctionEnergy(lambda p, x: p * jnp.sum(x), (1,), jnp.asarray(1.0), support=constraints.positive)
    data = dist.Exponential(2.0).sample(key, (100, 1))
    wide = ebm.objectives.NoiseContrastive(dist.Normal(jnp.zeros(1), 3.0).to_event(1))
    with pytest.raises(ValueError, match="`noise` must be a NumPyro distribution on the support"):
        ebm.fit(ebm.ShiftedEnergy(energy), data, wide, key=key, num_steps=2, progress_bar=False)
    descent = ebm.objectives.ContrastiveDivergence(ebm.MALA(0.1))
    with pytest.raises(ebm.InvalidDataError, match="100 of 100 rows"):
        ebm.fit(energy, -data, descent, key=key, num_steps=2, progress_bar=False)
    with pytest.raises(NotImplementedError, match="moves events off the data"):
        ebm.fit(energy, data, ebm.objectives.ExactScoreMatching(), key=key, num_steps=2, progress_bar=False)


def test_checks_and_rules_of_thumb_work_in_the_coordinates():
    exponential = ebm.FunctionEnergy(lambda x: x, (), support=constraints.positive)
    assert ebm.check_energy(exponential, jnp.asarray(1.0)).ok
    kernel = ebm.sampling.ula_within_bias(exponential, jnp.array([0.5, 2.0]), key=jax.random.key(0), relative_bias=0.1)
    np.testing.assert_allclose(kernel.largest_curvature, 2.0, rtol=1e-3)  # of exp(z) - z at z = log 2
    assert ebm.check_energy(named(), {"w": jnp.ones(2), "tau": jnp.asarray(2.0)}).ok
    assert set(ebm.score(named(), {"w": jnp.ones(2), "tau": jnp.asarray(2.0)})) == {"w", "tau"}
