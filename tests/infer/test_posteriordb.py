"""`BlackJAXKernel` on published posteriors: means and variances within 4 Monte Carlo errors of the reference draws.

The data are not part of this project: `EBM_PPL_POSTERIORDB` names a folder with `NAME.data.json.zip` of
github.com/stan-dev/posteriordb. The reference moments, made of its 10 x 1,000 reference draws, are in
`posteriordb_reference.json`.
"""

import os
import pathlib

import numpy as np
import pytest

import ebm_ppl as ebm
from tests.infer import posteriordb
from tests.infer.models import run
from tests.statistics import StatisticalError, mcse_mean

KERNELS = {
    "NUTS": (ebm.NUTS(), 1000),
    "HMC": (ebm.HMC(num_integration_steps=16), 2000),
    "MALA": (ebm.MALA(), 10_000),
}
FOLDER = os.environ.get("EBM_PPL_POSTERIORDB", "")


def worst_z(samples, reference):
    """The largest |difference| of a mean or variance in standard errors, both sides counted, and where."""
    found = posteriordb.columns(samples)
    scores = {}
    for name, expected in reference.items():
        draws = found[name]
        centred = (draws - expected["mean"]) ** 2
        for what, values in (("mean", draws), ("variance", centred)):
            error = np.hypot(mcse_mean(values), expected[f"{what}_mcse"])
            scores[f"{what} of {name}"] = float(np.abs(values.mean() - expected[what]) / error)
    return max(scores.items(), key=lambda entry: entry[1])


def assert_reference(samples, reference):
    where, z = worst_z(samples, reference)
    if not z <= 4:
        raise StatisticalError(f"{where}: {z:.1f} standard errors from the reference")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", posteriordb.MODELS)
def test_moments(name, kernel):
    if not pathlib.Path(FOLDER, "sblrc.data.json.zip").is_file():
        pytest.skip("the environment variable EBM_PPL_POSTERIORDB does not name a folder with posteriordb's data")
    model, arguments = posteriordb.load(FOLDER, name)
    transition, num_samples = KERNELS[kernel]
    blackjax_kernel = ebm.BlackJAXKernel(model, kernel=transition, precondition="dense")
    mcmc = run(blackjax_kernel, *arguments, num_warmup=1500, num_samples=num_samples)
    assert_reference(mcmc.get_samples(group_by_chain=True), posteriordb.REFERENCE[name])


def test_the_comparison_has_power():
    """The twin: reference moments pass with draws of their own law, and fail with a mean or a scale 10 % off."""
    rng, reference = np.random.default_rng(0), posteriordb.REFERENCE["sblrc-blr"]
    draws = {}
    for name in ("beta", "sigma"):
        entries = [value for label, value in reference.items() if label.startswith(name)]
        means, sds = (
            np.array([f(entry) for entry in entries]) for f in (lambda e: e["mean"], lambda e: e["variance"] ** 0.5)
        )
        draws[name] = means + sds * rng.normal(size=(4, 2000, len(means)))
    draws["sigma"] = draws["sigma"][..., 0]
    sd = reference["sigma"]["variance"] ** 0.5
    assert_reference(draws, reference)
    for broken in (draws["sigma"] + 0.1 * sd, draws["sigma"].mean() + 1.1 * (draws["sigma"] - draws["sigma"].mean())):
        with pytest.raises(StatisticalError):
            assert_reference(draws | {"sigma": broken}, reference)
