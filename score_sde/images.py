"""The one place that knows how integer pixels become the numbers that a model sees, and back.

With ``levels`` grey levels (256 for 8-bit images, 17 for scikit-learn's digits) a pixel v is spread
over its bin, (v + u) / levels with u uniform in [0, 1), or scaled as it is, v / (levels - 1); then
[0, 1] is mapped to [-1, 1] if ``centered``. Uniform dequantization makes log2 p a lower bound of
the discrete model's (Theis et al. 2016, arXiv:1511.01844), and the change of variables costs
log2(levels) - 1 bits per dimension (centered) or log2(levels): 7 or 8 for 8-bit images, 3.09 or
4.09 for the digits.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class PixelRange:
    """The range of the data.

    Attributes:
        levels: number of integer levels; pixels are 0 ... levels - 1.
        centered: the model sees [-1, 1] (VP, sub-VP) instead of [0, 1] (VE).
        dequantize: the model was trained on uniformly dequantized pixels, so its samples fill the
            bins.
    """

    levels: int
    centered: bool
    dequantize: bool

    def to_model(self, images: Array, noise: Array | None = None) -> Array:
        """Integer images (B, H, W, C) to float32 in the model's range.

        Args:
            images: uint8, values 0 ... levels - 1.
            noise: uniform in [0, 1) of the same shape for dequantized pixels; None scales them as
                they are.
        """
        pixels = images.astype(jnp.float32)
        unit = pixels / (self.levels - 1) if noise is None else (pixels + noise) / self.levels
        return 2.0 * unit - 1.0 if self.centered else unit

    def dequantized(self, keys: Array, images: Array) -> Array:
        """Uniformly dequantized images in the model's range; keys (B,), one for each image."""
        return self.to_model(
            images, jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(keys)
        )

    def to_uint8(self, x: Array) -> Array:
        """Samples in the model's range to uint8 pixels 0 ... levels - 1."""
        unit = 0.5 * (x + 1.0) if self.centered else x
        pixels = (
            jnp.floor(unit * self.levels)
            if self.dequantize
            else jnp.round(unit * (self.levels - 1))
        )
        return jnp.clip(pixels, 0, self.levels - 1).astype(jnp.uint8)

    def bits_per_dim(self, log_prob: Array, dims: int) -> Array:
        """Bits per dimension of the integers from nats of log density of their dequantized
        values."""
        scale = 2.0 if self.centered else 1.0
        return math.log2(self.levels / scale) - log_prob / (dims * math.log(2.0))
