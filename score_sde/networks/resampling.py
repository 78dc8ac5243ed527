"""Doubling and halving the size of images NHWC.

The filter is the outer product of [1, 3, 3, 1] with itself over its sum (Zhang 2019; Karras et
al. 2020). It is applied as sums of shifted slices, one direction after the other: cheaper on the
CPU than a depthwise convolution, and differentiable in both modes.
"""

import jax
import jax.numpy as jnp
from jax import lax

TAPS = (0.125, 0.375, 0.375, 0.125)


def nearest_up(x: jax.Array) -> jax.Array:
    """Repeats every pixel: (B, H, W, C) -> (B, 2 H, 2 W, C)."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(
        x.reshape(batch, height, 1, width, 1, channels), (batch, height, 2, width, 2, channels)
    )
    return x.reshape(batch, 2 * height, 2 * width, channels)


def mean_down(x: jax.Array) -> jax.Array:
    """Means over 2x2 pixels: (B, H, W, C) -> (B, H / 2, W / 2, C)."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def fir_down(x: jax.Array) -> jax.Array:
    """Filters after padding by (1, 1) and keeps every second pixel, the first included.

    (B, H, W, C) -> (B, H / 2, W / 2, C).
    """
    return _filter(_filter(x, 1, pad=1, stride=2), 2, pad=1, stride=2)


def fir_filter(x: jax.Array) -> jax.Array:
    """Filters after padding by (2, 2): (B, H, W, C) -> (B, H + 1, W + 1, C)."""
    return _filter(_filter(x, 1, pad=2, stride=1), 2, pad=2, stride=1)


def fir_up(x: jax.Array) -> jax.Array:
    """Inserts a zero after every pixel, pads by (2, 1) and filters with gain 4.

    (B, H, W, C) -> (B, 2 H, 2 W, C).
    """
    return _double(_double(x, 1), 2)


def fir_up_wide(x: jax.Array) -> jax.Array:
    """`fir_up` and one pixel more on every side, which the filter reaches from the border.

    (B, H, W, C) -> (B, 2 H + 2, 2 W + 2, C).
    """
    return fir_up(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))[:, 1:-1, 1:-1]


def down(x: jax.Array, fir: bool) -> jax.Array:
    """Halves the size by the filter or by means, (B, H, W, C) -> (B, H / 2, W / 2, C)."""
    return fir_down(x) if fir else mean_down(x)


def up(x: jax.Array, fir: bool) -> jax.Array:
    """Doubles the size by the filter or nearest neighbours, (B, H, W, C) -> (B, 2 H, 2 W, C)."""
    return fir_up(x) if fir else nearest_up(x)


def _filter(x: jax.Array, axis: int, *, pad: int, stride: int) -> jax.Array:
    """The four taps along one axis."""
    length = x.shape[axis]
    widths = [(0, 0)] * 4
    widths[axis] = (pad, pad)
    x = jnp.pad(x, widths)
    stop = length + 2 * pad - len(TAPS) + 1
    parts = [
        tap * lax.slice_in_dim(x, offset, offset + stop, stride, axis)
        for offset, tap in enumerate(TAPS)
    ]
    return parts[0] + parts[1] + parts[2] + parts[3]


def _double(x: jax.Array, axis: int) -> jax.Array:
    """Doubling along one axis: of the four taps two meet a pixel and two an inserted zero."""
    length = x.shape[axis]
    widths = [(0, 0)] * 4
    widths[axis] = (1, 1)
    padded = jnp.pad(x, widths)
    before = lax.slice_in_dim(padded, 0, length, axis=axis)
    after = lax.slice_in_dim(padded, 2, length + 2, axis=axis)
    even = 2 * TAPS[0] * before + 2 * TAPS[2] * x
    odd = 2 * TAPS[1] * x + 2 * TAPS[3] * after
    shape = list(x.shape)
    shape[axis] = 2 * length
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)
