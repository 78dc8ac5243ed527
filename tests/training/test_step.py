"""The step over a mesh: what it computes, and that the number of devices changes only roundings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_sde.training.checkpoints import Checkpoints
from score_sde.training.mesh import data_mesh
from score_sde.training.state import create
from score_sde.training.step import make_train_step
from tests.training.tiny_run import TinyRun


def test_the_loss_sees_state_and_stored_bytes_and_the_folded_key():
    seen = []

    def loss_fn(params, state, batch, key):
        seen.append(jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), batch))
        pixels = batch["x"][:, 0].astype(jnp.float32)
        # The averages follow the parameters, 1, and carry no gradient.
        before = state.ema + state.step.astype(jnp.float32)
        return params * pixels + jax.random.uniform(key, pixels.shape) + before

    mesh, sgd = data_mesh(jax.devices()[:1]), optax.sgd(0.0)
    step = make_train_step(loss_fn, sgd, 0.0, mesh)
    params = jnp.ones(())
    state = create(params, sgd, mesh)
    key = jax.random.key(3)
    losses = []
    for x in ([[250], [10]], [[0], [20]]):
        batch = {"x": np.array(x, np.uint8), "condition": {}}
        state, metrics = step(state, batch, key)
        losses.append(float(metrics["loss"]))
        assert set(metrics) == {"loss", "grad_norm"}  # SGD's state does not hold its rate
        assert float(metrics["grad_norm"]) == np.mean(x)
    noise = [float(jnp.mean(jax.random.uniform(jax.random.fold_in(key, n), (2,)))) for n in (0, 1)]
    # Sums of a few float32 numbers up to 250: 250 * 6e-8, twice.
    expected = [130 + noise[0] + 1 + 0, 10 + noise[1] + 1 + 1]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=3e-5)
    assert seen == [{"x": (jnp.uint8, (2, 1)), "condition": {}}]
    assert int(state.step) == 2
    assert float(params) == 1.0  # the caller's array outlives the donated state


def test_many_devices_are_one(run_python, tmp_path):
    code = f"""
from pathlib import Path
from tests.training.tiny_run import TinyRun
run = TinyRun()
run.train(Path({str(tmp_path)!r}), num_steps=8)
assert run.mesh.size == 4 and run.traces == 1, (run.mesh, run.traces)
parts = next(run.batches(3))["x"].addressable_shards
assert [part.data.shape for part in parts] == [(2, 3, 3, 1)] * 4, parts
"""
    run_python(code, {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"})
    run = TinyRun()
    halfway = Checkpoints(tmp_path / "checkpoints").restore(run.state())
    assert halfway is not None and int(halfway.step) == 8
    resumed, whole = run.train(tmp_path), run.train(tmp_path / "whole")
    # Sums in another order move a gradient by 1e-7 relative; Adam's quotient passes that on times
    # the rate, 1e-2, but up to tenfold where the moments nearly cancel: 12 steps stay below 1e-6.
    for left, right in zip(jax.tree.leaves(resumed.ema), jax.tree.leaves(whole.ema), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-6)
