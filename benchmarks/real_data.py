"""Data sets of scikit-learn's wheel, split into train, validation and test, in whitened coordinates.

Rows are split 60/20/20 at random. Columns are standardised by the training rows and receive Gaussian noise of .05, as
Song et al. (2019) do, for many values occur twice. Pixels of the digits, integers 0 to 16, receive Gaussian noise of .5
before that: uniform noise would leave a density that is not continuous, of which there is no score; constant pixels
become noise. Then all rows are turned and scaled by the training rows' principal axes, so that the training rows have
mean 0 and covariance I. No dimension is left out.
"""

from typing import NamedTuple

import numpy as np
from sklearn import datasets

LOADERS = {"wine": datasets.load_wine, "breast cancer": datasets.load_breast_cancer, "digits": datasets.load_digits}
JITTER, GREY_LEVELS = 0.05, 0.5


class RealData(NamedTuple):
    """Float32 rows, and what to add to a log density, in nats, to have that of the standardised columns."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    log_determinant: float


def load(name, seed=0):
    rng = np.random.default_rng(seed)
    x = LOADERS[name]().data.astype(float)
    if name == "digits":
        x += GREY_LEVELS * rng.standard_normal(x.shape)
    order = rng.permutation(len(x))
    train, validation, test = np.split(order, [int(0.6 * len(x)), int(0.8 * len(x))])
    x = (x - x[train].mean(0)) / x[train].std(0)
    if name != "digits":
        x += JITTER * rng.standard_normal(x.shape)
    variances, axes = np.linalg.eigh(np.cov(x[train].T, bias=True))
    z = ((x - x[train].mean(0)) @ axes / np.sqrt(variances)).astype(np.float32)
    return RealData(z[train], z[validation], z[test], float(-np.log(variances).sum() / 2))
