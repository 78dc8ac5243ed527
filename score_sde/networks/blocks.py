"""The blocks that the U-Net is built of: residual (BigGAN type) and attention."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from score_sde.networks import resampling
from score_sde.networks.convolution import Conv
from score_sde.networks.layers import Dense, GroupNorm, dropout, statistics_dtype


class ResidualBlock(nnx.Module):
    """BigGAN residual block (Brock et al. 2019; Song et al. 2021, appendix H.1).

    GroupNorm, swish, [resampling], 3x3 convolution, + Dense(embedding), GroupNorm, swish, dropout,
    3x3 convolution; added to the (resampled) input, which passes a 1x1 convolution if the number
    of channels or the size changes.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        embedding_width: width of the embedding.
        resample: "none", "up" (size x 2) or "down" (size / 2).
        fir: how to resample, see `resampling`.
        dropout: rate.
        skip_rescale: divide the sum by sqrt(2).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        *,
        resample: str = "none",
        fir: bool,
        dropout: float,
        skip_rescale: bool,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        self.resample = resample
        self.fir = fir
        self.dropout = dropout
        self.skip_rescale = skip_rescale
        self.norm0 = GroupNorm(in_channels, dtype=dtype)
        self.conv0 = Conv(in_channels, out_channels, dtype=dtype, rngs=rngs)
        self.embedding = Dense(embedding_width, out_channels, dtype=dtype, rngs=rngs)
        self.norm1 = GroupNorm(out_channels, dtype=dtype)
        self.conv1 = Conv(out_channels, out_channels, scale=0.0, dtype=dtype, rngs=rngs)
        self.has_shortcut = in_channels != out_channels or resample != "none"
        if self.has_shortcut:
            self.shortcut = Conv(in_channels, out_channels, kernel_size=1, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, embedding: jax.Array, mask: jax.Array | None, train: bool
    ) -> jax.Array:
        """Evaluates the block.

        Args:
            x: (B, H, W, in_channels).
            embedding: activated embedding (B, embedding_width).
            mask: state that the dropout mask is drawn from, see `dropout`; None drops nothing.
            train: use the convolution with the own gradient.

        Returns:
            (B, H', W', out_channels) with H' = H, 2 H or H / 2.
        """
        h = self._resample(jax.nn.silu(self.norm0(x)))
        x = self._resample(x)
        h = self.conv0(h, train)
        shift = self.embedding(embedding)
        h = h + shift.reshape(shift.shape[0], 1, 1, shift.shape[1])
        h = jax.nn.silu(self.norm1(h))
        if mask is not None:
            h = dropout(mask, h, self.dropout)
        h = self.conv1(h, train)
        if self.has_shortcut:
            x = self.shortcut(x, train)
        return (x + h) / math.sqrt(2.0) if self.skip_rescale else x + h

    def _resample(self, x: jax.Array) -> jax.Array:
        if self.resample == "up":
            return resampling.fir_up(x) if self.fir else resampling.nearest_up(x)
        if self.resample == "down":
            return resampling.fir_down(x) if self.fir else resampling.mean_down(x)
        return x


class AttentionBlock(nnx.Module):
    """Self-attention over all pixels, one head (Ho et al. 2020, appendix B).

    q, k, v = three 1x1 maps of GroupNorm(x); softmax(q k / sqrt(C)) v, mapped once more, is added
    to x.
    """

    def __init__(self, channels: int, *, skip_rescale: bool, dtype: np.dtype, rngs: nnx.Rngs):
        self.skip_rescale = skip_rescale
        self.dtype = dtype
        self.norm = GroupNorm(channels, dtype=dtype)
        self.query = Dense(channels, channels, scale=0.1, dtype=dtype, rngs=rngs)
        self.key = Dense(channels, channels, scale=0.1, dtype=dtype, rngs=rngs)
        self.value = Dense(channels, channels, scale=0.1, dtype=dtype, rngs=rngs)
        self.output = Dense(channels, channels, scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        h = self.norm(x).reshape(batch, height * width, channels)
        q, k, v = self.query(h), self.key(h), self.value(h)
        logits = jnp.einsum("bqc,bkc->bqk", q, k) / math.sqrt(channels)
        weights = jax.nn.softmax(logits.astype(statistics_dtype(self.dtype)), axis=-1)
        h = self.output(jnp.einsum("bqk,bkc->bqc", weights.astype(v.dtype), v))
        h = h.reshape(x.shape)
        return (x + h) / math.sqrt(2.0) if self.skip_rescale else x + h
