"""A step size for ULA from the curvature of the energy and the bias that is allowed."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_ppl._checks import check_condition, check_count, check_key, check_positive
from ebm_ppl.energies import AbstractEnergy
from ebm_ppl.energies._check_start import check_coordinates, event_rows
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy, coordinate_energy
from ebm_ppl.energies._sum import check_energy_type
from ebm_ppl.errors import NonFiniteEnergyError
from ebm_ppl.kernels import ULA


def ula_within_bias(
    energy: AbstractEnergy,
    positions: Float[Array, "n ..."] | Any,
    *,
    key: Array | Any,
    relative_bias: float | Any = 0.05,
    num_iterations: int | Any = 50,
    condition: Any = None,
) -> ULA:
    r"""`ULA` with the step size whose bias of the variance is `relative_bias` where the curvature is largest.

    \(h = 2 b / ((1 + b) L)\) with b = `relative_bias` and L the largest absolute eigenvalue of the Hessian of E at the
    `positions`, found by power iteration. On a Gaussian ULA's stationary variance along a direction of curvature p is
    \(1 / (p (1 - h p / 2))\): with this h too large by the factor 1 + b in the direction of curvature L, by less in
    all others. h < 2 / L always, so that the chain is stable there. On other energies b is a guide: L is the largest
    curvature *at the positions* (give draws, or the region that matters, not one point), and power iteration
    approaches it from below. The draws' `settings["stated_bias"]` say what was assumed.

    Args:
        energy: E, twice differentiable.
        positions: where to look at the curvature, shape `(n, *event_shape)`.
        key: a JAX key, for the first directions.
        relative_bias: b > 0, dimensionless; 0.05 allows five per cent of the variance.
        num_iterations: Hessian-vector products per position.
        condition: for conditional energies, one `condition_shape`.

    Returns:
        A `ULA` with `step_size` h and `largest_curvature` L.

    Raises:
        ValueError: if `relative_bias` is not positive and finite.
        NonFiniteEnergyError: if a Hessian is not finite, or zero everywhere.
        EnergyShapeError, EnergyDtypeError, NonDifferentiableEnergyError: as `ebm.sample`.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.energies.Gaussian(jnp.zeros(2), jnp.diag(jnp.array([1.0, 0.25])))      # curvatures 1 and 4
        >>> kernel = ebm.sampling.ula_within_bias(energy, jnp.zeros((1, 2)), key=jax.random.key(0), relative_bias=0.1)
        >>> round(float(kernel.step_size), 4), round(kernel.stated_bias["relative_variance"], 3)
        (0.0455, 0.1)

    References:
        Durmus, Moulines (2017). Nonasymptotic convergence analysis for the unadjusted Langevin algorithm. Annals
        of Applied Probability 27(3), 1551-1587. doi:10.1214/16-AAP1238
        Wibisono (2018). Sampling as optimization in the space of measures (the Gaussian case). COLT, PMLR 75,
        2093-3027. arXiv:1802.08089
    """
    check_positive("relative_bias", relative_bias)
    bias = float(relative_bias)
    count = check_count("num_iterations", num_iterations)
    check_energy_type("energy", energy)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(positions) if hasattr(leaf, "dtype")]
    half = next((dtype for dtype in dtypes if dtype in (jnp.bfloat16, jnp.float16)), None)
    inner = coordinate_energy(energy, half)
    starts = event_rows(inner, "positions", positions)
    condition = check_condition(condition, energy.condition_shape)
    check_coordinates(inner, starts, condition, needs_gradient=True)
    curvatures = np.asarray(_largest_curvatures(inner, starts, condition, check_key(key), count))
    if not np.isfinite(curvatures).all() or curvatures.max() <= 0:
        bad = int(np.argmax(~np.isfinite(curvatures)))
        raise NonFiniteEnergyError(
            f"the curvature of `{type(energy).__name__}` is {curvatures[bad]:.3g} at position {bad}: a step size "
            "cannot be derived from it; set ULA(step_size) yourself."
        )
    largest = float(curvatures.max())
    return ULA(2 * bias / ((1 + bias) * largest), largest_curvature=largest)


@eqx.filter_jit
def _largest_curvatures(
    energy: CoordinateEnergy, positions: Array, condition: Array | None, key: Array, num_iterations: int
) -> Float[Array, " n"]:
    """Largest absolute eigenvalue of the Hessian at every position."""
    gradient = jax.grad(energy.target.at_condition(condition))

    def one(x: Array, key: Array) -> Array:
        def product(direction: Array) -> Array:
            return jax.jvp(gradient, (x,), (direction,))[1]

        def iterate(_: Array, direction: Array) -> Array:
            image = product(direction)
            norm = jnp.linalg.norm(image.ravel())
            return jnp.where(norm > 0, image / norm, direction)

        first = jax.random.normal(key, x.shape, x.dtype)
        direction = jax.lax.fori_loop(0, num_iterations, iterate, first / jnp.linalg.norm(first.ravel()))
        return jnp.linalg.norm(product(direction).ravel())

    return jax.vmap(one)(positions, jax.random.split(key, positions.shape[0]))
