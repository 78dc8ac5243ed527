"""Dense layers, group normalization, dropout, and how parameters are drawn."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax


class Dense(nnx.Module):
    """y = x W + b over the last axis, of n features; W of shape (n, m), float32.

    Over the channels of an image this is a 1x1 convolution ("NIN").
    """

    def __init__(self, n: int, m: int, *, scale: float = 1.0, dtype: np.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(variance_scaling(rngs, (n, m), scale))
        self.bias = constant((m,), 0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., n) -> (..., m)."""
        x = x.astype(self.dtype)
        y = x @ self.kernel[...].astype(self.dtype)
        return y + spread(self.bias[...].astype(self.dtype), y.ndim)


def dense_together(layers: Sequence[Dense], x: jax.Array) -> list[jax.Array]:
    """Several Dense layers of one input (B, n), computed as one product: (B, m) of each.

    The values are those of the layers one by one. XLA:CPU would fuse each small product into the
    convolution beside it. That convolution then runs on one core: an evaluation of 128 digits, on
    one device of two cores, takes 1.3 times as long.
    """
    dtype = layers[0].dtype
    kernel = jnp.concatenate([layer.kernel[...] for layer in layers], axis=1).astype(dtype)
    bias = jnp.concatenate([layer.bias[...] for layer in layers]).astype(dtype)
    ends = list(itertools.accumulate(layer.bias.shape[0] for layer in layers))
    return jnp.split(x.astype(dtype) @ kernel + spread(bias, 2), ends[:-1], axis=1)


class GroupNorm(nnx.Module):
    """Group normalization (Wu & He 2018).

    The statistics are computed in float32 and in two passes: E[x^2] - E[x]^2 loses all digits where
    the mean is some 1000 standard deviations away from 0.

    Args:
        channels: C.
        groups: a divisor of C; 0 stands for min(C // 4, 32), or where that does not divide C for
            the largest smaller number that does.
        eps: added to the variance.

    Raises:
        ValueError: groups that do not divide C.
    """

    def __init__(self, channels: int, *, groups: int = 0, eps: float = 1e-6, dtype: np.dtype):
        if groups and channels % groups:
            raise ValueError(f"{channels} channels cannot be normalized in {groups} groups")
        most = min(channels // 4, 32)
        self.groups = groups or max(n for n in range(1, most + 1) if channels % n == 0)
        self.eps, self.dtype = eps, dtype
        self.scale = constant((channels,), 1.0)
        self.bias = constant((channels,), 0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x.astype(statistics_dtype(self.dtype))
        centered = x - self._group_mean(x)
        variance = self._group_mean(jnp.square(centered))
        scale = lax.rsqrt(variance + self.eps) * spread(self.scale[...].astype(x.dtype), 4)
        return (centered * scale + spread(self.bias[...].astype(x.dtype), 4)).astype(self.dtype)

    def _group_mean(self, x: jax.Array) -> jax.Array:
        """Mean over the pixels and over the channels of each group, as (B, 1, 1, C).

        The mean over channels is a product with the (C, C) matrix that averages within groups.
        A reshape to groups would be fused by XLA:CPU into the loops over all pixels, which then
        do not vectorize: a train step takes 5 to 10 % longer. With the five-dimensional form (that
        of `nnx.GroupNorm` too) the layer alone takes twice as long.
        """
        batch, _, _, channels = x.shape
        group = lax.iota(jnp.int32, channels) // (channels // self.groups)
        same = group.reshape(-1, 1) == group.reshape(1, -1)
        average = same.astype(x.dtype) * (self.groups / channels)
        means = jnp.dot(x.mean(axis=(1, 2)), average, precision=lax.Precision.HIGHEST)
        return means.reshape(batch, 1, 1, channels)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swish": jax.nn.silu,
    "elu": jax.nn.elu,
    "relu": jax.nn.relu,
    "lrelu": functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
}


def dropout(state: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """Sets each element to 0 with probability `rate` and divides the others by 1 - rate.

    The bits come from XLA's own Threefry: `jax.random.bernoulli` takes four times as long on the
    CPU, some 8 % of a train step, and each of its calls half a second to compile. The algorithm is
    named because its default differs between devices; how x is sharded changes nothing, as every
    device draws the whole mask. So 16 bits decide for an element, and a word for two: a rate that
    is off by 2^-17 is no other rate.

    Args:
        state: of the generator, (4,) uint32, from `dropout_states`.
        x: any shape with an even number of channels, the last axis.
        rate: in [0, 1).
    """
    algorithm = lax.RandomAlgorithm.RNG_THREE_FRY
    words = (*x.shape[:-1], x.shape[-1] // 2)
    _, drawn = lax.rng_bit_generator(state, words, jnp.uint32, algorithm=algorithm)
    bits = lax.bitcast_convert_type(drawn, jnp.uint16).reshape(x.shape)
    keep = bits >= jnp.uint16(round(rate * 2**16))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def dropout_states(key: jax.Array | None, rate: float, count: int) -> list[jax.Array | None]:
    """States of `count` independent dropout masks, (4,) uint32 each; Nones without key or rate."""
    if key is None or not rate:
        return [None] * count
    return list(jax.random.bits(key, (count, 4), jnp.uint32))


def statistics_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of statistics, softmax and output: `dtype`, but at least float32."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)


def spread(vector: jax.Array, ndim: int) -> jax.Array:
    """A vector over channels (C,) as an array of `ndim` axes, the last of which has length C."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


def constant(shape: tuple[int, ...], value: float) -> nnx.Param:
    """A float32 parameter that is `value` everywhere at the start."""
    # Filled by numpy: jnp.full compiles one program for each new shape.
    return nnx.Param(jnp.asarray(np.full(shape, value, np.float32)))


def variance_scaling(rngs: nnx.Rngs, shape: tuple[int, ...], scale: float) -> jax.Array:
    """Uniform numbers of variance scale / mean(fan_in, fan_out), float32.

    The initialisation of Ho et al. (2020) and Song et al. (2021), whose scale 0 stands for 1e-10.

    Args:
        rngs: the `params` stream gives the key.
        shape: of a kernel: (..., in, out); the axes before belong to both fans.
        scale: s; the numbers lie within +-sqrt(3 s / ((fan_in + fan_out) / 2)).
    """
    receptive_field = math.prod(shape[:-2])
    mean_fan = receptive_field * (shape[-2] + shape[-1]) / 2
    bound = math.sqrt(3 * (scale or 1e-10) / mean_fan)
    return host_draw(
        rngs, shape, lambda source: np.float32(bound) * (2.0 * source.random(shape, "f4") - 1.0)
    )


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> jax.Array:
    """Normal numbers of mean 0 and standard deviation `std`, float32."""
    return host_draw(
        rngs, shape, lambda source: source.standard_normal(shape, "f4") * np.float32(std)
    )


def host_draw(
    rngs: nnx.Rngs, shape: tuple[int, ...], draw: Callable[[np.random.Generator], np.ndarray]
) -> jax.Array:
    """Numbers drawn by numpy on the host, from a generator seeded by the next `params` key.

    jax.random compiles one program per shape, some 10 s for a network on a fresh machine. Under jit
    the draw is a callback, which compiles, too: so it is one there alone. Under eval_shape nothing
    is drawn.
    """

    def call(key_data: np.ndarray) -> np.ndarray:
        return draw(np.random.default_rng(np.asarray(key_data).ravel()))

    seed = jax.random.key_data(rngs.params())
    if not isinstance(seed, jax.core.Tracer):
        return jnp.asarray(call(np.asarray(seed)))
    return jax.pure_callback(call, jax.ShapeDtypeStruct(shape, jnp.float32), seed)
