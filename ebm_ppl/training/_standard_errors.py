"""Standard errors of fitted parameters."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ebm_ppl._checks import check_count, check_key
from ebm_ppl._types import Scalar
from ebm_ppl.objectives import AbstractMeanObjective, Batch
from ebm_ppl.training._inputs import check_batch, partition

MAX_PARAMETERS = 2000


class StandardErrors(NamedTuple):
    """Standard errors, and how far from its minimum the objective was.

    Attributes:
        errors: like the model, with the standard error of every parameter in its place and None elsewhere.
        distance: largest |Newton step| in standard errors. Below about 1 the model is at the minimum for the purpose;
            above, train on before you believe the errors.
    """

    errors: Any
    distance: Scalar


def standard_errors(
    model: Any,
    data: Any,
    objective: AbstractMeanObjective,
    *,
    key: Any,
    condition: Any = None,
    trainable: Any = None,
    num_draws: int = 1,
) -> StandardErrors:
    r"""Asymptotic standard errors of parameters that minimise a mean over the data (the sandwich formula).

        Cov(theta) = H^-1 S H^-1 / n,   H = mean Hessian of the loss, S = mean outer product of its gradients

    Valid for every objective that is a mean over rows, whether or not the model is right, for n large against the
    number of parameters. For `NoiseContrastive` this is the error bar of the learned log Z.

    The objective's own randomness (noise, probes) counts as if each datum had met `num_draws` draws of it. `fit` draws
    afresh at every step, so its error lies between that of `num_draws=1` and the limit of many draws, which is the
    data's own.

    Args:
        model: the fitted model.
        data: what it was fitted to, `(n, *event_shape)`.
        objective: what was minimised.
        key: a JAX key.
        condition: `(n, *condition_shape)` for a conditional energy.
        trainable: which parameters were free, as in `fit`; the others count as known. At most 2,000.
        num_draws: draws of the objective's randomness per datum.

    Returns:
        `StandardErrors(errors, distance)`; `errors` is read like the model: `errors.log_normalizer`.

    Raises:
        TypeError: if `objective` is not a mean over the data.
        ValueError: if there are too many parameters, or the Hessian is not positive definite: some direction in
            parameter space is not identified (as in most networks), or the model is not at a minimum.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> law = ebm.energies.Gaussian(mean=jnp.zeros(1), covariance=jnp.eye(1))
        >>> data = law.sample(jax.random.key(0), (10_000,))
        >>> result = ebm.standard_errors(law, data, ebm.objectives.ExactScoreMatching(), key=jax.random.key(1))
        >>> print(f"{result.errors.mean[0]:.3f}")           # 1/sqrt(n)
        0.010

    References:
        White (1982). Maximum likelihood estimation of misspecified models. Econometrica 50(1), 1-25.
        doi:10.2307/1912526
        Gutmann, Hyvärinen (2012). Noise-contrastive estimation of unnormalized statistical models. Journal of Machine
        Learning Research 13, 307-361. https://jmlr.org/papers/v13/gutmann12a.html
    """
    key = check_key(key)
    num_draws = check_count("num_draws", num_draws)
    if not isinstance(objective, AbstractMeanObjective):
        raise TypeError(f"`objective` must be a mean over the data; {type(objective).__name__} is not.")
    batch = check_batch(model, objective, data, condition)
    params, static = partition(model, trainable)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if count > MAX_PARAMETERS:
        raise ValueError(
            f"standard errors need a {count} x {count} matrix, the limit is {MAX_PARAMETERS}: select with `trainable`."
        )
    errors, distance, definite = _sandwich(objective, params, static, batch, key, num_draws)
    if not definite:
        raise ValueError(
            "the Hessian of the loss is not positive definite: some direction in parameter space is not identified, or "
            "the model is not at a minimum; select identified parameters with `trainable`, or train on."
        )
    return StandardErrors(errors, distance)


@eqx.filter_jit
def _sandwich(
    objective: AbstractMeanObjective, params: Any, static: Any, batch: Batch, key: Array, num_draws: int
) -> tuple[Any, Array, Array]:
    theta, unravel = ravel_pytree(params)
    keys = jax.random.split(key, num_draws)

    def rows(theta: Array) -> Array:
        model = eqx.combine(unravel(theta), static)
        draws = jax.lax.map(lambda key: objective.evaluate(model, batch, key=key)[0], keys)
        return jnp.mean(draws, 0)

    gradients = jax.jacfwd(rows)(theta)
    hessian = jax.jacfwd(jax.grad(lambda theta: jnp.mean(rows(theta))))(theta)
    mean = jnp.mean(gradients, 0)
    centred = gradients - mean[None]
    num_rows = gradients.shape[0]
    inverse = jnp.linalg.inv(hessian)
    covariance = inverse @ (centred.T @ centred / num_rows) @ inverse.T / num_rows
    errors = jnp.sqrt(jnp.diagonal(covariance))
    eigenvalues = jnp.linalg.eigvalsh(hessian)
    definite = eigenvalues[0] > theta.size * jnp.finfo(theta.dtype).eps * eigenvalues[-1]
    return unravel(errors), jnp.max(jnp.abs(inverse @ mean) / errors), definite
