"""Feeds: the sources of the train step's batches.

A feed is a function of the first step: ``batches(first_step)`` yields the batch of that update and
of all after it, without end. A resumed run sees what the unbroken one would have seen.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from score_sde.training.mesh import along_data

PyTree = Any
Batches = Callable[[int], Iterator[PyTree]]

# So many batches are placed at a time, as long as they are small. After a step the host's caches
# are cold, and one batch takes as long as ten: 0.8 ms for the digits on two CPU devices.
_BATCHES_AHEAD = 16
_BYTES_AHEAD = 2**24


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order = np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
    order.flags.writeable = False  # it is shared by every batch of the epoch
    return order


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """The examples of update number ``step`` (from 0), (batch_size,) int32.

    The epochs are permutations laid end to end and cut into batches, so that every example comes
    once in an epoch and none is dropped; a batch may span two epochs, or many where the data set
    is smaller than the batch. A resumed run needs to know nothing but the step.
    """
    start = step * batch_size
    stop = start + batch_size
    parts = []
    while start < stop:
        epoch, offset = divmod(start, num_examples)
        part = _permutation(seed, epoch, num_examples)[offset : offset + stop - start]
        parts.append(part)
        start += len(part)
    return np.concatenate(parts)


def in_memory(arrays: PyTree, *, batch_size: int, seed: int, mesh: Mesh) -> Batches:
    """The feed of a set in the host's memory, in the order of ``batch_indices``.

    Args:
        arrays: a tree of numpy arrays with the N examples along the first axis, e.g.
            ``{"x": (N, *shape), "condition": {"labels": (N,)}}``. They stay on the host.
        batch_size: examples of one update over all devices, a multiple of their number.
        seed: of the order, not negative.
        mesh: with an axis ``data``, over which each batch is spread.
    """
    leaves = jax.tree.leaves(arrays)
    num_examples, spread = len(leaves[0]), along_data(mesh)
    batch_bytes = batch_size * sum(leaf[:1].nbytes for leaf in leaves)
    ahead = max(1, min(_BATCHES_AHEAD, _BYTES_AHEAD // batch_bytes))

    def batch(step: int) -> PyTree:
        rows = batch_indices(seed, step, batch_size, num_examples)

        def gather(array: np.ndarray) -> Array:
            # A process gathers only the parts of its devices.
            def part(index: Any) -> np.ndarray:
                return array[rows[index[0]]]

            return jax.make_array_from_callback((batch_size, *array.shape[1:]), spread, part)

        return jax.tree.map(gather, arrays)

    def batches(first_step: int) -> Iterator[PyTree]:
        for start in itertools.count(first_step, ahead):
            yield from [batch(step) for step in range(start, start + ahead)]

    return batches
