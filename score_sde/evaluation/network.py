"""The Inception network of 2015, by which the FID is defined (Szegedy et al. 2015; Heusel et al.
2017): the graph `inception-2015-12-05`.

It differs from later Inception v3 networks: its average pools do not count their padding, and its
last block has a max pool where the others have an average.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from score_sde.score import full_precision

FEATURES = 2048
SIDE = 299  # pixels of the network's input
LAYERS = 94
PARTS = ("kernel", "beta", "mean", "variance")  # of a convolution and its normalization
EPSILON = 1e-3  # what batch normalization adds to the variance

Resize = Literal["tf1", "halfpixel"]
RESIZES: tuple[Resize, ...] = get_args(Resize)
FeatureFn = Callable[[np.ndarray], jax.Array]
"""Images uint8 (B, H, W, C) -> features float32 (B, F)."""

_Layer = tuple[np.ndarray, np.ndarray]  # kernel and bias
_Network = Callable[[jax.Array], jax.Array]


def inception(weights: Mapping[str, np.ndarray], resize: Resize = "tf1") -> FeatureFn:
    """The network up to its 2048 pooled features.

    Args:
        weights: as `score_sde.evaluation.weights.read` gives them.
        resize: how images become 299x299 and are scaled. Both are bilinear, without antialiasing
            or rounding. They differ by some 20 % in the features of small images: both sides of a
            figure must have the same.

            `tf1`, the graph's own: pixel i of the output lies at i * H / 299 of the input; scaled
            by (x - 128) / 128.
            `halfpixel`, of pytorch-fid: it lies at (i + 1/2) * H / 299 - 1/2; x / 127.5 - 1.

    Returns:
        a function of images uint8 (B, H, W, C) with values of 0 to 255; C is 3, or 1 for grey. It
        computes in float32 at full precision.

    Raises:
        ValueError: weights of another network, or no such resize.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize = {resize!r}: allowed are {', '.join(RESIZES)}")
    graph, parameters = nnx.split(_network(_layers(weights)))

    def features(images: np.ndarray) -> jax.Array:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(f"images {images.dtype}{images.shape}: allowed are uint8 (B, H, W, 3)")
        return _features(graph, resize, parameters, images)

    return features


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(
    graph: nnx.GraphDef, resize: Resize, parameters: nnx.State, images: jax.Array
) -> jax.Array:
    with full_precision():
        x = resized(images, resize)
        maps: jax.Array = nnx.merge(graph, parameters)(x)
        return maps.mean((1, 2))


def resized(images: jax.Array, resize: Resize) -> jax.Array:
    """Images uint8 (B, H, W, C), C 1 or 3, as the network's input float32 (B, 299, 299, 3); see
    `inception`."""
    rows, columns = (_interpolation(size, resize) for size in images.shape[1:3])
    x = jnp.einsum("ih,bhwc,jw->bijc", rows, images.astype(jnp.float32), columns)
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
    return (x - 128.0) / 128.0 if resize == "tf1" else x / 127.5 - 1.0


def _interpolation(size: int, resize: Resize) -> np.ndarray:
    """The weights (299, size) of bilinear interpolation along an axis; beyond an end the last pixel
    is repeated."""
    shift = 0.0 if resize == "tf1" else 0.5
    place = np.clip((np.arange(SIDE) + shift) * (size / SIDE) - shift, 0, size - 1)
    distance = np.abs(place[:, None] - np.arange(size))
    return np.maximum(1.0 - distance, 0.0).astype(np.float32)


class _Branches(nnx.Module):
    """Networks of one input, their outputs joined on the channels."""

    def __init__(self, *branches: _Network) -> None:
        self.branches = nnx.List(branches)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([branch(x) for branch in self.branches], axis=-1)


class _Unit(nnx.Module):
    """A convolution and a ReLU."""

    def __init__(self, layer: _Layer, stride: int, padding: str) -> None:
        self.kernel, self.bias = (nnx.Param(jnp.asarray(array)) for array in layer)
        self.stride, self.padding = (stride, stride), padding

    def __call__(self, x: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")  # the one that is fast on the CPU
        x = lax.conv_general_dilated(
            x, self.kernel[...], self.stride, self.padding, dimension_numbers=layout
        )
        return nnx.relu(x + self.bias[...].reshape(1, 1, 1, -1))


_max_pool = functools.partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2))
_max_around = functools.partial(nnx.max_pool, window_shape=(3, 3), padding="SAME")
_average = functools.partial(
    nnx.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False
)


def _chain(
    layers: Iterator[_Layer], inputs: int, *shapes: tuple[int, ...], padding: str = "SAME"
) -> nnx.Module:
    """Units of (outputs, height, width) or, with a stride of 2 and no padding, (..., 2)."""
    units = []
    for outputs, height, width, *strides in shapes:
        layer, expected = next(layers, None), (height, width, inputs, outputs)
        if layer is None or layer[0].shape != expected:
            found = "none" if layer is None else layer[0].shape
            raise ValueError(f"a kernel is {found}; that of the network of 2015 is {expected}")
        units.append(_Unit(layer, 2, "VALID") if strides else _Unit(layer, 1, padding))
        inputs = outputs
    return nnx.Sequential(*units)


def _network(layers: Iterator[_Layer]) -> nnx.Module:
    """The network up to its last map (B, 8, 8, 2048). It takes the layers in the graph's order.

    Raises:
        ValueError: they are another network's.
    """
    chain = functools.partial(_chain, layers)

    def a(inputs: int, pooled: int) -> nnx.Module:
        return _Branches(
            chain(inputs, (64, 1, 1)),
            chain(inputs, (48, 1, 1), (64, 5, 5)),
            chain(inputs, (64, 1, 1), (96, 3, 3), (96, 3, 3)),
            nnx.Sequential(_average, chain(inputs, (pooled, 1, 1))),
        )

    def b() -> nnx.Module:
        return _Branches(
            chain(288, (384, 3, 3, 2)),
            chain(288, (64, 1, 1), (96, 3, 3), (96, 3, 3, 2)),
            _max_pool,
        )

    def c(n: int) -> nnx.Module:
        return _Branches(
            chain(768, (192, 1, 1)),
            chain(768, (n, 1, 1), (n, 1, 7), (192, 7, 1)),
            chain(768, (n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7)),
            nnx.Sequential(_average, chain(768, (192, 1, 1))),
        )

    def d() -> nnx.Module:
        return _Branches(
            chain(768, (192, 1, 1), (320, 3, 3, 2)),
            chain(768, (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)),
            _max_pool,
        )

    def fork() -> nnx.Module:
        return _Branches(chain(384, (384, 1, 3)), chain(384, (384, 3, 1)))

    def e(inputs: int, pool: _Network) -> nnx.Module:
        return _Branches(
            chain(inputs, (320, 1, 1)),
            nnx.Sequential(chain(inputs, (384, 1, 1)), fork()),
            nnx.Sequential(chain(inputs, (448, 1, 1), (384, 3, 3)), fork()),
            nnx.Sequential(pool, chain(inputs, (192, 1, 1))),
        )

    return nnx.Sequential(
        *(chain(3, (32, 3, 3, 2), (32, 3, 3), padding="VALID"), chain(32, (64, 3, 3)), _max_pool),
        *(chain(64, (80, 1, 1), (192, 3, 3), padding="VALID"), _max_pool),
        *(a(192, 32), a(256, 64), a(288, 64), b()),
        *(c(128), c(160), c(160), c(192), d()),
        *(e(1280, _average), e(2048, _max_around)),
    )


def _layers(weights: Mapping[str, np.ndarray]) -> Iterator[_Layer]:
    """Kernels and biases in the order of the graph.

    The normalization, which has no scale, joins its convolution: kernel / sqrt(variance + epsilon),
    and the bias beta - mean / sqrt(variance + epsilon). In float64, so that it adds one rounding.
    """
    for number in range(LAYERS):
        kernel, beta, mean, variance = (
            np.asarray(weights[f"{number:02}.{name}"], np.float64) for name in PARTS
        )
        scale = 1.0 / np.sqrt(variance + EPSILON)
        yield (kernel * scale).astype(np.float32), (beta - mean * scale).astype(np.float32)
