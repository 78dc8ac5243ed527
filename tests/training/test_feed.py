"""The feed: from any step on, the examples that the step asks for."""

import itertools

import jax
import numpy as np

from score_sde.training.feed import batch_indices, in_memory
from score_sde.training.mesh import along_data, data_mesh


def test_every_array_is_gathered_by_the_order_of_the_steps():
    arrays = {
        "x": np.arange(20, dtype=np.uint8).reshape(10, 2),
        "condition": {"labels": np.arange(10, dtype=np.int32) % 3},
    }
    mesh = data_mesh(jax.devices()[:1])
    batches = in_memory(arrays, batch_size=4, seed=7, mesh=mesh)
    for first_step in (0, 5):  # epochs end within a batch
        for step, batch in enumerate(itertools.islice(batches(first_step), 4), first_step):
            rows = batch_indices(7, step, 4, 10)
            np.testing.assert_array_equal(batch["x"], arrays["x"][rows])
            np.testing.assert_array_equal(batch["condition"]["labels"], rows % 3)
            assert batch["x"].dtype == np.uint8 and batch["x"].sharding == along_data(mesh)
    empty = in_memory({"x": arrays["x"], "condition": {}}, batch_size=4, seed=7, mesh=mesh)
    assert next(empty(0))["condition"] == {}
