"""Networks as pairs of a pure function and a tree of arrays.

The rest of the package sees no `nnx.Module`: a network is `apply(params, x, condition, ...)` with
`params` a nested dict of arrays, so that what is jitted, averaged and saved is plain data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from score_sde.networks.unet import UNet

__all__ = ["NETWORKS", "Apply", "UNet", "abstract", "init", "split"]

NETWORKS: dict[str, Callable[..., nnx.Module]] = {"unet": UNet}


@dataclass(frozen=True)
class Apply:
    """A network without its parameters; equal networks make equal, hashable functions."""

    graph: nnx.GraphDef

    def __call__(
        self,
        params: dict[str, Any],
        x: jax.Array,
        condition: jax.Array,
        labels: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The network's output for `x`; arguments as those of `UNet.__call__`.

        Puts the module together in Python, some 0.1 s: call it inside jit.
        """
        network = nnx.merge(self.graph, params)
        return network(x, condition, labels, dropout_key=dropout_key, train=train)


def split(network: nnx.Module) -> tuple[Apply, dict[str, Any]]:
    """A network as its function and its parameters.

    Args:
        network: all its variables must be `nnx.Param`.

    Returns:
        (apply, params): params is a nested dict of float32 arrays keyed by attribute names.
    """
    graph, state = nnx.split(network)
    return Apply(graph), nnx.to_pure_dict(state)


def init(make: Callable[..., nnx.Module], key: jax.Array) -> tuple[Apply, dict[str, Any]]:
    """Makes a network with initial parameters; equal keys give equal parameters.

    Args:
        make: called as `make(rngs=...)`, such as `functools.partial(UNet, image_size=8, ...)`.
        key: a jax key.

    Returns:
        as `split`.
    """
    return split(make(rngs=nnx.Rngs(key)))


def abstract(make: Callable[..., nnx.Module]) -> tuple[Apply, dict[str, Any]]:
    """As `init`, but with `jax.ShapeDtypeStruct` in the place of arrays; nothing is drawn."""
    return split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
