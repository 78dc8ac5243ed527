"""The convolution of all networks, and its gradient."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from score_sde.networks.layers import constant, spread, variance_scaling

Padding = tuple[int, int]


class Conv(nnx.Module):
    """A square convolution of images with bias; kernel (k, k, in, out), float32.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        kernel_size: k.
        stride: 1 or 2.
        padding: zeros before and after, in both directions; by default those that keep the size
            at stride 1. With k = 3 and stride 2 the published networks pad (0, 1).
        scale: of the initial kernel, see `variance_scaling`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: Padding | None = None,
        scale: float = 1.0,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.padding = (kernel_size // 2, kernel_size // 2) if padding is None else padding
        self.dtype = dtype
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(variance_scaling(rngs, shape, scale))
        self.bias = constant((out_channels,), 0.0)

    def __call__(self, x: jax.Array, reverse_only: bool) -> jax.Array:
        """(B, H, W, in) -> (B, H', W', out).

        `reverse_only` takes `convolve_reverse_only`, which has no forward mode (`jax.jvp`). Without
        it both modes work, but reverse mode is slow inside a loop on the CPU.
        """
        kernel = self.kernel[...].astype(self.dtype)
        x = x.astype(self.dtype)
        function = convolve_reverse_only if reverse_only else convolve
        y = function(x, kernel, self.stride, self.padding)
        return y + spread(self.bias[...].astype(self.dtype), 4)


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """The convolution of images NHWC with a kernel HWIO, `padding` zeros in both directions."""
    return _nhwc_conv(x, kernel, (padding, padding), window_strides=(stride, stride))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_reverse_only(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """`convolve` with its gradients written as convolutions of the same layout.

    XLA:CPU has a fast convolution for NHWC images and HWIO kernels only. It rewrites others into
    this form, but not inside loops, where jax's own gradients are 8 to 20 times slower. These
    also compile faster. The values are the same.
    """
    return convolve(x, kernel, stride, padding)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: Padding, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # dx: dy, with stride - 1 zeros between its pixels, convolved with the flipped kernel.
    # dk: images and channels change places, and dy, spread by the stride, is the kernel.
    x, kernel = residuals
    size = kernel.shape[0]
    before, _ = padding
    reach = [(n - 1) * stride + 1 for n in dy.shape[1:3]]  # of dy with its gaps of the stride

    flipped = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    lo = size - 1 - before
    dx_padding = [(lo, n - r - lo + size - 1) for n, r in zip(x.shape[1:3], reach, strict=True)]
    dx = _nhwc_conv(dy, flipped, dx_padding, lhs_dilation=(stride, stride))

    dk_padding = [
        (before, r + size - 1 - n - before) for n, r in zip(x.shape[1:3], reach, strict=True)
    ]
    dk = _nhwc_conv(
        x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), dk_padding, rhs_dilation=(stride, stride)
    )
    return dx, dk.transpose(1, 2, 0, 3)


convolve_reverse_only.defvjp(_forward, _backward)


def _nhwc_conv(
    x: jax.Array, kernel: jax.Array, padding: Sequence[Padding], **spacing: Any
) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    spacing = {"window_strides": (1, 1)} | spacing
    return lax.conv_general_dilated(x, kernel, padding=padding, dimension_numbers=layout, **spacing)
