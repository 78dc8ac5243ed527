"""Networks as pairs of a pure function and a tree of arrays.

The rest of the package sees no `nnx.Module`: a network is `apply(params, x, noise, condition)` with
`params` a nested dict of arrays. All that is jitted, averaged and saved is plain data.

`NETWORKS` lists the networks. Your own needs no place in it: `model.name = "my_module:Net"` takes
the class `Net` of your `my_module.py`, which has:

- `Net.Spec`: a frozen dataclass of the settings. `build.network` fills every field whose name is a
  key of `config.model`, and those of what the data are: `image_size` and `channels` of images,
  `features` of vectors, `num_classes` (0 for none), `condition_features` (columns of the condition)
  and `dtype` (of the products). The others keep their defaults. A ValueError in its `__post_init__`
  refuses a setting. With a field `logits` the network can be a classifier (`--mode
  train_classifier`): above 0, its result is (B, logits). With a field `augmentation` (columns of
  what was done to the images) it can be trained with `data.augment`. With `learned_variance` it
  can learn the variances of a chain's reverse steps: where that is True, its result has twice the
  channels.
- `Net.Spec.without_effect`, where some settings have no effect beside the others: their names.
- `Net.rank`, where it takes one kind of data alone: the axes of an item, 3 of images, 1 of vectors.
- `Net(spec, rngs=rngs)`: an `nnx.Module` whose variables all are float32 `nnx.Param`s.
- `Net.__call__(x, noise, condition, *, dropout_key=None, reverse_only=False)`: arguments and result
  as those of `UNet.__call__`. It raises ValueError for a condition that it does not take.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from score_sde.networks.mlp import MLP, MLPSpec
from score_sde.networks.spec import UNetSpec
from score_sde.networks.unet import UNet

__all__ = ["MLP", "NETWORKS", "Apply", "Beside", "MLPSpec", "UNet", "UNetSpec"]
__all__ += ["abstract", "init", "split"]

NETWORKS: dict[str, Any] = {
    "unet": UNet,
    "mlp": MLP,
}


class Beside(nnx.Module):
    """A network with numbers that are learned beside it: its parameters have them as `constants`,
    and the network's as `network`."""

    def __init__(
        self, make: Callable[..., nnx.Module], constants: Mapping[str, Any], *, rngs: nnx.Rngs
    ) -> None:
        self.network = make(rngs=rngs)
        numbers = {name: jnp.asarray(value, jnp.float32) for name, value in constants.items()}
        self.constants = nnx.Dict({name: nnx.Param(number) for name, number in numbers.items()})

    def __call__(self, *arguments: Any, **options: Any) -> jax.Array:
        found: jax.Array = self.network(*arguments, **options)
        return found


@dataclass(frozen=True)
class Apply:
    """A network without its parameters; equal networks make equal, hashable functions."""

    graph: nnx.GraphDef

    def __call__(
        self,
        params: dict[str, Any],
        x: jax.Array,
        noise: jax.Array,
        condition: Mapping[str, jax.Array] | None = None,
        **options: Any,
    ) -> jax.Array:
        """The network's output for `x`; arguments as those of `UNet.__call__`.

        Puts the module together in Python, some 0.1 s: call it inside jit.
        """
        return nnx.merge(self.graph, params)(x, noise, condition, **options)


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
        make: called as `make(rngs=...)`, such as `functools.partial(UNet, spec)`.
        key: a jax key.

    Returns:
        as `split`.
    """
    return split(make(rngs=nnx.Rngs(key)))


def abstract(make: Callable[..., nnx.Module]) -> tuple[Apply, dict[str, Any]]:
    """As `init`, but with `jax.ShapeDtypeStruct`s instead of arrays; nothing is drawn."""
    return split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
