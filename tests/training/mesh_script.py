"""Run in a process of its own, whose number of devices is set before JAX starts: the same fits, alone and on a mesh."""

import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ebm_ppl as ebm

DATA = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
OPTIMIZER = optax.adam(0.01)


class Watched(ebm.objectives.AbstractStatelessObjective):
    """Notes how the batch lies on the devices."""

    seen: Any = eqx.field(static=True)
    comparable = True

    def evaluate(self, model, batch, *, key):
        jax.debug.inspect_array_sharding(batch, callback=self.seen.append)
        return jax.vmap(model)(batch), {}


def runs(mesh):
    energy = ebm.MLPEnergy((3,), width=16, depth=2, key=jax.random.key(1))
    normal = ebm.energies.Gaussian(jnp.zeros(3), 2 * jnp.eye(3))
    settings = {"key": jax.random.key(0), "optimizer": OPTIMIZER, "num_steps": 30, "progress_bar": False, "mesh": mesh}
    denoising = ebm.objectives.DenoisingScoreMatching(0.3)
    yield ebm.fit(energy, DATA, denoising, batch_size=16, validation=0.2, ema_decay=0.9, **settings)
    contrast = ebm.objectives.NoiseContrastive(normal, 2)
    yield ebm.fit(ebm.ShiftedEnergy(energy, 1.0), DATA, contrast, batch_size=40, **settings)
    batches = (DATA[start : start + 40] for _ in range(20) for start in range(0, 120, 40))
    yield ebm.fit(energy, batches, denoising, **settings)


def main(devices, checkpoint):
    assert jax.device_count() == devices
    mesh = jax.make_mesh((devices,), ("batch",))
    for number, (alone, spread) in enumerate(zip(runs(None), runs(mesh), strict=True)):
        assert spread.ok
        assert spread.settings["num_devices"] == devices
        for leaf in jax.tree.leaves(spread.last_model):
            if isinstance(leaf, jax.Array) and number < 2:
                assert leaf.sharding.is_fully_replicated
                assert len(leaf.sharding.device_set) == devices
        for name, values in alone.metrics.items():
            np.testing.assert_allclose(spread.metrics[name], values, rtol=2e-3, atol=2e-4, err_msg=f"{number} {name}")
        # The first step has met rounding once only.
        np.testing.assert_allclose(spread.metrics["loss"][0], alone.metrics["loss"][0], rtol=1e-5)
        assert not np.allclose(alone.metrics["loss"][0], alone.metrics["loss"][1], rtol=1e-3)
    resumed = {"mesh": mesh, "key": jax.random.key(0), "batch_size": 16, "progress_bar": False, "optimizer": OPTIMIZER}
    energy, denoising = ebm.MLPEnergy((3,), width=16, key=jax.random.key(1)), ebm.objectives.DenoisingScoreMatching(0.3)
    whole = ebm.fit(energy, DATA, denoising, num_steps=20, **resumed)
    ebm.fit(energy, DATA, denoising, num_steps=7, checkpoint=checkpoint, **resumed)
    again = ebm.fit(energy, DATA, denoising, num_steps=20, checkpoint=checkpoint, **resumed)
    assert np.array_equal(again.metrics["loss"], whole.metrics["loss"])
    seen = []
    ebm.fit(energy, DATA, Watched(seen), num_steps=1, **resumed)
    assert seen
    assert all(sharding.shard_shape((16, 3)) == (16 // devices, 3) for sharding in seen)
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of the mesh's 4 devices; got 15"):
        ebm.fit(energy, DATA, denoising, **(resumed | {"batch_size": 15}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
