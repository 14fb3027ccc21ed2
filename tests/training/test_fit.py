"""`fit` finds what closed forms say, on any batch size, reproducibly, and compiles once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ebm_ppl as ebm
from ebm_ppl.energies import Gaussian
from ebm_ppl.objectives import AbstractStatelessObjective, DenoisingScoreMatching, NoiseContrastive
from tests.compilation import count_lowerings
from tests.objectives.estimation import isotropic_energy
from tests.statistics import StatisticalError, assert_close

OBJECTIVE = DenoisingScoreMatching(0.5, antithetic=True)
DECAYING = optax.sgd(optax.cosine_decay_schedule(0.1, 2000))
FAST = optax.sgd(0.1)


class FlippedDenoising(AbstractStatelessObjective):
    """Fits the score to +e/sigma: the energy inverted, as in torchebm 0.4.0 to 0.8.8."""

    comparable = True

    def evaluate(self, model, batch, *, key):
        x, _ = self.split_batch(model, batch)
        noise = jax.random.normal(key, x.shape)
        score = jax.vmap(lambda x: ebm.score(model, x))(x + 0.5 * noise)
        return jnp.sum((score - noise / 0.5) ** 2, 1) / 2, {}


def fit(model, data, objective=OBJECTIVE, **settings):
    settings = {"key": jax.random.key(7), "optimizer": FAST, "num_steps": 30, "progress_bar": False} | settings
    return ebm.fit(model, data, objective, **settings)


def check_precision(objective, key, *, batch_size=64):
    """Data N(0, 1), noise .5: precision .8. The noise is fresh at every step, so only the data's own error is left."""
    data = jax.random.normal(key, (4000, 1))
    result = fit(isotropic_energy(0.1), data, objective, optimizer=DECAYING, num_steps=2000, batch_size=batch_size)
    assert result.ok
    assert_close(result.model.params, 0.8, 0.8**2 * np.sqrt(2 / 4000), what="precision")


@pytest.mark.parametrize("batch_size", [16, 64, 4000])
def test_denoising_finds_the_smoothed_precision_for_any_batch_size(batch_size, key):
    check_precision(OBJECTIVE, key, batch_size=batch_size)


def test_flipped_sign_fails(key):
    with pytest.raises(StatisticalError):
        check_precision(FlippedDenoising(), key)


def check_noise_contrast(objective, key):
    """Data N(0, I_2) of precision 1, log Z = log 2 pi; errors from TRUTHS C3's limit of much noise, 2/d and 1/2 x d."""
    data = jax.random.normal(key, (4000, 2))
    model = ebm.ShiftedEnergy(isotropic_energy(0.7, (2,)), 1.0)
    result = fit(model, data, objective, optimizer=DECAYING, num_steps=2000, batch_size=200)
    assert result.ok
    estimate = [result.model.energy.params, result.model.log_normalizer]
    assert_close(estimate, [1.0, np.log(2 * np.pi)], np.sqrt([4.0 / 4000, 4.0 / 4000]), what="(precision, log Z)")
    return result


def test_noise_contrast_finds_precision_and_log_normalizer(key):
    result = check_noise_contrast(NoiseContrastive(Gaussian(jnp.zeros(2), 2 * jnp.eye(2)), 2), key)
    assert set(result.metrics) == {"loss", "gradient_norm", "accuracy", "log_normalizer"}
    np.testing.assert_allclose(result.metrics["log_normalizer"][-1], result.model.log_normalizer, atol=1e-3)


def test_second_call_compiles_nothing(key):
    """Other data of the same shape, other arrays in model and objective, more steps: all are values, not programs."""
    data, other = jax.random.normal(key, (2, 300, 1))
    fit(isotropic_energy(0.3), data, DenoisingScoreMatching(0.5), ema_decay=0.9, batch_size=32)
    with count_lowerings() as lowerings:
        objective, settings = DenoisingScoreMatching(0.2), {"ema_decay": 0.99, "batch_size": 32, "num_steps": 77}
        result = fit(isotropic_energy(0.4), other, objective, key=jax.random.key(9), **settings)
    assert result.num_steps == 77
    assert lowerings == []


def test_an_equal_optimiser_or_function_is_no_new_program_and_another_one_is(key):
    data, shift = jax.random.normal(key, (300, 1)), jnp.ones(1)

    def run(rate, power=2):
        energy = ebm.FunctionEnergy(lambda p, x: p * jnp.sum((x - shift) ** power), (1,), jnp.asarray(0.3))
        return float(fit(energy, data, optimizer=optax.sgd(rate)).model.params)

    first = run(0.01)
    with count_lowerings() as lowerings:
        assert run(0.01) == first
    assert lowerings == []
    with count_lowerings() as lowerings:
        assert run(0.02) != first  # the rate is a number in the optimiser's code
        assert run(0.01, 1) != first
    assert lowerings != []


def test_default_optimiser_compiles_once(key):
    data = jax.random.normal(key, (300, 1))
    ebm.fit(isotropic_energy(0.3), data, OBJECTIVE, key=key, num_steps=2, progress_bar=False)
    with count_lowerings() as lowerings:
        ebm.fit(isotropic_energy(0.3), data, OBJECTIVE, key=key, num_steps=3, progress_bar=False)
    assert lowerings == []


class Rows(AbstractStatelessObjective):
    """Reports which rows the batch holds: their codes summed, and a draw of the step's key."""

    comparable = True

    def evaluate(self, model, batch, *, key):
        x, _ = self.split_batch(model, batch)
        losses = jax.vmap(model)(x)
        return losses, {"code": jnp.sum(x), "draw": jax.random.uniform(key)}


def test_every_epoch_is_a_permutation_of_the_rows():
    """Powers of two identify the rows: 12 rows in batches of 3 make epochs of 4 steps that hold each row once."""
    data = 2.0 ** np.arange(12, dtype=np.float32)[:, None]
    codes = fit(isotropic_energy(1e-9), data, Rows(), num_steps=40, batch_size=3).metrics["code"].astype(int)
    assert [bin(code).count("1") for code in codes] == [3] * 40
    epochs = codes.reshape(10, 4)
    assert np.all(epochs.sum(1) == 2**12 - 1)
    assert len({tuple(epoch) for epoch in epochs}) == 10


def test_rows_left_over_sit_one_epoch_out():
    """7 rows in batches of 3: two steps an epoch; over many epochs every row is used equally often."""
    data = 2.0 ** np.arange(7, dtype=np.float32)[:, None]
    codes = fit(isotropic_energy(1e-9), data, Rows(), num_steps=4000, batch_size=3).metrics["code"].astype(int)
    used = (codes[:, None] >> np.arange(7)) & 1
    epochs = used.reshape(2000, 2, 7).sum(1)
    assert set(np.unique(epochs)) == {0, 1}
    assert_close(epochs.mean(0), 6 / 7, np.sqrt(6 / 49 / 2000))


def test_the_result_does_not_depend_on_the_chunks(key, monkeypatch):
    """Chunks of 1, 2, 4, ... steps, against chunks of one step: bit for bit the same."""
    data = jax.random.normal(key, (50, 2))
    settings = {"num_steps": 37, "batch_size": 8, "ema_decay": 0.9, "optimizer": optax.adam(0.01)}
    doubling = fit(isotropic_energy(0.3, (2,)), data, Rows(), **settings)
    monkeypatch.setattr("ebm_ppl.training._chunks._next_length", lambda length, seconds: 1)
    single = fit(isotropic_energy(0.3, (2,)), data, Rows(), **settings)
    assert eqx.tree_equal((doubling.model, doubling.metrics), (single.model, single.metrics))
    assert len(np.unique(single.metrics["draw"])) == 37


def test_same_key_same_result_other_key_other_result(key):
    data = jax.random.normal(key, (50, 1))
    first, again, other = (fit(isotropic_energy(0.3), data, key=jax.random.key(seed)) for seed in (1, 1, 2))
    assert first.model.params == again.model.params
    assert first.model.params != other.model.params
    legacy = fit(isotropic_energy(0.3), data, key=jax.random.PRNGKey(1))
    assert first.model.params == legacy.model.params


def test_average_of_the_iterates(key):
    """ema_decay: weights decay^k over the last iterates, normalised to one."""
    data = jax.random.normal(key, (50, 1))
    iterates = [fit(isotropic_energy(0.3), data, num_steps=steps).model.params for steps in (1, 2, 3)]
    result = fit(isotropic_energy(0.3), data, num_steps=3, ema_decay=0.5)
    np.testing.assert_allclose(result.model.params, np.average(iterates, weights=[1, 2, 4]), rtol=1e-6)
    assert result.last_model.params == iterates[-1]


def test_trainable_selects_by_callable_and_by_tree(key):
    data = jax.random.normal(key, (50, 2))
    model = ebm.ShiftedEnergy(Gaussian(jnp.zeros(2), jnp.eye(2)), 1.0)
    objective = NoiseContrastive(Gaussian(jnp.zeros(2), 2 * jnp.eye(2)))
    only_constant = fit(model, data, objective, trainable=lambda leaf: leaf.ndim == 0)
    assert only_constant.model.log_normalizer != 1
    assert np.array_equal(only_constant.model.energy.mean, model.energy.mean)
    mask = jax.tree.map(lambda leaf: False, model)
    mask = eqx.tree_at(lambda model: model.log_normalizer, mask, replace=True)
    by_tree = fit(model, data, objective, trainable=mask)
    assert by_tree.model.log_normalizer == only_constant.model.log_normalizer
    assert by_tree.settings["num_parameters"] == 1


def conditional(slope, x, condition):
    return (x - slope * condition) ** 2 / 2.5


def test_condition_stays_with_its_row(key):
    """Data N(y, 1): the slope is 1."""
    condition = jax.random.normal(key, (2000,))
    data = condition + jax.random.normal(jax.random.fold_in(key, 1), (2000,))
    energy = ebm.FunctionEnergy(conditional, (), 0.0, condition_shape=())
    result = fit(energy, data, condition=condition, optimizer=DECAYING, num_steps=2000, batch_size=50)
    assert_close(result.model.params, 1.0, np.sqrt(1 / 2000))


def test_stateful_optimisers_see_the_loss(key):
    """`reduce_on_plateau` needs `value`; a schedule needs its count."""
    optimizer = optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=2))
    result = fit(isotropic_energy(0.3), jax.random.normal(key, (50, 1)), optimizer=optimizer)
    assert result.ok
    assert float(result.opt_state[1].scale) < 1


def test_float64_stays_float64(key):
    with jax.enable_x64(True):
        data = jax.random.normal(key, (50, 1), jnp.float64)
        result = fit(isotropic_energy(jnp.asarray(0.3, jnp.float64)), data, optimizer=optax.adam(0.01), ema_decay=0.9)
        assert result.ok
        assert result.model.params.dtype == result.metrics["loss"].dtype == jnp.float64


def test_weakly_typed_parameters_compile_once():
    """`jnp.full(2, 0.1)` is one; chunk after chunk would be compiled anew while the types settle."""
    data = jnp.zeros((8, 2))
    energy = ebm.energies.Gaussian(jnp.full(2, 0.1), jnp.eye(2))
    assert energy.mean.weak_type
    with count_lowerings() as lowered:
        ebm.fit(
            energy, data, ebm.objectives.ExactScoreMatching(), key=jax.random.key(0), num_steps=7, progress_bar=False
        )
    assert sum("_run" in name for name in lowered) == 2  # the start, and all chunks
