"""Operators of images (B, H, W, C), each a pytree: (B, H, W, C) to what is measured of it.

All are linear. Any other function of the batch is an operator, too.
"""

from dataclasses import field

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from score_sde.errors import require
from score_sde.inverse.base import Operator
from score_sde.score import pytree


def inpaint(mask: Array) -> Operator:
    """The known pixels, and zeros in place of the others: (B, H, W, C) to the same.

    Args:
        mask: 1 where a pixel is known, 0 where not; (H, W), (H, W, 1) or (H, W, C), or with a batch
            axis before these.
    """
    mask = jnp.asarray(mask, jnp.float32)
    if mask.ndim == 2:
        mask = mask[..., None]
    if mask.ndim == 3:
        mask = mask[None]
    require(mask.ndim == 4, "mask.shape", mask.shape, "(H, W), (H, W, C) and (B, H, W, C)")
    return Partial(_masked, mask)


def outpaint(height: int, width: int, top: int, left: int, shape: tuple[int, int]) -> Operator:
    """The known pixels are a rectangle (height, width) from (top, left) of an image (H, W)."""
    rows, columns = jnp.arange(shape[0]), jnp.arange(shape[1])
    inside = (rows >= top) & (rows < top + height)
    across = (columns >= left) & (columns < left + width)
    return inpaint(inside[:, None] & across[None, :])


def colorize() -> Operator:
    """The grey image: the sum of the channels over the square root of their number, (B, H, W, 1).

    So it is the channel of an orthogonal change of colours, and A A^T = I. A grey image of equal
    channels v is measured as sqrt(C) v.
    """
    return Partial(_grey)


def super_resolve(factor: int) -> Operator:
    """Means over blocks of factor x factor pixels, (B, H / factor, W / factor, C).

    Raises:
        ValueError: when it is called on images whose sides the factor does not divide.
    """
    require(factor > 0, "factor", factor, "integers of at least 1")
    return _Means(factor)


def deblur(kernel: Array) -> Operator:
    """The correlation with a kernel (h, w), h and w odd: (B, H, W, C) to the same.

    Beyond its edges the image goes on as its mirror image, so that a uniform image stays as it is.
    """
    kernel = jnp.asarray(kernel)
    ok = kernel.ndim == 2 and kernel.shape[0] % 2 == kernel.shape[1] % 2 == 1
    require(ok, "kernel.shape", kernel.shape, "(h, w), both odd")
    return Partial(_correlated, kernel)


def gaussian_kernel(std: float, size: int) -> Array:
    """A Gaussian blur's kernel (size, size) of sum 1; std in pixels."""
    line = jnp.exp(-0.5 * jnp.square(jnp.linspace(-0.5, 0.5, size) * (size - 1) / std))
    return jnp.outer(line, line) / jnp.square(jnp.sum(line))


@pytree
class _Means:
    factor: int = field(metadata={"static": True})

    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) to the means of its blocks."""
        batch, height, width, channels = x.shape
        fits = height % self.factor == 0 and width % self.factor == 0
        require(fits, "factor", self.factor, f"divisors of the sides {height} and {width}")
        sides = height // self.factor, width // self.factor
        blocks = x.reshape(batch, sides[0], self.factor, sides[1], self.factor, channels)
        return jnp.mean(blocks, axis=(2, 4))


def _masked(mask: Array, x: Array) -> Array:
    height, width, channels = x.shape[1:]
    fits = mask.shape[1:3] == (height, width) and mask.shape[3] in (1, channels)
    require(fits, "mask.shape", mask.shape, f"those of images {(height, width, channels)}")
    return mask.astype(x.dtype) * x


def _grey(x: Array) -> Array:
    require(x.shape[-1] > 1, "x.shape", x.shape, "images of several channels to colorize")
    return jnp.sum(x, axis=-1, keepdims=True) / x.shape[-1] ** 0.5


def _correlated(kernel: Array, x: Array) -> Array:
    depthwise = jnp.broadcast_to(kernel[..., None, None], (*kernel.shape, 1, x.shape[-1]))
    beyond = [(0, 0), *((side // 2, side // 2) for side in kernel.shape), (0, 0)]
    return jax.lax.conv_general_dilated(
        jnp.pad(x, beyond, mode="symmetric"),
        depthwise.astype(x.dtype),
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision="highest",
    )
