"""Feeds: the sources of the train step's batches.

A feed is a function of the first step: ``batches(first_step)`` yields the batch of that update and
of all after it, without end. A resumed run sees what the unbroken one would have seen. Both feeds
give the same batches in the order of ``batch_indices``.
"""

import itertools
import os
import signal
from collections.abc import Callable, Generator, Mapping
from multiprocessing import resource_tracker
from typing import Any

import jax
import numpy as np
from absl import flags
from jax import Array
from jax.sharding import Mesh

from score_sde.data.streamed import Batches as Reader
from score_sde.data.streamed import batch_indices, begin_worker
from score_sde.errors import UserError
from score_sde.training.mesh import along_data

PyTree = Any
Batches = Callable[[int], Generator[PyTree, None, None]]

# So many batches are placed at a time, as long as they are small. After a step the host's caches
# are cold, and one batch takes as long as ten: 0.8 ms for the digits on two CPU devices.
_BATCHES_AHEAD = 16
_BYTES_AHEAD = 2**24
_WORKERS = 8  # at most, where their number is not set
_PLACED_AHEAD = 2  # batches of a stream that wait on the devices


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

    def batches(first_step: int) -> Generator[PyTree, None, None]:
        for start in itertools.count(first_step, ahead):
            yield from [batch(step) for step in range(start, start + ahead)]

    return batches


def default_workers() -> int:
    """How many processes read a stream where nobody says: half of the processors, up to 8."""
    ours = hasattr(os, "sched_getaffinity")  # not on macOS
    count = len(os.sched_getaffinity(0)) if ours else os.cpu_count() or 1
    return max(1, min(_WORKERS, count // 2))


def streaming(
    arrays: Mapping[str, Any], *, batch_size: int, seed: int, mesh: Mesh, workers: int
) -> Batches:
    """The feed of a set that stays in its files. Grain's workers read and decode it.

    Args:
        arrays: as those of ``in_memory``; a nested mapping with leaves that may be ``Streamed``.
        batch_size: examples of one update over all devices, a multiple of their number.
        seed: of the order, not negative.
        mesh: with an axis ``data``, over which each batch is spread.
        workers: processes that read; 0: threads of this one.

    Raises:
        UserError: Grain is not installed; from the batches: a file that has changed or is gone.
    """
    try:
        import grain
    except ImportError as error:
        raise UserError(
            "config.data.stream: needs Grain: pip install 'score-sde[stream]'; or "
            "config.data.stream=false, which reads all into memory"
        ) from error
    spread = along_data(mesh)
    # The parts of a batch that this host's devices get; it reads no others.
    parts = spread.addressable_devices_indices_map((batch_size,)).values()
    positions = np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))
    reader = Reader(arrays, batch_size, seed, positions)

    def place(batch: PyTree) -> PyTree:
        def placed(array: np.ndarray) -> Array:
            def part(index: Any) -> np.ndarray:
                return array[np.searchsorted(positions, np.arange(batch_size)[index[0]])]

            return jax.make_array_from_callback((batch_size, *array.shape[1:]), spread, part)

        return jax.tree.map(placed, batch)

    def batches(first_step: int) -> Generator[PyTree, None, None]:
        ahead = grain.experimental.ThreadPrefetchIterDataset(
            _read(reader, first_step, workers).map(place), prefetch_buffer_size=_PLACED_AHEAD
        )
        iterator = iter(ahead)
        if workers:
            _begin_workers(iterator)
        try:
            yield from iterator
        except RuntimeError as error:
            if "terminated unexpectedly" not in f"{error}":
                raise
            raise UserError(
                f"config.data.workers = {workers}: a worker ended ({error}); allowed are fewer, 0 "
                "for none; a script trains below `if __name__ == '__main__':`"
            ) from error
        finally:
            iterator.close()

    return batches


def _read(reader: Reader, first_step: int, workers: int) -> Any:
    """Grain's data set of the batches on the host, read by workers or threads."""
    import grain

    threads = 0 if workers else default_workers()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    # An element is a batch: it lies in one piece, and its step says all about it.
    steps = grain.MapDataset.range(first_step, 2**31).map(reader).to_iter_dataset(options)
    if not workers:
        return steps
    if not flags.FLAGS.is_parsed():  # Grain reads its own, of which nobody sets one here
        flags.FLAGS.mark_as_parsed()
    # Through pipes: a container's shared memory is often too small for a few batches, and Grain
    # leaves some of it behind at the end.
    by_pipe = grain.experimental.DatasetOptions(min_shm_size=2**62)
    steps = grain.experimental.WithOptionsIterDataset(steps, by_pipe)
    processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
    return steps.mp_prefetch(processes, worker_init_fn=begin_worker)


def _begin_workers(iterator: Any) -> None:
    """Starts reading, by threads and processes that get neither SIGINT nor SIGTERM: a terminal and
    `timeout` send theirs to all, and it would end a worker that the step under way waits for. The
    training ends its workers."""
    resource_tracker.ensure_running()  # which would let interrupts through again as it begins
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        iterator.start_prefetch()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
