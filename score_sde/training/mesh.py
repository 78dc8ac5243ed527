"""The devices as one mesh with a data axis, the layouts on it, and which process writes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

PyTree = Any


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (or those given) along one axis, ``data``.

    A mode makes it once and passes it down. The axis is of type Auto: the compiler places what
    lies between input and output. Explicit axes, the default of ``jax.make_mesh``, ask every
    operation for its output's sharding.
    """
    devices = jax.devices() if devices is None else devices
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), ("data",), axis_types=auto, devices=list(devices))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: the state, the key."""
    return NamedSharding(mesh, PartitionSpec())


def along_data(mesh: Mesh) -> NamedSharding:
    """The first axis spread over the devices: a batch. Its length is a multiple of theirs."""
    return NamedSharding(mesh, PartitionSpec("data"))


def placed(tree: PyTree, sharding: Sharding) -> PyTree:
    """Arrays that every process has, or that lie on the mesh already, laid out by a sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # device_put refuses devices of other processes.
    return jax.jit(lambda tree: tree, out_shardings=sharding)(tree)


def on_host(array: Any, mesh: Mesh) -> np.ndarray:
    """An array's numbers, also where other processes' devices hold a part of them."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = placed(array, replicated(mesh))
    return np.asarray(array)


def is_writer() -> bool:
    """Whether this process writes files: one does, of those that train one model together."""
    return jax.process_index() == 0
