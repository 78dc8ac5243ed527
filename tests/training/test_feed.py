"""The feeds: from any step on, the examples that the step asks for."""

import itertools
import os

import jax
import numpy as np
import pytest

from score_sde.data import load
from score_sde.data.streamed import Raw, Stamp, Streamed, batch_indices
from score_sde.errors import UserError
from score_sde.training.feed import in_memory, streaming
from score_sde.training.mesh import along_data, data_mesh
from tests.cases import thorough
from tests.data.test_streamed import KINDS


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


@pytest.fixture
def streamed(tmp_path):
    """50 images in a file and their labels, and the arrays that they are."""
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 3, 1), np.uint8)
    path = tmp_path / "images"
    path.write_bytes(b"head" + images.tobytes())
    reader = Raw(path, "images", Stamp.of(path.stat()), 4, (4, 3, 1), images.dtype)
    order = np.random.default_rng(1).permutation(50)[:45]
    labels = {"labels": np.arange(45, dtype=np.int32)}
    x = Streamed(reader, order, (4, 3, 1), images.dtype)
    return {"x": x, "condition": labels}, {"x": images[order], "condition": labels}


# A start of the workers takes seconds: theirs is one, inside an epoch.
@pytest.mark.parametrize(("workers", "parts"), [(0, ((0, 15), (7, 3))), *thorough((2, ((7, 15),)))])
def test_a_stream_gives_what_memory_gives(workers, parts, streamed):
    mesh = data_mesh(jax.devices()[:1])
    options = {"batch_size": 8, "seed": 3, "mesh": mesh}
    stream = streaming(streamed[0], workers=workers, **options)
    memory = in_memory(streamed[1], **options)
    for first, count in parts:  # 15 batches are more than two epochs
        batches = stream(first)
        for one, other in zip(itertools.islice(batches, count), memory(first), strict=False):
            jax.tree.map(np.testing.assert_array_equal, one, other)
            assert one["x"].sharding == other["x"].sharding and one["x"].dtype == np.uint8
        batches.close()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["zip", "hdf5"])
def test_a_worker_opens_the_file_that_holds_all(kind, tmp_path):
    """Nothing that is open goes to another process."""
    path = str(KINDS[kind](tmp_path))
    x = load(kind, "train", path, stream=True).x
    x[:1]  # the training process has opened it, too
    options = {"batch_size": 9, "seed": 3, "mesh": data_mesh(jax.devices()[:1])}
    batches = streaming({"x": x, "condition": {}}, workers=1, **options)(0)
    memory = in_memory({"x": np.asarray(x), "condition": {}}, **options)(0)
    for one, other in zip(itertools.islice(batches, 3), memory, strict=False):
        np.testing.assert_array_equal(one["x"], other["x"])
    batches.close()


@pytest.mark.parametrize("workers", [0, *thorough(1)])
def test_what_a_worker_cannot_read_ends_the_batches_in_one_line(workers, streamed):
    streamed[0]["x"].read.path.unlink()
    mesh = data_mesh(jax.devices()[:1])
    batches = streaming(streamed[0], batch_size=8, seed=3, mesh=mesh, workers=workers)(0)
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == "images: cannot be read any more (No such file or directory)"


@pytest.mark.thorough
def test_a_worker_that_ends_is_one_line(streamed):
    """As where the memory ends: the kernel kills it."""
    streamed[0]["x"] = Streamed(lambda rows: os._exit(9), np.arange(45), (4, 3, 1), np.dtype("u1"))
    mesh = data_mesh(jax.devices()[:1])
    batches = streaming(streamed[0], batch_size=8, seed=3, mesh=mesh, workers=1)(0)
    with pytest.raises(UserError, match=r"^config\.data\.workers = 1: a worker ended .* code 9"):
        next(batches)
