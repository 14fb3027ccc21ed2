"""Likelihoods of single observations are for comparing models: they need log Z even where the posterior does not.

`numpyro.infer.log_likelihood` (and through it `az.from_numpyro(mcmc, log_likelihood=True)`, `az.loo`, `az.compare`)
calls `log_prob` just as inference does: nothing in the call tells the two apart but the caller.
"""

import sys
from types import FrameType

import numpyro  # noqa: F401  (before any of its submodules)
from numpyro.infer import log_likelihood

from ebm_ppl.errors import MissingLogNormalizerError


def asks_for_likelihood() -> bool:
    """Whether `numpyro.infer.log_likelihood` is among the callers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is log_likelihood.__code__:
            return True
        frame = frame.f_back
    return False


def refuse_unnormalized_likelihood(description: str) -> None:
    """Raise if `numpyro.infer.log_likelihood` is asking for this log density, which lacks its log Z."""
    if asks_for_likelihood():
        raise MissingLogNormalizerError(
            f"the log likelihood of {description} was asked for, and it has no `log_normalizer`: every observation "
            "would be off by the unknown log Z, and az.loo or az.compare would rank models by their scale. Give "
            "`log_normalizer=ebm.log_normalizer(energy, key=...)`, or a number in nats if it is known."
        )
