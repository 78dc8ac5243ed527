"""Many items in batches, each spread over all devices."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from score_sde.display import as_pictures, form, mean, shown
from score_sde.training.mesh import along_data, on_host, placed

PyTree = Any


@shown
class Drawn(NamedTuple):
    """n drawn items, as numpy arrays.

    Attributes:
        x: images uint8 (n, H, W, C) with the data set's own levels (0 ... 16 for the digits), or
            vectors float32 (n, D) in the data's units.
        nfe: evaluations of the score for each item, int32 (n,).
        condition: what they were drawn for, such as `labels` int32 (n,).
        trajectory: states from noise to item, like x, (n, states, ...); None unless requested.
        levels: of images, whose values are 0 ... levels - 1; None for vectors, and in a batch of
            `Run.sample_batches`.
    """

    x: Any
    nfe: Any
    condition: Mapping[str, Any]
    trajectory: Any = None
    levels: int | None = None

    @property
    def frames(self) -> np.ndarray | None:
        """The trajectory by its states, (states, n, ...), as `score_sde.plots.animation` takes
        it."""
        return None if self.trajectory is None else np.swapaxes(self.trajectory, 0, 1)

    @property
    def images(self) -> np.ndarray:
        """x, by the name that suits images."""
        return self.x

    @property
    def labels(self) -> np.ndarray | None:
        """The classes that they were drawn for, int32 (n,); None without classes."""
        return self.condition.get("labels")

    def _facts(self) -> dict[str, str]:
        given = {name: form(rows) for name, rows in self.condition.items()}
        facts = {"x": form(self.x), "NFE": mean(self.nfe), **given}
        return facts | {"trajectory": form(self.trajectory)}

    def _pictures(self) -> tuple[Any, int] | None:
        return as_pictures(self.x, self.levels or 256)


def in_batches(
    function: Callable[[PyTree, int], PyTree],
    arrays: PyTree,
    n: int,
    most: int,
    mesh: Mesh,
    *,
    first: int = 0,
) -> Iterator[PyTree]:
    """Apply a function to n items, in batches.

    All batches have one length, so all run the same program. The last one is filled up with its
    last item. The length is at most ``most``, rounded up to a multiple of the devices.

    Args:
        function: called with a part of the arrays, on the devices, and the index of its first item;
            returns a tree of arrays (length, ...).
        arrays: a tree of numpy arrays (n, ...).
        n: number of items.
        most: items at a time.
        mesh: the devices.
        first: index of the first item to work on, where some of the n are done already.

    Yields:
        what the function returns for each part, as numpy arrays without the filling.
    """
    size = batch_size(n, most, mesh)
    for index in range(first, n, size):
        count = min(size, n - index)
        rows = np.minimum(np.arange(index, index + size), n - 1)
        part = jax.tree.map(lambda array, rows=rows: array[rows], arrays)
        values = function(placed(part, along_data(mesh)), index)
        yield jax.tree.map(lambda array, count=count: on_host(array, mesh)[:count], values)


def batch_size(n: int, most: int, mesh: Mesh) -> int:
    """The length of the batches: equal parts, and a multiple of the number of devices."""
    parts = -(-n // most)
    return -(-n // (parts * mesh.size)) * mesh.size


def joined(parts: Iterable[PyTree]) -> PyTree:
    """The items of several parts as one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def leading(values: PyTree, number: int) -> PyTree:
    """The first items."""
    return jax.tree.map(lambda array: array[:number], values)
