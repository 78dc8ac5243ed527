"""The U-Net of the DDPM++ / NCSN++ family (Song et al. 2021, appendix H).

One class; what differs between the published networks is an argument. The network knows nothing
of diffusion processes: it maps images and a scalar noise condition per image to images.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from score_sde.networks.blocks import AttentionBlock, ResidualBlock
from score_sde.networks.convolution import Conv, FIRConvDown
from score_sde.networks.embeddings import (
    ConditionEmbedding,
    LabelEmbedding,
    input_features,
)
from score_sde.networks.layers import Dense, GroupNorm, dropout_states, statistics_dtype


class UNet(nnx.Module):
    """DDPM++ (the defaults) and NCSN++ (`fir=True, progressive_input="residual"`).

    The parts, in the order in which data pass through them: `condition` and `labels` make the
    embedding; `stem` is the first convolution; `encoder` holds for every level its residual and
    attention blocks, then the block that halves the image; `middle` is two residual blocks around
    an attention; `decoder` mirrors the encoder with one more residual block per level, each
    reading one stored output of the encoder; `head_norm` and `head` make the image. Blocks are
    keyed by name (`level0_block1`), so that a parameter's path says where it stands.

    Args:
        image_size: height and width of the images. Must be divisible by
            2^(len(multipliers) - 1).
        channels: channels of the images.
        width: channels of the first level. All widths must be multiples of 4.
        multipliers: for each level its width in multiples of `width`. The image halves from each
            level to the next.
        num_blocks: residual blocks per level of the encoder (the decoder has one more).
        attention_resolutions: image sizes at which residual blocks are followed by attention.
        dropout: probability of dropping an activation inside a residual block while training.
        embedding: "positional": sines and cosines of `condition` at `width` / 2 frequencies from
            1 down to 1e-4, made for values of 0 to 1000. "fourier": sines and cosines of
            2 pi W `condition`, W drawn once from N(0, fourier_scale^2) and never trained.
        fourier_scale: standard deviation of W.
        skip_rescale: divide the sum of a block and its shortcut by sqrt(2).
        fir: resample with the [1, 3, 3, 1] filter instead of nearest neighbours and 2x2 means.
        progressive_input: "residual" adds a convolved, downsampled copy of the input at every
            level; "none" does not.
        num_classes: number of class labels; None for a network without labels.
        centered: the input lies in [-1, 1]. False: it lies in [0, 1] and is mapped to [-1, 1].
        input_frequencies: for each f, sin(f pi x) and cos(f pi x) of the input in [-1, 1] are
            given to the first convolution as further channels (Kingma et al. 2021, section 5.1,
            where f = 2^7, 2^8). Unlike there, each is gated by a sigmoid of the embedding: above
            the noise level of a period they are noise, and the network learns to shut them off.
        dtype: of the computation. Parameters and the statistics of the normalization are float32
            whatever it is.
        rngs: its `params` stream draws the initial values.

    Raises:
        ValueError: an image size that cannot be halved often enough, or an unknown word.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        skip_rescale: bool = True,
        fir: bool = False,
        progressive_input: str = "none",
        num_classes: int | None = None,
        centered: bool = True,
        input_frequencies: Sequence[float] = (),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        divisor = 2 ** (len(multipliers) - 1)
        if image_size % divisor:
            raise ValueError(
                f"image_size {image_size} is not divisible by {divisor}, "
                f"as {len(multipliers)} levels need"
            )
        if width % 4:
            raise ValueError(f"width {width} is not a multiple of 4")
        if progressive_input not in ("none", "residual"):
            raise ValueError(f"progressive_input is {progressive_input!r}: none or residual")
        self.widths = tuple(width * multiplier for multiplier in multipliers)
        self.sizes = tuple(image_size // 2**level for level in range(len(multipliers)))
        self.attention_sizes = tuple(attention_resolutions)
        self.channels = channels
        self.num_blocks = num_blocks
        self.dropout = dropout
        self.skip_rescale = skip_rescale
        self.fir = fir
        self.progressive_input = progressive_input
        self.num_classes = num_classes
        self.centered = centered
        self.input_frequencies = tuple(input_frequencies)
        self.dtype = np.dtype(dtype)

        self.condition = ConditionEmbedding(
            width, embedding, fourier_scale, dtype=self.dtype, rngs=rngs
        )
        if num_classes is not None:
            self.labels = LabelEmbedding(num_classes, 4 * width, rngs=rngs)
        features = 2 * channels * len(self.input_frequencies)
        if features:
            self.gate = Dense(4 * width, features, dtype=self.dtype, rngs=rngs)
        input_channels = channels + features
        self.stem = Conv(input_channels, width, dtype=self.dtype, rngs=rngs)
        self.encoder, skip_widths = self._make_encoder(rngs)
        self.middle = nnx.Dict(
            block0=self._residual(self.widths[-1], self.widths[-1], rngs),
            attention=self._attention(self.widths[-1], rngs),
            block1=self._residual(self.widths[-1], self.widths[-1], rngs),
        )
        self.decoder = self._make_decoder(skip_widths, rngs)
        self.head_norm = GroupNorm(width * multipliers[0], dtype=self.dtype)
        self.head = Conv(width * multipliers[0], channels, scale=0.0, dtype=self.dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array,
        labels: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Evaluates the network.

        Args:
            x: images (B, H, W, C), float32.
            condition: what tells the noise level (B,), float32: 999 t or a log SNR.
            labels: classes (B,), int32. A label outside 0 ... num_classes - 1, such as -1, is
                an image without label, and None a batch without.
            dropout_key: key of the dropout masks; needed if `train` and the rate is not 0.
            train: drop activations, and use the convolution whose reverse-mode gradient is fast
                everywhere (it has no forward mode: for jax.jvp leave it False).

        Returns:
            (B, H, W, C), float32 (float64 if that is the dtype of the computation).

        Raises:
            ValueError: labels for a network without classes, or no key for the dropout.
        """
        wide = statistics_dtype(self.dtype)
        masks = self._dropout_states(dropout_key, train)
        embedding = self._embed(condition, labels)
        x = x.astype(wide)
        if not self.centered:
            x = 2.0 * x - 1.0
        pyramid = x
        if self.input_frequencies:
            gate = jax.nn.sigmoid(self.gate(embedding)).astype(wide).reshape(len(x), 1, 1, -1)
            x = jnp.concatenate([x, gate * input_features(x, self.input_frequencies)], axis=-1)
        h = self.stem(x, train)

        skips = [h]
        for level in range(len(self.widths)):
            for index in range(self.num_blocks):
                block = self.encoder[f"level{level}_block{index}"]
                h = block(h, embedding, next(masks), train)
                if self.sizes[level] in self.attention_sizes:
                    h = self.encoder[f"level{level}_attention{index}"](h)
                skips.append(h)
            if level < len(self.widths) - 1:
                h = self.encoder[f"level{level}_down"](h, embedding, next(masks), train)
                if self.progressive_input == "residual":
                    pyramid = self.encoder[f"level{level}_input"](pyramid, train)
                    h = pyramid = self._add(pyramid, h)
                skips.append(h)

        h = self.middle["block0"](h, embedding, next(masks), train)
        h = self.middle["attention"](h)
        h = self.middle["block1"](h, embedding, next(masks), train)

        for level in reversed(range(len(self.widths))):
            for index in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                block = self.decoder[f"level{level}_block{index}"]
                h = block(h, embedding, next(masks), train)
            if self.sizes[level] in self.attention_sizes:
                h = self.decoder[f"level{level}_attention"](h)
            if level > 0:
                h = self.decoder[f"level{level}_up"](h, embedding, next(masks), train)

        h = self.head(jax.nn.silu(self.head_norm(h)), train)
        return h.astype(wide)

    def _embed(self, condition: jax.Array, labels: jax.Array | None) -> jax.Array:
        """What every residual block gets of the noise level and the class: (B, 4 width)."""
        embedding = self.condition(condition)
        if labels is not None:
            if self.num_classes is None:
                raise ValueError("labels were given to a network without classes")
            embedding = embedding + self.labels(labels).astype(embedding.dtype)
        # Every residual block begins by this activation: once here instead of once in each.
        return jax.nn.silu(embedding)

    def _dropout_states(self, key: jax.Array | None, train: bool) -> Iterator[jax.Array | None]:
        """One state of `dropout` per residual block, or Nones where nothing is dropped."""
        levels = len(self.widths)
        count = levels * (2 * self.num_blocks + 1) + 2 * (levels - 1) + 2
        if not train or self.dropout == 0.0:
            return iter([None] * count)
        if key is None:
            raise ValueError(f"train=True with dropout {self.dropout} needs a dropout_key")
        return iter(dropout_states(key, count))

    def _add(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return (a + b) / math.sqrt(2.0) if self.skip_rescale else a + b

    def _make_encoder(self, rngs: nnx.Rngs) -> tuple[nnx.Dict, list[int]]:
        """The encoder's blocks and the widths of the outputs that the decoder will read."""
        blocks: dict[str, nnx.Module] = {}
        width = self.stem.out_channels
        pyramid_width = self.channels
        skip_widths = [width]
        for level, level_width in enumerate(self.widths):
            for index in range(self.num_blocks):
                blocks[f"level{level}_block{index}"] = self._residual(width, level_width, rngs)
                width = level_width
                if self.sizes[level] in self.attention_sizes:
                    blocks[f"level{level}_attention{index}"] = self._attention(width, rngs)
                skip_widths.append(width)
            if level < len(self.widths) - 1:
                blocks[f"level{level}_down"] = self._residual(width, width, rngs, "down")
                if self.progressive_input == "residual":
                    blocks[f"level{level}_input"] = self._shrinking_conv(pyramid_width, width, rngs)
                    pyramid_width = width
                skip_widths.append(width)
        return nnx.Dict(blocks), skip_widths

    def _make_decoder(self, skip_widths: list[int], rngs: nnx.Rngs) -> nnx.Dict:
        blocks: dict[str, nnx.Module] = {}
        width = self.widths[-1]
        for level in reversed(range(len(self.widths))):
            for index in range(self.num_blocks + 1):
                blocks[f"level{level}_block{index}"] = self._residual(
                    width + skip_widths.pop(), self.widths[level], rngs
                )
                width = self.widths[level]
            if self.sizes[level] in self.attention_sizes:
                blocks[f"level{level}_attention"] = self._attention(width, rngs)
            if level > 0:
                blocks[f"level{level}_up"] = self._residual(width, width, rngs, "up")
        return nnx.Dict(blocks)

    def _residual(
        self, in_channels: int, out_channels: int, rngs: nnx.Rngs, resample: str = "none"
    ) -> ResidualBlock:
        return ResidualBlock(
            in_channels,
            out_channels,
            4 * self.condition.width,
            resample=resample,
            fir=self.fir,
            dropout=self.dropout,
            skip_rescale=self.skip_rescale,
            dtype=self.dtype,
            rngs=rngs,
        )

    def _attention(self, channels: int, rngs: nnx.Rngs) -> AttentionBlock:
        return AttentionBlock(channels, skip_rescale=self.skip_rescale, dtype=self.dtype, rngs=rngs)

    def _shrinking_conv(
        self, in_channels: int, out_channels: int, rngs: nnx.Rngs
    ) -> Conv | FIRConvDown:
        """The step of the input pyramid from one level to the next."""
        if self.fir:
            return FIRConvDown(in_channels, out_channels, dtype=self.dtype, rngs=rngs)
        return Conv(
            in_channels, out_channels, stride=2, padding=(0, 1), dtype=self.dtype, rngs=rngs
        )
