"""What every objective inherits: shapes of batches, the mean over rows, finding the energy."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest

import ebm_ppl as ebm
from ebm_ppl.errors import EnergyShapeError, InvalidDataError, KeyArgumentError
from ebm_ppl.objectives import AbstractObjective, AbstractStatelessObjective, DenoisingScoreMatching, energy_of
from tests.objectives.estimation import isotropic_energy

OBJECTIVE = DenoisingScoreMatching(0.5)
KEY = jax.random.key(0)


def conditional(x, condition):
    return jnp.sum(x**2) * (1 + jnp.sum(condition**2))


CONDITIONAL = ebm.FunctionEnergy(conditional, (2,), condition_shape=(3,))


class CountsItsSteps(AbstractObjective[jax.Array]):
    """The smallest objective with state."""

    comparable: ClassVar[bool] = False

    def init(self, model, batch, *, key):
        return jnp.zeros(())

    def __call__(self, model, state, batch, *, key):
        x, _ = self.split_batch(model, batch)
        return jnp.mean(jax.vmap(model)(x)) + state, (state + 1, {"steps": state})


def test_loss_of_an_objective_with_state_starts_afresh():
    assert float(CountsItsSteps().loss(isotropic_energy(1.0), jnp.ones((3, 1)), key=KEY)) == 0.5


def test_comparable_must_be_declared():
    class Undeclared(AbstractStatelessObjective):
        def evaluate(self, model, batch, *, key):
            return jnp.zeros(3), {}

    with pytest.raises(TypeError, match="abstract"):
        Undeclared()


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 1)])
def test_data_of_another_shape_are_refused(shape):
    with pytest.raises(EnergyShapeError, match=r"`data` must have shape \(n, 2\)"):
        OBJECTIVE.loss(isotropic_energy(1.0, (2,)), jnp.ones(shape), key=KEY)


def test_empty_batches_are_refused():
    with pytest.raises(InvalidDataError, match="`data` is empty"):
        OBJECTIVE.loss(isotropic_energy(1.0, (2,)), jnp.ones((0, 2)), key=KEY)


@pytest.mark.parametrize(
    ("energy", "batch", "message"),
    [
        (CONDITIONAL, jnp.ones((4, 2)), "the energy is conditional"),
        (CONDITIONAL, (jnp.ones((4, 2)), jnp.ones((4, 2))), r"`condition` must have shape \(n, 3\)"),
        (CONDITIONAL, (jnp.ones((4, 2)), jnp.ones((3, 3))), "one row per event: 4; got 3"),
        (isotropic_energy(1.0, (2,)), (jnp.ones((4, 2)), jnp.ones((4, 3))), "takes none from the data"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(energy, batch, message):
    with pytest.raises(EnergyShapeError, match=message):
        OBJECTIVE.loss(energy, batch, key=KEY)


@pytest.mark.parametrize("key", [0, None, jax.random.split(KEY, 3)])
def test_key_is_checked(key):
    with pytest.raises(KeyArgumentError, match="`key` must be"):
        OBJECTIVE.loss(isotropic_energy(1.0), jnp.ones((4, 1)), key=key)


def test_energy_of_finds_the_first_energy():
    energy = isotropic_energy(1.0)
    assert energy_of(energy) is energy
    assert energy_of((energy, {"flow": jnp.ones(3)})) is energy
    with pytest.raises(TypeError, match="must be an energy or hold one; got dict"):
        energy_of({"flow": jnp.ones(3)})


def test_energy_that_is_no_scalar_is_refused():
    with pytest.raises(EnergyShapeError, match="must return one floating scalar"):
        OBJECTIVE.loss(ebm.FunctionEnergy(jnp.square, (2,)), jnp.ones((4, 2)), key=KEY)
