"""What the pictures show: the data of their artists, not just that something was drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from arviz_plots import PlotCollection
from scipy import stats

import ebm_ppl as ebm
from ebm_ppl.diagnostics._family import Finding

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def title(picture):
    assert isinstance(picture, PlotCollection)
    return picture.get_viz("figure_title").get_text()


# --- plot_energy ------------------------------------------------------------------------------------------------------

GAUSSIAN = ebm.energies.Gaussian(jnp.array([1.0]), jnp.array([[4.0]]))


def test_one_coordinate_shows_energy_density_and_draws():
    draws = RNG.normal(1.0, 2.0, size=(2, 1000, 1)).astype(np.float32)
    picture = ebm.plot_energy(GAUSSIAN, draws, num_points=401)
    x, values = picture.get_viz("energy", "energy").get_data()
    np.testing.assert_allclose(values, (x - 1) ** 2 / 8, atol=1e-4)
    assert x[0] < draws.min() < draws.max() < x[-1]
    x, density = picture.get_viz("density", "density").get_data()
    np.testing.assert_allclose(density, stats.norm(1, 2).pdf(x), rtol=0.01)
    bars = picture.get_viz("draws", "density").get_paths()[0].vertices
    np.testing.assert_allclose(bars[:, 1].max(), stats.norm(1, 2).pdf(1.0), rtol=0.2)
    assert title(picture) == "Gaussian"


def test_two_coordinates_show_contours_and_all_draws():
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.diag(jnp.array([1.0, 4.0])))
    draws = RNG.normal(size=(2, 100, 2)).astype(np.float32)
    picture = ebm.plot_energy(energy, draws, bounds=[(-5.0, 5.0), (-8.0, 8.0)], num_points=201)
    contours = picture.get_viz("energy", "energy")
    ellipse = contours.get_paths()[list(contours.levels).index(2.0)].vertices
    np.testing.assert_allclose(ellipse[:, 0] ** 2 / 2 + ellipse[:, 1] ** 2 / 8, 2.0, atol=0.02)
    np.testing.assert_allclose(picture.get_viz("draws", "energy").get_offsets(), draws.reshape(-1, 2))


def test_many_draws_are_thinned_evenly():
    energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.eye(2))
    draws = RNG.normal(size=(2, 1500, 2)).astype(np.float32)
    shown = ebm.plot_energy(energy, draws, num_points=5).get_viz("draws", "energy").get_offsets()
    np.testing.assert_allclose(shown, draws.reshape(-1, 2)[::2])


def test_a_slice_goes_through_the_draw_of_lowest_energy():
    energy = ebm.energies.Gaussian(jnp.zeros(3), jnp.eye(3).at[0, 2].set(0.5).at[2, 0].set(0.5))
    draws = RNG.normal(size=(2, 50, 3)).astype(np.float32)
    picture = ebm.plot_energy(energy, draws, coordinates=0, num_points=2001)
    x, values = picture.get_viz("energy", "energy").get_data()
    lowest = min(draws.reshape(-1, 3), key=lambda one: float(energy(jnp.asarray(one))))
    assert abs(x[np.argmin(values)] - 0.5 * lowest[2]) < 0.01  # the conditional mean
    assert "draws" not in picture.viz.children


def test_walls_are_left_blank():
    energy = ebm.FunctionEnergy(lambda x: jnp.where(x[0] > 0, x[0], jnp.inf), (1,))
    x, values = ebm.plot_energy(energy, bounds=(-1.0, 2.0)).get_viz("energy", "energy").get_data()
    np.testing.assert_array_equal(np.isnan(values), x <= 0)
    density = ebm.plot_energy(energy, bounds=(-1.0, 2.0)).get_viz("density", "density").get_ydata()
    np.testing.assert_array_equal(density == 0, x <= 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give `draws` or `bounds`"),
        ({"bounds": (1.0, 0.0)}, "pairs \\(lower, upper\\)"),
        ({"bounds": (0.0, np.inf)}, "one finite pair"),
        ({"bounds": (0.0, 1.0), "coordinates": 1}, "`coordinates`"),
        ({"bounds": (0.0, 1.0), "num_points": 2}, "`num_points`"),
        ({"draws": np.zeros((2, 5, 3), np.float32)}, "event_shape"),
    ],
)
def test_plot_energy_names_misuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        ebm.plot_energy(GAUSSIAN, **arguments)


# --- plot_mixing ------------------------------------------------------------------------------------------------------


def test_the_worst_parameters_are_shown_under_the_verdict():
    draws = RNG.normal(size=(4, 200, 3))
    draws[1, :, 2] += 3.0
    picture = ebm.plot_mixing(draws, max_parameters=1)
    assert title(picture).startswith("NOT ok: R_HAT")
    trace = picture.viz["trace_trace"]
    assert list(trace.data_vars) == ["x[2]"]
    for chain in range(4):
        np.testing.assert_allclose(trace["x[2]"].sel(chain=chain).item().get_ydata(), draws[chain, :, 2])
    assert set(picture.viz["ecdf_lines_rank"].data_vars) == {"x[2]"}
    named = ebm.plot_mixing(draws, parameters=["x[0]", "x[1]"])
    assert list(named.viz["trace_trace"].data_vars) == ["x[0]", "x[1]"]


def test_one_chain_has_a_trace_and_no_ranks():
    picture = ebm.plot_mixing(np.random.default_rng(0).normal(size=(1, 50)))
    assert picture.get_viz("figure_title").get_text().startswith("NOT ok")
    assert picture.viz["plot"].coords["column"].values.tolist() == ["trace"]


def test_plot_mixing_names_misuse():
    with pytest.raises(ValueError, match="`parameters` must be among"):
        ebm.plot_mixing(np.zeros((2, 10, 2)), parameters=["x"])
    with pytest.raises(ValueError, match="not finite"):
        ebm.plot_mixing(np.full((2, 10), np.nan))


# --- plot_training ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    loss = np.arange(10.0)
    gradient_norm = np.array([1.0, 3.0, np.nan, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0])
    settings = {"num_steps": 10}
    metrics = {"loss": loss, "gradient_norm": gradient_norm}
    return ebm.FitResult(None, None, None, None, metrics, (), settings)


def test_training_curves_are_recorded_and_smoothed(result):
    picture = ebm.plot_training(result, smoothing=2)
    np.testing.assert_array_equal(picture.get_viz("recorded", "loss").get_data(), [np.arange(1, 11), np.arange(10.0)])
    np.testing.assert_allclose(picture.get_viz("smoothed", "loss").get_ydata(), [0, *np.arange(0.5, 9)])
    smoothed = picture.get_viz("smoothed", "gradient_norm").get_ydata()
    np.testing.assert_allclose(smoothed, [1, 2, np.nan, np.nan, 1, 3, 3, 1, 1, 1])
    assert title(picture) == "ok"


def test_problems_of_training_are_in_the_title(result):
    bad = dataclasses.replace(result, problems=(ebm.Problem("DIVERGED", "advice"),))
    assert title(ebm.plot_training(bad, metrics=["loss"])) == "NOT ok: DIVERGED"
    with pytest.raises(ValueError, match="`metrics` must be among"):
        ebm.plot_training(result, metrics=["accuracy"])
    with pytest.raises(ValueError, match="no step"):
        ebm.plot_training(dataclasses.replace(result, metrics={"loss": np.zeros(0)}))
    with pytest.raises(TypeError, match="FitResult"):
        ebm.plot_training({"loss": [1.0]})


# --- plot_tempering ---------------------------------------------------------------------------------------------------


def ladder():
    """V is exactly N(m_k, s^2) at the levels of a path between Gaussians whose log Z is known at every level.

    E_0 = x^2 / 2 and V = c x: E_beta = x^2 / 2 + beta c x, log Z_beta = log(2 pi) / 2 + (beta c)^2 / 2.
    """
    betas, slope = np.array([0.0, 0.2, 0.5, 1.0]), 1.5
    x = RNG.normal(size=(2, 4000, 4)) - betas * slope
    settings = (np.array([0.2, 0.3, 0.4]), np.array([40, 50]), 4000, slope * x, 0.5 * np.log(2 * np.pi))
    return betas, slope, ebm.Tempering(betas, *settings)


def test_ladder_swaps_round_trips_and_log_z():
    betas, slope, tempering = ladder()
    picture = ebm.plot_tempering(tempering)
    np.testing.assert_array_equal(picture.get_viz("levels", "ladder").get_data(), [np.arange(4), betas])
    x, rates = picture.get_viz("rejection_rates", "swaps").get_data()
    np.testing.assert_allclose(x, [0.1, 0.35, 0.75])
    np.testing.assert_array_equal(rates, [0.2, 0.3, 0.4])
    np.testing.assert_allclose(picture.get_viz("mean_rejection_rate", "swaps").get_ydata(), 0.3)
    np.testing.assert_array_equal(picture.get_viz("round_trips", "round trips").get_offsets(), [[0, 40], [1, 50]])
    np.testing.assert_allclose(picture.get_viz("most_round_trips", "round trips").get_ydata(), 4000 / (2 + 2 * 0.9))
    x, values = picture.get_viz("log_normalizer", "log Z").get_data()
    np.testing.assert_array_equal(x, betas)
    np.testing.assert_allclose(values[-1], tempering.log_normalizer[0])
    np.testing.assert_allclose(values, 0.5 * np.log(2 * np.pi) + (betas * slope) ** 2 / 2, atol=0.1)
    band = picture.get_viz("interval", "log Z").get_paths()[0].vertices
    np.testing.assert_allclose(
        np.ptp(band[band[:, 0] == 1.0, 1]), 4 * tempering.log_normalizer[1], rtol=1e-6
    )  # 2 standard errors on each side


def test_an_untempered_run_has_no_ladder():
    draws = ebm.Draws(np.zeros((2, 3, 1)), {}, ebm.MALA(), (), {}, np.ones((2, 1)))
    with pytest.raises(ValueError, match="untempered"):
        ebm.plot_tempering(draws)
    with pytest.raises(TypeError, match="Draws or a Tempering"):
        ebm.plot_tempering(np.zeros(3))


# --- plot_log_normalizer ----------------------------------------------------------------------------------------------


def estimate(method="importance", **fields):
    return dataclasses.replace(ebm.LogNormalizerEstimate(2.0, 0.1, 900.0, 0.2, method, ()), **fields)


def test_estimates_intervals_and_sandwich():
    parts = (estimate("quadrature", value=2.1), estimate("bridge"))
    bad = estimate(bounds=(1.0, 3.0), problems=(ebm.Problem("PARETO_KHAT", "advice"),))
    picture = ebm.plot_log_normalizer({"both": estimate("log_normalizer", parts=parts), "bad": bad}, truth=2.05)
    axes = picture.get_target("log Z", {})
    assert [label.get_text() for label in axes.get_yticklabels()] == ["both", "  quadrature", "  bridge", "bad"]
    for row, value in enumerate([2.0, 2.1, 2.0, 2.0]):
        np.testing.assert_allclose(picture.get_viz(f"estimate {row}", "log Z").get_offsets(), [[value, row]])
        low, high = picture.get_viz(f"interval {row}", "log Z").get_xdata()
        np.testing.assert_allclose([low, high], [value - 0.196, value + 0.196], atol=1e-4)
    np.testing.assert_array_equal(picture.get_viz("bounds 3", "log Z").get_offsets(), [[1.0, 3], [3.0, 3]])
    assert "bounds 0" not in picture.viz.children
    np.testing.assert_array_equal(picture.get_viz("truth", "log Z").get_xdata(), 2.05)
    colors = [picture.get_viz(f"interval {row}", "log Z").get_color() for row in (0, 3)]
    assert colors[0] != colors[1]
    assert title(picture) == "NOT ok: PARETO_KHAT"


def test_plot_log_normalizer_names_misuse():
    with pytest.raises(ValueError, match="2 conditions"):
        ebm.plot_log_normalizer(estimate(value=np.zeros(2), standard_error=np.ones(2)))
    with pytest.raises(ValueError, match="empty"):
        ebm.plot_log_normalizer([])
    for wrong in (2.0, [2.0]):
        with pytest.raises(TypeError, match="LogNormalizerEstimate; got float"):
            ebm.plot_log_normalizer(wrong)


# --- plot_detailed_balance --------------------------------------------------------------------------------------------


def test_the_battery_as_a_picture():
    findings = (
        Finding("pure", "structure"),
        Finding("flux", "invariance", 1.0, 0.3),
        Finding("ranks", "reversibility", 40.0, 1e-30, verdict="FAIL"),
        Finding("violation", "violation", 0.02, None, 0.004, "measured"),
    )
    report = ebm.diagnostics.BalanceReport("broken", (), findings, kernel="MALA(step_size=0.1)")
    picture = ebm.plot_detailed_balance(report)
    axes = picture.get_target("tests", {})
    assert [label.get_text() for label in axes.get_yticklabels()] == ["pure", "flux", "ranks"]
    np.testing.assert_allclose(picture.get_viz("p_value flux", "tests").get_offsets(), [[np.log10(0.3), 1]])
    np.testing.assert_allclose(picture.get_viz("p_value ranks", "tests").get_offsets(), [[-12.0, 2]])
    assert picture.get_viz("verdict pure", "tests").get_text() == "pass"
    np.testing.assert_allclose(picture.get_viz("level", "tests").get_xdata(), -2.0)
    np.testing.assert_allclose(picture.get_viz("error violation", "measured").get_xdata(), [0.012, 0.028])
    assert title(picture) == "MALA(step_size=0.1): broken"
    with pytest.raises(TypeError, match="BalanceReport"):
        ebm.plot_detailed_balance(findings)


def test_every_plot_works_without_a_display_backend(result):
    """The `none` backend of arviz-plots keeps dictionaries: nothing here depends on Matplotlib."""
    picture = ebm.plot_training(result, backend="none")
    np.testing.assert_array_equal(picture.get_viz("recorded", "loss")["y"], np.arange(10.0))
    assert ebm.plot_tempering(ladder()[2], backend="none").viz["levels"]["ladder"].item()["function"] == "line"


def test_a_picture_can_be_saved(tmp_path, result):
    ebm.plot_training(result).savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
    assert plt.get_backend().lower() == "agg"
    assert jax.default_backend() == "cpu"
