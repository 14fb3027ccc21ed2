"""Draws of an energy with isolated modes from ladders of replicas."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ebm_ppl._checks import check_count
from ebm_ppl._types import PRNGKey
from ebm_ppl.distributions._sampler import AbstractSampler, Record, check_sampler
from ebm_ppl.energies import AbstractReferenceEnergy
from ebm_ppl.energies._coordinate_energy import CoordinateEnergy
from ebm_ppl.kernels import AbstractKernel, Barker
from ebm_ppl.sampling import Tempering
from ebm_ppl.sampling._parallel_tempering import check_ladder, check_reference
from ebm_ppl.sampling._run_tempering import run_tempering


class TemperedSampler(AbstractSampler):
    r"""Draws from parallel tempering: for energies with isolated modes.

    Every draw has a ladder of replicas of its own, from a reference that is drawn exactly (\(\beta = 0\)) to the energy
    (\(\beta = 1\)), all in the real coordinates of the support; see `ebm.parallel_tempering`. The draw is the position
    at the target level after `num_warmup + num_iterations` iterations. It is exact as far as replicas have travelled
    the ladder by then: `draws` counts their round trips.

    Cost: `(num_warmup + num_iterations) * num_steps` transitions at every level for every draw; see `ChainSampler` for
    what runs at once. The ladder stays as given. `ebm.parallel_tempering` finds a good one:
    `TemperedSampler(inverse_temperatures=run.tempering.inverse_temperatures)`.

    Args:
        kernel: how each level is explored; `Barker()` by default.
        inverse_temperatures: the number of levels, or the ladder: increasing, first 0, last 1.
        reference: exact draws that cover the modes, in the real coordinates of the support; N(0, 3^2) by default.
        num_warmup: iterations that tune the step size of every level.
        num_iterations: iterations from there to the draw, and from one draw to the next of the same ladder.
        num_steps: transitions at every level in each iteration, before swaps are tried.
        num_chains: at most so many ladders at once; None: one for every draw.

    Raises:
        TypeError: `kernel` or `reference` is of the wrong kind.
        ValueError: a count or the ladder is out of range.
        EnergyShapeError: when drawing, `reference` has not the shape of the real coordinates.
        NotImplementedError: when drawing, the support is one that NumPyro has no bijection onto.

    Example:
        >>> import jax, jax.numpy as jnp, ebm_ppl as ebm
        >>> energy = ebm.FunctionEnergy(lambda x: -jnp.logaddexp(-(x - 4)**2 / 2, jnp.log(3) - (x + 4)**2 / 2), ())
        >>> sampler = ebm.distributions.TemperedSampler(inverse_temperatures=6)
        >>> draws = ebm.EnergyDistribution(energy, sampler=sampler).sample(jax.random.key(0), (400,))
        >>> bool(abs((draws < 0).mean() - 0.75) < 0.1)                             # the left mode weighs three times
        True

    References:
        Syed, Bouchard-Cote, Deligiannidis, Doucet (2022). Non-reversible parallel tempering: a scalable highly
        parallel MCMC scheme. Journal of the Royal Statistical Society B 84(2), 321-350. doi:10.1111/rssb.12464
    """

    kernel: AbstractKernel | Any = eqx.field(default_factory=Barker)
    inverse_temperatures: int | tuple[float, ...] | Any = eqx.field(
        default=8, converter=lambda levels: tuple(map(float, check_ladder(levels)))
    )
    reference: AbstractReferenceEnergy | Any = None
    num_warmup: int = 60
    num_iterations: int = 60
    num_steps: int = 5
    num_chains: int | None = None

    def __check_init__(self) -> None:
        """Everything in range."""
        check_sampler(self)
        check_count("num_iterations", self.num_iterations)
        check_count("num_steps", self.num_steps)
        if self.reference is not None and not isinstance(self.reference, AbstractReferenceEnergy):
            raise TypeError(
                "`reference` must be an ebm.AbstractReferenceEnergy with exact draws; "
                f"got {type(self.reference).__name__}."
            )

    @property
    def transitions_per_draw(self) -> int:
        """Of the target level."""
        return self.num_iterations * self.num_steps

    def run(self, target: CoordinateEnergy, key: PRNGKey, num_chains: int, num_draws: int, condition: Any) -> Record:
        """Tempering without host code; one of `num_iterations` records is kept."""
        betas = jnp.asarray(self.inverse_temperatures, jnp.result_type(float))
        records, trips = run_tempering(
            target,
            self._reference_of(target),
            self.kernel,
            betas,
            key=key,
            num_chains=num_chains,
            num_warmup=self.num_warmup,
            num_samples=num_draws * self.num_iterations,
            num_steps=self.num_steps,
            condition=condition,
        )
        record = dict(records)
        positions, potentials = record.pop("position"), record.pop("potentials")
        rates = record.pop("swap_acceptance")

        def combined(name: str, rows: Array) -> Array:
            rows = rows.reshape(num_chains, num_draws, self.num_iterations)
            if rows.dtype == bool:
                return jnp.any(rows, axis=-1)
            return jnp.mean(rows, axis=-1) if name == "acceptance_rate" else rows[..., -1]

        stats = {name: combined(name, rows) for name, rows in record.items()}
        last = slice(self.num_iterations - 1, None, self.num_iterations)
        return Record(positions[:, last], stats, (potentials, rates, trips))

    def _reference_of(self, target: CoordinateEnergy) -> AbstractReferenceEnergy:
        return check_reference(target, self.reference)

    def _tempering(self, record: Record, target: CoordinateEnergy) -> Tempering | None:
        if record.tempering is None:
            return None
        potentials, rates, trips = (np.asarray(rows) for rows in record.tempering)
        rejection = 1 - np.nanmean(rates.reshape(-1, rates.shape[-1]), axis=0)
        reference = float(self._reference_of(target).log_normalizer)
        ladder = np.asarray(self.inverse_temperatures)
        return Tempering(ladder, rejection, trips, potentials.shape[1], potentials, reference)
