"""Feeds: where the train step's batches come from.

A feed is a function of the first step: ``batches(first_step)`` yields the batch of that update and
of all after it, without end. A resumed run sees what the unbroken one would have seen.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from score_sde.training.data_order import batch_indices
from score_sde.training.mesh import along_data

PyTree = Any
Batches = Callable[[int], Iterator[PyTree]]


def in_memory(arrays: PyTree, *, batch_size: int, seed: int, mesh: Mesh) -> Batches:
    """The feed of a set in the host's memory, in the order of ``batch_indices``.

    Args:
        arrays: a tree of numpy arrays with the N examples along the first axis, e.g.
            ``{"x": (N, *shape), "condition": {"labels": (N,)}}``. They stay on the host.
        batch_size: examples of one update over all devices, a multiple of their number.
        seed: of the order, not negative.
        mesh: with an axis ``data``, over which each batch is spread.
    """
    num_examples = len(jax.tree.leaves(arrays)[0])
    spread = along_data(mesh)

    def batch(step: int) -> PyTree:
        rows = batch_indices(seed, step, batch_size, num_examples)

        def gather(array: np.ndarray) -> Array:
            # A process gathers only the parts of its own devices.
            def part(index: Any) -> np.ndarray:
                return array[rows[index[0]]]

            return jax.make_array_from_callback((batch_size, *array.shape[1:]), spread, part)

        return jax.tree.map(gather, arrays)

    return lambda first_step: map(batch, itertools.count(first_step))
