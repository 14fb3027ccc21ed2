"""Draws become ArviZ' DataTree with nothing lost and nothing that a file format refuses."""

import json

import arviz as az
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import ebm_ppl as ebm
from ebm_ppl.diagnostics._attributes import problems_from_json, problems_to_json, to_json
from ebm_ppl.diagnostics._to_datatree import as_datatree, statistics_of
from ebm_ppl.errors import Problem


def make_draws(kernel=None, *, positions=None, problems=(), settings=None, **stats):
    """A `Draws` with the statistics every kernel reports."""
    if positions is None:
        positions = np.random.default_rng(0).normal(size=(4, 500, 2)).astype(np.float32)
    size = positions.shape[:2]
    default = {
        "lp": -0.5 * (positions.reshape(*size, -1) ** 2).sum(-1),
        "acceptance_rate": np.full(size, 0.6, np.float32),
        "step_size": np.full(size, 0.1, np.float32),
        "diverging": np.zeros(size, bool),
        "nonfinite_proposal": np.zeros(size, bool),
        "n_steps": np.ones(size, np.int32),
    }
    kernel = ebm.MALA() if kernel is None else kernel
    settings = {"kernel": type(kernel).__name__, "adjusted": kernel.adjusted, **(settings or {})}
    scale = np.ones((size[0], *positions.shape[2:]))
    return ebm.Draws(positions, default | stats, kernel, tuple(problems), settings, scale)


def test_draws_of_a_real_run_keep_values_names_and_record(key):
    energy = ebm.energies.Gaussian(mean=jnp.zeros(3), covariance=jnp.eye(3))
    draws = ebm.sample(energy, ebm.MALA(0.5), key=key, num_warmup=50, num_samples=60, progress_bar=False)
    tree = ebm.to_datatree(draws, var_name="theta", dims=["axis"], coords={"axis": ["a", "b", "c"]})
    posterior, statistics = tree["posterior"], tree["sample_stats"]
    assert dict(posterior.sizes) == {"chain": 4, "draw": 60, "axis": 3}
    np.testing.assert_array_equal(posterior["theta"].values, draws.positions)
    assert set(statistics.data_vars) == set(draws.stats)
    for name, values in draws.stats.items():
        np.testing.assert_array_equal(statistics[name].values, values)
    assert posterior.attrs["inference_library"] == "ebm_ppl"
    assert posterior.attrs["inference_library_version"] == ebm.__version__
    assert json.loads(statistics.attrs["settings"]) == draws.settings
    assert list(az.summary(tree).index) == ["theta[a]", "theta[b]", "theta[c]"]


def test_problems_and_settings_survive_as_strict_json():
    problems = (Problem("INTERRUPTED", "stopped", None, 7.0), Problem("DIVERGED", "ran away", 2, float("inf")))
    tree = ebm.to_datatree(make_draws(problems=problems, settings={"seconds": np.float32(1.5), "shape": (2, 3)}))
    for group in ("posterior", "sample_stats"):
        attributes = tree[group].attrs
        assert problems_from_json(attributes["problems"]) == problems
        settings = json.loads(attributes["settings"], parse_constant=lambda name: pytest.fail(name))
        assert settings == {"kernel": "MALA", "adjusted": True, "seconds": 1.5, "shape": [2, 3]}
        assert all(isinstance(value, (str, int, float, list)) for value in attributes.values())
        assert not any(isinstance(value, bool) for value in attributes.values())


def test_prior_draws_get_their_own_statistics_group():
    tree = ebm.to_datatree(make_draws(), group="prior")
    assert set(tree.children) == {"prior", "sample_stats_prior"}
    assert "lp" in statistics_of(tree, "prior")
    assert not statistics_of(tree, "posterior").data_vars


def test_arrays_and_mappings():
    rng = np.random.default_rng(0)
    scalar = ebm.to_datatree(rng.normal(size=(2, 10)))
    assert scalar["posterior"]["x"].dims == ("chain", "draw")
    jax_array = ebm.to_datatree(jnp.ones((2, 10, 3), jnp.bfloat16))
    assert jax_array["posterior"]["x"].dtype == np.float32
    several = ebm.to_datatree({"a": rng.normal(size=(2, 10, 3)), "b": np.zeros((2, 10), bool)}, dims={"a": ["k"]})
    assert several["posterior"]["a"].dims == ("chain", "draw", "k")
    assert several["posterior"]["b"].dtype == bool
    assert set(several.children) == {"posterior"}


def test_more_chains_than_draws_is_not_worth_a_warning():
    tree = ebm.to_datatree(np.zeros((100, 5)))
    assert dict(tree["posterior"].sizes) == {"chain": 100, "draw": 5}


@pytest.mark.parametrize(
    ("draws", "options", "message"),
    [
        (np.zeros(10), {}, r"\(chain, draw, \*event\); got \(10,\): write draws\[None\]"),
        ({}, {}, "at least one variable"),
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))}, {}, r"same \(chain, draw\) axes"),
        ({"chain": np.zeros((2, 3))}, {}, "other than 'chain' and 'draw'"),
        ({1: np.zeros((2, 3))}, {}, "named by a string"),
        (np.zeros((2, 3), complex), {}, "real numbers; got dtype complex128"),
        (np.full((2, 3), "a"), {}, "real numbers"),
        (np.zeros((2, 3)), {"group": "observed_data"}, "`group` must name a group of draws"),
        (np.zeros((2, 3)), {"group": "sample_stats"}, "`group` must name a group of draws"),
        ({"a": np.zeros((2, 3, 1)), "b": np.zeros((2, 3))}, {"dims": ["k"]}, "`dims` must map the variables"),
    ],
)
def test_unusable_input_is_named(draws, options, message):
    with pytest.raises(ValueError, match=message):
        ebm.to_datatree(draws, **options)


def test_as_datatree_takes_what_users_have(key):
    dataset = xr.Dataset({"x": (("chain", "draw"), np.zeros((2, 5)))})
    assert "posterior" in as_datatree(dataset, "posterior").children
    assert "prior" in as_datatree(np.zeros((2, 5)), "prior").children
    with pytest.raises(ValueError, match="`group` 'prior' is not in the DataTree; it has \\['posterior'\\]"):
        as_datatree(ebm.to_datatree(np.zeros((2, 5))), "prior")
    with pytest.raises(TypeError, match="load_datatree"):
        as_datatree("draws.nc", "posterior")


def test_json_of_what_json_lacks():
    assert json.loads(to_json({"a": np.array([1.0, np.nan]), "b": -np.inf, "c": np.bool_(True), "d": None})) == {
        "a": [1.0, "nan"],
        "b": "-inf",
        "c": True,
        "d": None,
    }
    (restored,) = problems_from_json(problems_to_json([Problem("A", "b", 1, float("nan"))]))
    assert np.isnan(restored.value)
    for text in ("{}x", '[{"code": "A"}]', "[1]"):
        with pytest.raises(ValueError, match="must be a JSON list of problems"):
            problems_from_json(text)


def test_arviz_reads_our_tree_and_numpyro_stays_whole():
    """`import arviz` must not have left a lazy stand-in for NumPyro behind."""
    import numpyro.distributions as dist

    assert float(dist.HalfNormal(1.0).support(jnp.asarray(1.0)))
    tree = ebm.to_datatree(make_draws())
    assert float(az.rhat(tree)["x"].max()) < 1.02
