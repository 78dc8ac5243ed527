"""The one place that knows how integer pixels become the numbers that a model sees, and back.

With ``levels`` grey levels (256 for 8-bit images, 17 for scikit-learn's digits) a pixel v is spread
over its bin, (v + u) / levels with u uniform in [0, 1), or scaled as it is, v / (levels - 1); then
[0, 1] is mapped to [-1, 1] if ``centered``.

Dequantization makes the likelihood of integers from the density p of a continuous model. An image
v of D pixels has the probability P(v) = int p(x) dx over its cell, the product of its pixels' bins;
the cells do not overlap, so that these are the probabilities of a discrete model. With any density
q(x | v) that vanishes outside the cell, Jensen's inequality gives (Theis et al. 2016,
arXiv:1511.01844; Ho et al. 2019, arXiv:1902.00275)

    log P(v) = log E_q[p(x) / q(x | v)] >= E_q[log p(x) - log q(x | v)].

- uniform: q is constant on the cell of width w in the model's range, -log q = D log w. For models
  that were trained on uniformly dequantized pixels: then p is nearly as flat in a cell as q.
- truncated normal (Zheng et al. 2023, arXiv:2305.03935): x = alpha v' + sigma z, v' the pixel as
  the model knows it (the middle of its bin), alpha and sigma those of the process at t_min, z
  standard normal given |z| <= tau = alpha w / (2 sigma), so that x stays in the bin of width alpha
  w around alpha v'. Each pixel's density is q = phi(z) / (sigma Z), phi the standard normal density
  and Z = erf(tau / sqrt(2)) the probability of |z| <= tau. For models that were trained on pixels
  as they are: x is then distributed as what the network was trained on at t_min (for a large tau; a
  small one makes q uniform), where the uniform x lies off the levels that it knows. On a model that
  was trained on dequantized pixels the bound holds but is loose, as q covers a part of the cell
  only.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


def image_keys(key: Array, num: int, first: int | Array = 0) -> Array:
    """A key for each of the images first ... first + num - 1, (num,): what is drawn for an image
    does not depend on how many are drawn at a time."""
    return jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(num))


class Dequantized(NamedTuple):
    """Continuous images drawn for integer ones.

    Attributes:
        x: in the model's range, float32 (B, H, W, C).
        log_density: log q(x | v) of the density that they were drawn from, nats, float32 (B,).
    """

    x: Array
    log_density: Array


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

    def uniform(self, keys: Array, images: Array) -> Dequantized:
        """Uniformly dequantized images.

        Args:
            keys: one for each image, (B,).
            images: uint8 (B, H, W, C), values 0 ... levels - 1.
        """
        shape = images.shape[1:]
        noise = jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)
        log_density = -images[0].size * math.log(self._scale / self.levels)
        x = self.to_model(images, noise)
        return Dequantized(x, jnp.full(len(images), log_density, jnp.float32))

    def truncated_normal(
        self, keys: Array, images: Array, alpha: Array, sigma: Array
    ) -> Dequantized:
        """Images with the process's own noise at t_min, truncated to the bins (the module's
        docstring has the formula).

        Args:
            keys: one for each image, (B,).
            images: uint8 (B, H, W, C), values 0 ... levels - 1.
            alpha: factor of the data at t_min, ().
            sigma: standard deviation of the noise at t_min, ().
        """
        if self.dequantize:
            half = jnp.full(images.shape, 0.5, jnp.float32)
            middles, bins = self.to_model(images, half), self.levels
        else:
            middles, bins = self.to_model(images), self.levels - 1
        tau = 0.5 * alpha * self._scale / bins / sigma
        inside = jax.lax.erf(tau / math.sqrt(2.0))  # Z
        # By the inverse distribution function of a uniform number above -1 and below 1: at the ends
        # themselves z would be infinite where Z is 1 but for rounding.
        least = -1.0 + 2.0**-24

        def truncated(key: Array) -> Array:
            u = jax.random.uniform(key, images.shape[1:], jnp.float32, least, 1.0)
            return math.sqrt(2.0) * jax.lax.erf_inv(inside * u)

        z = jax.vmap(truncated)(keys)
        log_phi = -0.5 * jnp.sum(jnp.square(z), axis=(1, 2, 3))
        rest = images[0].size * (jnp.log(sigma * inside) + 0.5 * math.log(2.0 * math.pi))
        return Dequantized(alpha * middles + sigma * z, log_phi - rest)

    def to_uint8(self, x: Array) -> Array:
        """Samples in the model's range to uint8 pixels 0 ... levels - 1."""
        unit = 0.5 * (x + 1.0) if self.centered else x
        pixels = (
            jnp.floor(unit * self.levels)
            if self.dequantize
            else jnp.round(unit * (self.levels - 1))
        )
        return jnp.clip(pixels, 0, self.levels - 1).astype(jnp.uint8)

    @property
    def _scale(self) -> float:
        return 2.0 if self.centered else 1.0


def bits_per_dim(log_prob: Array, dims: int) -> Array:
    """Bits per dimension from nats of log P (or a bound of it) of integer images of D pixels."""
    return -log_prob / (dims * math.log(2.0))
