"""What holds for every public class: a row, an entry in the docs, a reference; and what the row buys."""

import collections
import importlib
import inspect
import pathlib
import pkgutil
import re
import typing

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_ppl
from tests.cases import CASES, KERNELS, OBJECTIVES
from tests.contract import Case, ObjectiveCase
from tests.normalizers.targets import ROWS as NORMALIZER_ROWS
from tests.statistics import StatisticalError, assert_iid_mean_close

DOCS = pathlib.Path(__file__).parent.parent / "docs" / "api"
FOLDERS = sorted(module.name for module in pkgutil.iter_modules(ebm_ppl.__path__) if module.ispkg)
ROWS = {case.name for case in CASES}
LITERATURE = re.compile(
    r"^References:$.*\b(1[6-9]|20)\d\d\b.*(doi:10\.|arXiv:\d|ISBN[ :]*97[89])", re.DOTALL | re.MULTILINE
)


def public_names(folder):
    """`(name, object)` of everything that a folder exports."""
    module = importlib.import_module(f"ebm_ppl.{folder}")
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    return [(name, getattr(module, name)) for name in names if not inspect.ismodule(getattr(module, name))]


EXPORTS = [(folder, name, value) for folder in FOLDERS for name, value in public_names(folder)]
MODULES = [
    (folder, name, value)
    for folder, name, value in EXPORTS
    if isinstance(value, type) and issubclass(value, eqx.Module) and not inspect.isabstract(value)
]


def missing_row(name, rows=ROWS):
    return f"{name} has no row in tests/cases.py: add one." if name not in rows else ""


def missing_entry(folder, name, pages=None):
    pages = [path.read_text() for path in DOCS.glob("*.md")] if pages is None else pages
    entry = re.compile(rf"^::: ebm_ppl\.({folder}\.)?{name}$", re.MULTILINE)
    count = sum(len(entry.findall(page)) for page in pages)
    if count == 1:
        return ""
    return (
        f"{name} has {count} entries `::: ebm_ppl.{name}` or `::: ebm_ppl.{folder}.{name}` in docs/api; one is needed."
    )


def missing_reference(value):
    found = LITERATURE.search(inspect.getdoc(value) or "")
    return "" if found else f"{value.__name__}: the docstring has no References with a year and a doi, arXiv or ISBN."


def each(exports):
    return [pytest.param(*export, id=".".join(export[:2])) for export in exports]


@pytest.mark.parametrize(("folder", "name", "value"), each(MODULES))
def test_every_class_has_a_row_and_a_reference(folder, name, value):
    assert not missing_row(name)
    assert not missing_reference(value)


@pytest.mark.parametrize(("folder", "name", "value"), each(EXPORTS))
def test_every_export_is_documented(folder, name, value):
    assert not missing_entry(folder, name)
    assert isinstance(value, typing.TypeAliasType) or not isinstance(value, type) or inspect.getdoc(value)


ESTIMATORS = [
    (name, value)
    for folder, name, value in EXPORTS
    if folder == "normalizers" and inspect.signature(value).return_annotation is ebm_ppl.LogNormalizerEstimate
]


@pytest.mark.parametrize(("name", "value"), [pytest.param(*row, id=row[0]) for row in ESTIMATORS])
def test_every_estimator_of_log_z_has_a_row_and_a_reference(name, value):
    """A row runs it on the energies of `tests/normalizers/targets.py`; `log_normalizer` only compares the others."""
    where = "`ROWS` of tests/normalizers/targets.py"
    assert name in NORMALIZER_ROWS or name == "log_normalizer", f"{name} has no row in {where}: add one."
    assert not missing_reference(value)


def test_the_contract_notices_what_is_missing():
    class Undocumented:
        """One line.

        References:
            Somebody (2020). A title without identifier.
        """

    assert missing_row("Undocumented")
    assert missing_reference(Undocumented)
    assert missing_entry("energies", "Undocumented")
    assert missing_entry("energies", "MLPEnergy", ["::: ebm_ppl.MLPEnergy\n::: ebm_ppl.energies.MLPEnergy"])
    assert {name for name, _ in ESTIMATORS} == {*NORMALIZER_ROWS, "log_normalizer"}
    assert {"energies", "kernels", "objectives"} <= {folder for folder, _, _ in MODULES}


def test_no_row_is_left_over():
    assert {name for _, name, _ in MODULES} == ROWS


# --- what a row buys


TRACES = collections.Counter()  # of `run`, by row
legacy = jax.random.key_data  # the same key in the form of JAX's first years


@eqx.filter_jit
def run(case, module, key, *inputs):
    """`case.call`, compiled once for all tests of a row; they hand it legacy keys, and typed ones to `run_mapped`."""
    TRACES[case] += 1
    return case.call(module, key, *inputs)


@eqx.filter_jit
def run_mapped(case, module, keys, *stacked):
    """`case.call`, mapped over keys and inputs."""
    in_axes = (None, eqx.if_array(0), *[eqx.if_array(0)] * len(stacked))
    return eqx.filter_vmap(case.call, in_axes=in_axes)(module, keys, *stacked)


def stack(rows):
    return jax.tree.map(lambda *leaves: np.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *rows)


def mapped_and_loop(case, key):
    """The results for three typed keys and inputs at once, and one by one for the same keys in their legacy form."""
    module, keys = case.make(), jax.random.split(key, 3)
    inputs = [case.draw(module, one) for one in keys]
    loop = [run(case, module, legacy(one), *row) for one, row in zip(keys, inputs, strict=True)]
    return run_mapped(case, module, keys, *stack(inputs)), loop


PARAMETERS = [pytest.param(case, id=f"{number}-{case.name}") for number, case in enumerate(CASES)]
every_case = pytest.mark.parametrize("case", PARAMETERS)
# An energy, a kernel, an objective, the buffer, a sampler: of each kind a row of few operations.
ONE_OF_EACH_KIND = [
    next(case for case in PARAMETERS if case.values[0].name == name)
    for name in ("FunctionEnergy", "RandomWalk", "ExactScoreMatching", "ReplayBuffer", "ChainSampler")
]


def assert_trees_close(found, expected):
    """Equal up to rounding of the dtype at hand; integers and booleans exactly."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        tolerance = 512 * np.finfo(one.dtype).eps if np.issubdtype(one.dtype, np.floating) else 0
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def still(tree):
    return tree


def in_float32(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf, tree)


@pytest.mark.parametrize("case", [case for case in PARAMETERS if case.values[0].reference is not None])
def test_value_is_the_reference(case: Case, key):
    module = case.make()
    inputs = case.draw(module, key)
    found, expected = run(case, module, legacy(key), *inputs), case.reference(module, key, *inputs)
    assert_trees_close({name: found[name] for name in expected}, {n: jnp.asarray(v) for n, v in expected.items()})


@pytest.mark.parametrize("case", ONE_OF_EACH_KIND)
def test_jit_is_no_jit(case: Case, key):
    """Operation by operation, a row compiles up to a hundred programs; what else rows share is tested compiled."""
    module = case.make()
    inputs = case.draw(module, key)
    eager = case.call(module, key, *inputs)
    assert_trees_close(run(case, module, legacy(key), *inputs), eager)
    assert eqx.tree_equal(eager, case.call(module, legacy(key), *inputs))  # the same bits for keys of both kinds


@every_case
def test_two_calls_are_one_trace(case: Case, key):
    for step_key in jax.random.split(key):
        module = case.make()  # equal, not the same
        run(case, module, legacy(step_key), *case.draw(module, step_key))
    assert TRACES[case] == 1


@every_case
def test_vmap_is_a_loop(case: Case, key):
    mapped, loop = mapped_and_loop(case, key)
    assert_trees_close(mapped, stack(loop))


@every_case
def test_precision_is_kept(case: Case, key):
    def dtypes(convert):
        module = convert(case.make())
        shapes = eqx.filter_eval_shape(case.call, module, key, *convert(case.draw(module, key)))
        has_parameters = jax.tree.leaves(eqx.filter(module, eqx.is_inexact_array))  # else JAX's default dtype is right
        if isinstance(module, ebm_ppl.AbstractReferenceEnergy) and has_parameters:
            shapes["log_normalizer"] = eqx.filter_eval_shape(lambda: module.log_normalizer)
            shapes["draws"] = eqx.filter_eval_shape(module.sample, key, (2,))
        return {leaf.dtype for leaf in jax.tree.leaves(shapes) if jnp.issubdtype(leaf.dtype, jnp.floating)}

    assert dtypes(still) == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        assert dtypes(still) == {jnp.dtype("float64")}
        if case.value is not None:  # BlackJAX draws its noise in JAX's default dtype, whatever the position's
            assert dtypes(in_float32) == {jnp.dtype("float32")}  # although float64 is to be had


@every_case
def test_pytree_round_trip_and_frozen(case: Case):
    module = case.make()
    leaves, structure = jax.tree.flatten(module)
    assert eqx.tree_equal(jax.tree.unflatten(structure, leaves), module, typematch=True)
    assert structure == jax.tree.structure(case.make())
    assert hash(structure) == hash(jax.tree.structure(case.make()))
    with pytest.raises(AttributeError):
        module.new_attribute = 0


@every_case
def test_same_key_same_output(case: Case, key):
    module = case.make()
    inputs = case.draw(module, key)
    first = run(case, module, legacy(key), *inputs)
    assert eqx.tree_equal(first, run(case, module, legacy(key), *inputs))
    typed = run_mapped(case, module, jnp.stack([key] * 3), *stack([inputs] * 3))
    assert_trees_close(typed, stack([first] * 3))
    if case.random:
        other = run(case, module, legacy(jax.random.fold_in(key, 1)), *inputs)
        assert not eqx.tree_equal(first, other)


HALF_STEP = 1 / 4096
GRADIENT_TOLERANCE = 1e-5  # as in `jax.test_util`, in double precision


@pytest.mark.parametrize("case", [case for case in PARAMETERS if case.values[0].value is not None])
def test_gradients_are_finite_differences(case: Case, key):
    """In the inputs and in the parameters, along a random direction, in double precision."""
    with jax.enable_x64(True):
        module = case.make()
        # An objective's own numbers are settings: what is trained is the model, an input.
        settings, parameters = (module, None) if isinstance(case, ObjectiveCase) else (None, module)
        variables, static = eqx.partition((parameters, case.draw(module, key)), eqx.is_inexact_array)

        @jax.jit
        @jax.value_and_grad
        def value(variables):
            parameters, inputs = eqx.combine(variables, static)
            return case.call(settings if parameters is None else parameters, key, *inputs)[case.value]

        rng = np.random.default_rng(0)
        direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), variables)
        above, below = (
            float(value(jax.tree.map(lambda leaf, one, h=h: np.asarray(leaf) + h * one, variables, direction))[0])
            for h in (HALF_STEP, -HALF_STEP)
        )
        slopes = jax.tree.map(np.vdot, direction, value(variables)[1])
    found, expected = sum(jax.tree.leaves(slopes)), (above - below) / (2 * HALF_STEP)
    np.testing.assert_allclose(found, expected, rtol=GRADIENT_TOLERANCE, atol=GRADIENT_TOLERANCE)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in KERNELS])
def test_kernels_report_the_statistics_that_every_caller_reads(case: Case, key):
    kernel = case.make()
    found = run(case, kernel, legacy(key), *case.draw(kernel, key))
    required = {"diverging", "nonfinite_proposal", "n_steps"}
    required |= {"acceptance_rate"} if kernel.target_acceptance_rate is not None else set()
    assert required <= set(found)
    assert all(found[name].shape == () for name in set(found) - {"position"})
    assert "lp" not in found


# --- objectives: the value and the minimum are known exactly


def losses_and_gradients(case, key, moves, num=40_000):
    """Rows of independent single-event losses, and of their gradients in the parameters, after each of `moves`."""
    objective = case.make()
    model = case.draw(objective, key)[0]
    static = eqx.partition(model, eqx.is_inexact_array)[1]
    data_key, noise_key = jax.random.split(key)
    batches = case.draw(objective, data_key)[1]
    batches = jax.vmap(lambda one: case.draw(objective, one)[1])(jax.random.split(data_key, num // len(batches)))

    def loss(arrays, batch, key):
        return case.call(objective, key, eqx.combine(arrays, static), batch)["loss"]

    run = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0, 0)))
    for move in moves:
        arrays = eqx.filter(move(model), eqx.is_inexact_array)
        losses, gradients = run(arrays, batches, jax.random.split(noise_key, len(batches)))
        rows = [np.asarray(leaf).reshape(len(losses), -1) for leaf in jax.tree.leaves(gradients)]
        yield np.asarray(losses), np.concatenate(rows, axis=1)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in OBJECTIVES])
def test_objective_has_its_exact_value_and_its_minimum_at_the_truth(case, key):
    (losses, gradients), (_, off) = losses_and_gradients(case, key, (still, case.off))
    if case.expected_loss is None:
        assert not case.make().comparable
    else:
        assert_iid_mean_close(losses, case.expected_loss, what="loss")
        with pytest.raises(StatisticalError):
            assert_iid_mean_close(losses, 1.5 * case.expected_loss)
    moving = gradients.std(0) > 0
    assert moving.any()
    assert_iid_mean_close(gradients[:, moving], 0.0, what="gradient")
    with pytest.raises(StatisticalError):
        assert_iid_mean_close(off[:, moving], 0.0)
