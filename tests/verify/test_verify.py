"""`python -m ebm_ppl verify`: passes as it is, and names what is broken."""

import dataclasses
import json
import subprocess
import sys

import equinox as eqx
import jax
import numpy as np
import pytest
from blackjax.base import SamplingAlgorithm

import ebm_ppl as ebm
from ebm_ppl import kernels, normalizers, objectives
from ebm_ppl.__main__ import main
from ebm_ppl._verify import _objectives
from ebm_ppl._verify._row import Row, critical_value, mean_rows
from ebm_ppl._verify._run import find_checks, verify
from ebm_ppl.objectives import DenoisingScoreMatching
from tests.statistics import critical_value as reference_value


class Negated(ebm.AbstractEnergy):
    """-E, and a little more, for what cannot tell E from -E."""

    energy: ebm.AbstractEnergy
    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)
    factor: float = eqx.field(static=True, default=1.0, kw_only=True)

    def __call__(self, x, condition=None):
        return -self.factor * self.energy(x, condition)


class Flipped(DenoisingScoreMatching):
    """Fits the score to +e / sigma, as torchebm did until 0.8.8."""

    def evaluate(self, model, batch, *, key):
        energy = Negated(model, model.event_shape, condition_shape=model.condition_shape)
        return DenoisingScoreMatching.evaluate(self, energy, batch, key=key)


def test_what_is_right_passes_and_is_json(capsys):
    assert main(["verify", "--only", "objectives.denoising", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["dtype"] == "float32"
    assert report["limit"] == pytest.approx(reference_value(8), abs=1e-6)
    assert [row["quantity"] for row in report["rows"]] == ["loss", "d loss/d params['a']", "d loss/d params['b']"]
    row = report["rows"][0]
    assert {"what", "expected", "got", "standard_error", "error", "ok"} <= row.keys()
    # TRUTHS B6's formula at a = .3, b = .2: E |a x~ + b - e / s|^2 / 2
    square, mean = 3.5 + 1.3125 + 3 * 0.25, 0.75
    assert row["expected"] == pytest.approx((0.09 * square + 0.12 * mean + 0.12) / 2 - 0.9 + 6)


def test_float64_is_verified_in_float64(capsys):
    assert main(["verify", "--only", "objectives.denoising", "--dtype", "float64"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("3 of 3 comparisons ok (limit ")
    assert "float64 on cpu" in out


def test_a_broken_objective_is_named(monkeypatch, capsys):
    monkeypatch.setattr(objectives, "DenoisingScoreMatching", Flipped)
    assert main(["verify", "--only", "objectives.denoising", "kernels.RandomWalk"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "failed: objectives.DenoisingScoreMatching"
    assert sum(line.endswith("FAILED") for line in lines) >= 2
    assert sum(line.startswith("kernels.RandomWalk") and line.endswith("yes") for line in lines) == 6


def broken_build(build):
    """Every proposal is taken."""

    def everything(self, logdensity_fn):
        algorithm = build(self, logdensity_fn)

        def step(rng_key, state):
            _, info = algorithm.step(rng_key, state)
            return info.proposal, info

        return SamplingAlgorithm(algorithm.init, step)

    return everything


def test_a_broken_kernel_is_named(monkeypatch, capsys):
    """Patched in place, after the right one was compiled: nothing old is used."""
    assert main(["verify", "--only", "kernels.RandomWalk"]) == 0
    monkeypatch.setattr(kernels.RandomWalk, "build", broken_build(kernels.RandomWalk.build))
    assert main(["verify", "--only", "kernels.RandomWalk"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "failed: kernels.RandomWalk"


def test_a_broken_normaliser_is_named(monkeypatch, capsys):
    """Half a nat off, by what it would take for a forgotten factor."""
    wrong = ebm.normalizers.LogNormalizerEstimate(np.log(2 * np.pi * 1.2) - 0.5, 0.01, 900.0, 0.2, "importance")

    def importance(energy, proposal, *, key):
        return wrong

    monkeypatch.setattr(normalizers, "importance", importance)
    assert main(["verify", "--only", "normalizers.importance"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "failed: normalizers.importance"
    wrong = dataclasses.replace(wrong, value=wrong.value + 0.5)
    assert main(["verify", "--only", "normalizers.importance"]) == 0


class Unchecked(objectives.AbstractStatelessObjective):
    comparable = True

    def evaluate(self, model, batch, *, key):
        return jax.vmap(model)(batch), {}


def raises(self, model, batch, *, key):
    raise RuntimeError("out of order")


def test_what_has_no_check_or_raises_has_failed(monkeypatch, capsys):
    monkeypatch.setattr(objectives, "Unchecked", Unchecked, raising=False)
    monkeypatch.setattr(objectives.DenoisingScoreMatching, "evaluate", raises)
    result = verify(["Unchecked", "objectives.Denoising"])
    assert not result.ok
    notes = {row.what: row.note for row in result.failures}
    assert notes["objectives.Unchecked"] == "has no check in ebm_ppl/_verify"
    assert notes["objectives.DenoisingScoreMatching"] == "raised RuntimeError: out of order"
    assert json.loads(result.to_json())["rows"][0]["got"] is None


def test_everything_that_is_exported_has_a_check():
    checks = find_checks()
    assert not [name for name, check in checks.items() if check is None]
    assert {"objectives.ExactScoreMatching", "kernels.NUTS"} <= checks.keys()


def test_an_unknown_name_is_an_error_that_lists_the_known(capsys):
    assert main(["verify", "--only", "Nonsense"]) == 2
    assert "nothing to verify is called 'nonsense'; there are objectives." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])


@pytest.mark.parametrize(
    ("got", "standard_error", "ok"),
    [
        (1.0, 0.01, True),
        (1.1, 0.01, False),
        (1.0, 0.0, False),
        (1.0, 0.2, False),
        (1.0, np.inf, False),
        (1.0, np.nan, False),
        (np.nan, 0.01, False),
    ],
)
def test_only_a_sharp_finite_agreement_is_ok(got, standard_error, ok):
    assert Row("what", "loss", 1.0, got, standard_error).ok(critical_value(10)) is ok


def test_constant_draws_prove_nothing():
    (row,) = mean_rows("what", ["loss"], [0.5], np.full((100, 1), 0.5))
    assert not row.ok(5.0)


@pytest.mark.slow
def test_the_whole_of_it_in_its_own_process():
    """Two minutes on two cores."""
    command = [sys.executable, "-m", "ebm_ppl", "verify"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " comparisons ok (limit " in done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", _objectives.OBJECTIVES)
def test_every_check_notices_a_wrong_energy(name, monkeypatch):
    """The power of the checks: each fails where the objective sees -1.2 E."""
    right = _objectives.OBJECTIVES[name]

    class Inverted(objectives.AbstractObjective):
        objective: objectives.AbstractObjective
        comparable = True

        def init(self, model, batch, *, key):
            return self.objective.init(model, batch, key=key)

        def __call__(self, model, state, batch, *, key):
            return self.objective(invert(model), state, batch, key=key)

    def invert(model):
        if isinstance(model, tuple):
            return (invert(model[0]), *model[1:])
        if isinstance(model, ebm.ShiftedEnergy):
            return ebm.ShiftedEnergy(invert(model.energy), model.log_normalizer)
        return Negated(model, model.event_shape, condition_shape=model.condition_shape, factor=1.2)

    def settings(cls):
        return [dataclasses.replace(one, objective=Inverted(one.objective)) for one in right(cls)]

    monkeypatch.setitem(_objectives.OBJECTIVES, name, settings)
    result = verify([f"objectives.{name}"])
    assert any(row.what == f"objectives.{name}" for row in result.failures)
    assert all(np.isfinite(row.got) for row in result.failures), result.failures
