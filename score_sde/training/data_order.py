"""Which examples each step sees, as a pure function of the seed and the step."""

from functools import lru_cache

import numpy as np


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
