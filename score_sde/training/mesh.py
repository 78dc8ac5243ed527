"""The devices as one mesh with a data axis, and the two layouts that training uses on it."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (or those given) along one axis, ``data``.

    The axis is of type Auto: the compiler places what lies between input and output. Explicit
    axes, the default of ``jax.make_mesh``, ask every operation for its output's sharding.
    """
    devices = jax.devices() if devices is None else devices
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), ("data",), axis_types=auto, devices=list(devices))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: parameters, keys, and a data set that fits."""
    return NamedSharding(mesh, PartitionSpec())


def along_data(mesh: Mesh) -> NamedSharding:
    """The first axis spread over the devices: a batch. Its length is a multiple of theirs."""
    return NamedSharding(mesh, PartitionSpec("data"))
