"""The U-Net's blocks: residual and attention blocks, and the layers between two levels."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from score_sde.networks import resampling
from score_sde.networks.convolution import Conv
from score_sde.networks.layers import ACTIVATIONS, Dense, GroupNorm, dropout, statistics_dtype
from score_sde.networks.spec import UNetSpec


def norm(spec: UNetSpec, channels: int) -> GroupNorm:
    """A normalization."""
    return GroupNorm(channels, groups=spec.norm_groups, eps=spec.norm_eps, dtype=spec.dtype)


def act(spec: UNetSpec, x: jax.Array) -> jax.Array:
    """The activation."""
    return ACTIVATIONS[spec.activation](x)


def add(spec: UNetSpec, a: jax.Array, b: jax.Array) -> jax.Array:
    """The sum of two paths."""
    return (a + b) / math.sqrt(2.0) if spec.skip_rescale else a + b


class ResidualBlock(nnx.Module):
    """Residual block of BigGAN's type (Brock et al. 2019; Song et al. 2021, appendix H.1), of
    DDPM's (Ho et al. 2020, appendix B) or of ADM's (Dhariwal, Nichol 2021, section 3).

    GroupNorm, activation, [resampling], 3x3 convolution, + Dense(embedding), GroupNorm, activation,
    dropout, 3x3 convolution; added to the (resampled) input. DDPM's type does not resample, and its
    shortcut passes a Dense layer where the number of channels changes; ADM's a 1x1 convolution
    there, BigGAN's also where the size changes. With `scale_shift` the embedding is not added:
    Dense(embedding) are a scale s and a shift, and (1 + s) GroupNorm + shift is activated. The
    network computes Dense(embedding), of all blocks together (`dense_together`).

    Args:
        n, m: channels of the input and of the output.
        spec: of the network.
        resample: "none", "up" (size x 2) or "down" (size / 2); the latter two not for DDPM's type.
    """

    def __init__(self, n: int, m: int, spec: UNetSpec, *, resample: str = "none", rngs: nnx.Rngs):
        dtype = spec.dtype
        self.spec = spec
        self.resample = resample
        self.norm0 = norm(spec, n)
        self.conv0 = Conv(n, m, dtype=dtype, rngs=rngs)
        if spec.embedding_width:
            wide = 2 * m if spec.scale_shift else m
            self.embedding = Dense(spec.embedding_width, wide, dtype=dtype, rngs=rngs)
        self.norm1 = norm(spec, m)
        self.conv1 = Conv(m, m, scale=spec.init_scale, dtype=dtype, rngs=rngs)
        shortcut: Dense | Conv | None = None
        if n != m or (resample != "none" and spec.block == "biggan"):
            if spec.block == "ddpm":
                shortcut = Dense(n, m, scale=0.1, dtype=dtype, rngs=rngs)
            else:
                shortcut = Conv(n, m, kernel_size=1, dtype=dtype, rngs=rngs)
        self.shortcut = shortcut

    def __call__(
        self, x: jax.Array, given: jax.Array | None, mask: jax.Array | None, reverse_only: bool
    ) -> jax.Array:
        """Evaluates the block.

        Args:
            x: (B, H, W, n).
            given: what the block's own Dense layer makes of the activated embedding, (B, m), or
                (B, 2 m) with `scale_shift`; None where the blocks get no embedding.
            mask: state that the dropout mask is drawn from, see `dropout`; None drops nothing.
            reverse_only: see `Conv`.

        Returns:
            (B, H', W', m) with H' = H, 2 H or H / 2.
        """
        spec = self.spec
        h = self._resample(act(spec, self.norm0(x)))
        x = self._resample(x)
        h = self.conv0(h, reverse_only)
        h = act(spec, self._normalized(h, given))
        if mask is not None:
            h = dropout(mask, h, spec.dropout)
        h = self.conv1(h, reverse_only)
        if isinstance(self.shortcut, Conv):
            x = self.shortcut(x, reverse_only)
        elif self.shortcut is not None:
            x = self.shortcut(x)
        return add(spec, x, h)

    def _normalized(self, h: jax.Array, given: jax.Array | None) -> jax.Array:
        """The second normalization, with the embedding before or after it."""
        if given is None:
            return self.norm1(h)
        given = given.reshape(given.shape[0], 1, 1, given.shape[1])
        if not self.spec.scale_shift:
            return self.norm1(h + given)
        scale, shift = jnp.split(given, 2, axis=-1)
        return self.norm1(h) * (1.0 + scale) + shift

    def _resample(self, x: jax.Array) -> jax.Array:
        if self.resample == "none":
            return x
        return (resampling.up if self.resample == "up" else resampling.down)(x, self.spec.fir)


class AttentionBlock(nnx.Module):
    """Self-attention over all pixels (Ho et al. 2020, appendix B), with one head or several
    (Vaswani et al. 2017, section 3.2.2).

    q, k, v = three 1x1 maps of GroupNorm(x), each split into heads of d channels; softmax(q k /
    sqrt(d)) v of all heads, mapped once more, is added to x.
    """

    def __init__(self, channels: int, spec: UNetSpec, *, rngs: nnx.Rngs):
        dtype = spec.dtype
        self.spec = spec
        self.norm = norm(spec, channels)
        self.query, self.key, self.value = (
            Dense(channels, channels, scale=0.1, dtype=dtype, rngs=rngs) for _ in range(3)
        )
        self.output = Dense(channels, channels, scale=spec.init_scale, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        h = self.norm(x).reshape(batch, height * width, channels)
        each = self.spec.head_width or channels // self.spec.num_heads
        heads = (batch, height * width, channels // each, each)
        q, k, v = (part(h).reshape(heads) for part in (self.query, self.key, self.value))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(each)
        weights = jax.nn.softmax(logits.astype(statistics_dtype(self.spec.dtype)), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
        h = self.output(mixed.reshape(h.shape))
        return add(self.spec, x, h.reshape(x.shape))


class Resample(nnx.Module):
    """Doubles or halves the size: (B, H, W, in) -> (B, 2 H, 2 W, out) or (B, H / 2, W / 2, out).

    Down with a convolution: 3x3 at stride 2, padded by (0, 1), by (1, 1) with `symmetric_padding`,
    or with FIR after the filter (Karras et al. 2020). Up with a convolution: 3x3 after nearest
    neighbours or, with FIR, transposed at stride 2 before the filter. Filter and convolution
    commute, so here the filter comes first, and no inserted zeros are convolved. Without a
    convolution, in = out: the filter, or nearest neighbours and 2x2 means.
    """

    def __init__(self, n: int, m: int, spec: UNetSpec, *, up: bool, conv: bool, rngs: nnx.Rngs):
        self.fir, self.up = spec.fir, up
        both = up or spec.symmetric_padding
        padding = (0, 0) if spec.fir else (1, 1) if both else (0, 1)
        stride, dtype = 1 if up else 2, spec.dtype
        self.has_conv = conv
        if conv:
            self.conv = Conv(n, m, stride=stride, padding=padding, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, reverse_only: bool) -> jax.Array:
        """Evaluates it; see the class."""
        if not self.has_conv:
            return (resampling.up if self.up else resampling.down)(x, self.fir)
        if self.up:
            x = resampling.fir_up_wide(x) if self.fir else resampling.nearest_up(x)
        elif self.fir:
            x = resampling.fir_filter(x)
        return self.conv(x, reverse_only)


class Combine(nnx.Module):
    """Takes the input pyramid's image, mapped to the width of h by a 1x1 convolution, into h.

    (B, H, W, channels), (B, H, W, C) -> (B, H, W, C) for "sum", (B, H, W, 2 C) for "cat", where the
    image comes first.
    """

    def __init__(self, channels: int, out_channels: int, spec: UNetSpec, *, rngs: nnx.Rngs):
        self.method = spec.combine
        self.conv = Conv(channels, out_channels, kernel_size=1, dtype=spec.dtype, rngs=rngs)

    def __call__(self, image: jax.Array, h: jax.Array, reverse_only: bool) -> jax.Array:
        """Evaluates it; see the class."""
        image = self.conv(image, reverse_only)
        return jnp.concatenate([image, h], axis=-1) if self.method == "cat" else image + h
