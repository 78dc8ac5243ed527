"""What the U-Net is built of: residual and attention blocks, and what stands between two levels."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from score_sde.networks import resampling
from score_sde.networks.convolution import Conv
from score_sde.networks.layers import ACTIVATIONS, Dense, GroupNorm, dropout, statistics_dtype


@dataclass(frozen=True)
class Style:
    """What all blocks of a network have in common.

    Attributes:
        block: type of the residual blocks, "biggan" or "ddpm".
        fir: resample with the [1, 3, 3, 1] filter instead of nearest neighbours and 2x2 means.
        skip_rescale: divide the sum of a block and its shortcut by sqrt(2).
        activation: a key of `layers.ACTIVATIONS`.
        init_scale: of the initial kernels that end a block, see `layers.variance_scaling`.
        norm_groups: of each normalization, see `layers.GroupNorm`.
        dropout: rate.
        embedding_width: features of the embedding; 0 for blocks that get none.
        dtype: of the computation.
    """

    block: str
    fir: bool
    skip_rescale: bool
    activation: str
    init_scale: float
    norm_groups: int
    dropout: float
    embedding_width: int
    dtype: np.dtype

    def act(self, x: jax.Array) -> jax.Array:
        """The activation."""
        return ACTIVATIONS[self.activation](x)

    def norm(self, channels: int) -> GroupNorm:
        """A normalization."""
        return GroupNorm(channels, groups=self.norm_groups, dtype=self.dtype)

    def add(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The sum of two paths."""
        return (a + b) / math.sqrt(2.0) if self.skip_rescale else a + b


class ResidualBlock(nnx.Module):
    """Residual block of BigGAN's type (Brock et al. 2019; Song et al. 2021, appendix H.1) or of
    DDPM's (Ho et al. 2020, appendix B).

    GroupNorm, activation, [resampling], 3x3 convolution, + Dense(embedding), GroupNorm, activation,
    dropout, 3x3 convolution; added to the (resampled) input. DDPM's type does not resample, and its
    shortcut passes a Dense layer where the number of channels changes; BigGAN's a 1x1 convolution
    where that or the size changes.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        style: of the network.
        resample: "none", "up" (size x 2) or "down" (size / 2); the latter two for BigGAN's type.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: Style,
        *,
        resample: str = "none",
        rngs: nnx.Rngs,
    ):
        dtype = style.dtype
        self.style = style
        self.resample = resample
        self.norm0 = style.norm(in_channels)
        self.conv0 = Conv(in_channels, out_channels, dtype=dtype, rngs=rngs)
        if style.embedding_width:
            self.embedding = Dense(style.embedding_width, out_channels, dtype=dtype, rngs=rngs)
        self.norm1 = style.norm(out_channels)
        self.conv1 = Conv(
            out_channels, out_channels, scale=style.init_scale, dtype=dtype, rngs=rngs
        )
        shortcut: Dense | Conv | None = None
        if in_channels != out_channels or resample != "none":
            shortcut = (
                Dense(in_channels, out_channels, scale=0.1, dtype=dtype, rngs=rngs)
                if style.block == "ddpm"
                else Conv(in_channels, out_channels, kernel_size=1, dtype=dtype, rngs=rngs)
            )
        self.shortcut = shortcut

    def __call__(
        self, x: jax.Array, embedding: jax.Array | None, mask: jax.Array | None, train: bool
    ) -> jax.Array:
        """Evaluates the block.

        Args:
            x: (B, H, W, in_channels).
            embedding: activated embedding (B, embedding_width); None where the blocks get none.
            mask: state that the dropout mask is drawn from, see `dropout`; None drops nothing.
            train: use the convolution with the own gradient.

        Returns:
            (B, H', W', out_channels) with H' = H, 2 H or H / 2.
        """
        style = self.style
        h = self._resample(style.act(self.norm0(x)))
        x = self._resample(x)
        h = self.conv0(h, train)
        if embedding is not None:
            shift = self.embedding(embedding)
            h = h + shift.reshape(shift.shape[0], 1, 1, shift.shape[1])
        h = style.act(self.norm1(h))
        if mask is not None:
            h = dropout(mask, h, style.dropout)
        h = self.conv1(h, train)
        if isinstance(self.shortcut, Conv):
            x = self.shortcut(x, train)
        elif self.shortcut is not None:
            x = self.shortcut(x)
        return style.add(x, h)

    def _resample(self, x: jax.Array) -> jax.Array:
        if self.resample == "up":
            return resampling.up(x, self.style.fir)
        if self.resample == "down":
            return resampling.down(x, self.style.fir)
        return x


class AttentionBlock(nnx.Module):
    """Self-attention over all pixels, one head (Ho et al. 2020, appendix B).

    q, k, v = three 1x1 maps of GroupNorm(x); softmax(q k / sqrt(C)) v, mapped once more, is added
    to x.
    """

    def __init__(self, channels: int, style: Style, *, rngs: nnx.Rngs):
        dtype = style.dtype
        self.style = style
        self.norm = style.norm(channels)
        self.query = Dense(channels, channels, scale=0.1, dtype=dtype, rngs=rngs)
        self.key = Dense(channels, channels, scale=0.1, dtype=dtype, rngs=rngs)
        self.value = Dense(channels, channels, scale=0.1, dtype=dtype, rngs=rngs)
        self.output = Dense(channels, channels, scale=style.init_scale, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        h = self.norm(x).reshape(batch, height * width, channels)
        q, k, v = self.query(h), self.key(h), self.value(h)
        logits = jnp.einsum("bqc,bkc->bqk", q, k) / math.sqrt(channels)
        weights = jax.nn.softmax(logits.astype(statistics_dtype(self.style.dtype)), axis=-1)
        h = self.output(jnp.einsum("bqk,bkc->bqc", weights.astype(v.dtype), v))
        return self.style.add(x, h.reshape(x.shape))


class Downsample(nnx.Module):
    """Halves the size: (B, H, W, in) -> (B, H / 2, W / 2, out).

    With a convolution: 3x3 at stride 2, padded by (0, 1) or, with FIR, after the filter (Karras et
    al. 2020). Without, in = out: the filter or 2x2 means.
    """

    def __init__(
        self, in_channels: int, out_channels: int, style: Style, *, conv: bool, rngs: nnx.Rngs
    ):
        self.fir = style.fir
        self.has_conv = conv
        if conv:
            padding = (0, 0) if style.fir else (0, 1)
            self.conv = Conv(
                in_channels, out_channels, stride=2, padding=padding, dtype=style.dtype, rngs=rngs
            )

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Evaluates it; see the class."""
        if not self.has_conv:
            return resampling.down(x, self.fir)
        return self.conv(resampling.fir_filter(x) if self.fir else x, train)


class Upsample(nnx.Module):
    """Doubles the size: (B, H, W, in) -> (B, 2 H, 2 W, out).

    With a convolution: 3x3 after nearest neighbours or, with FIR, transposed at stride 2 before the
    filter (Karras et al. 2020). Filter and convolution commute, so here the filter comes first,
    and no inserted zeros are convolved. Without, in = out: the filter or nearest neighbours.
    """

    def __init__(
        self, in_channels: int, out_channels: int, style: Style, *, conv: bool, rngs: nnx.Rngs
    ):
        self.fir = style.fir
        self.has_conv = conv
        if conv:
            padding = (0, 0) if style.fir else (1, 1)
            self.conv = Conv(
                in_channels, out_channels, padding=padding, dtype=style.dtype, rngs=rngs
            )

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Evaluates it; see the class."""
        if not self.has_conv:
            return resampling.up(x, self.fir)
        return self.conv(resampling.fir_up_wide(x) if self.fir else resampling.nearest_up(x), train)


class Combine(nnx.Module):
    """Takes the input pyramid's image, mapped to the width of h by a 1x1 convolution, into h.

    (B, H, W, channels), (B, H, W, C) -> (B, H, W, C) for "sum", (B, H, W, 2 C) for "cat", where the
    image comes first.
    """

    def __init__(
        self, channels: int, out_channels: int, method: str, *, dtype: np.dtype, rngs: nnx.Rngs
    ):
        self.method = method
        self.conv = Conv(channels, out_channels, kernel_size=1, dtype=dtype, rngs=rngs)

    def __call__(self, image: jax.Array, h: jax.Array, train: bool) -> jax.Array:
        """Evaluates it; see the class."""
        image = self.conv(image, train)
        return jnp.concatenate([image, h], axis=-1) if self.method == "cat" else image + h
