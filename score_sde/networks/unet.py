"""The U-Net of the DDPM, DDPM++ and NCSN++ family (Ho et al. 2020; Song et al. 2021, appendix H).

One class; what differs between the published networks is an argument. The network knows nothing
of diffusion processes: it maps images and a scalar noise condition per image to images.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from score_sde.networks import resampling
from score_sde.networks.blocks import (
    AttentionBlock,
    Combine,
    Downsample,
    ResidualBlock,
    Style,
    Upsample,
)
from score_sde.networks.convolution import Conv
from score_sde.networks.embeddings import (
    ConditionEmbedding,
    LabelEmbedding,
    input_features,
)
from score_sde.networks.layers import ACTIVATIONS, Dense, dropout_states, statistics_dtype

WORDS = {
    "block": ("biggan", "ddpm"),
    "activation": tuple(ACTIVATIONS),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_output": ("none", "output_skip", "residual"),
    "combine": ("sum", "cat"),
    "decoder_attention": ("once", "every"),
}


class UNet(nnx.Module):
    """DDPM++ (the defaults), NCSN++ (`fir=True, progressive_input="residual"`) and DDPM
    (`block="ddpm", skip_rescale=False, norm_groups=32, num_blocks=2`).

    The parts, in the order in which data pass through them: `condition` and `labels` make the
    embedding; `stem` is the first convolution; `encoder` holds for every level its residual and
    attention blocks, then what halves the image and takes in the input pyramid; `middle` is two
    residual blocks around an attention; `decoder` mirrors the encoder with one more residual block
    per level, each reading one stored output of the encoder, and the output pyramid; `head_norm`
    and `head` make the image. Blocks are keyed by name (`level0_block1`), so that a parameter's
    path says where it stands.

    Args:
        image_size: height and width of the images. Must be divisible by
            2^(len(multipliers) - 1).
        channels: channels of the images.
        width: channels of the first level. All widths must be multiples of 4.
        multipliers: for each level its width in multiples of `width`. The image halves from each
            level to the next.
        num_blocks: residual blocks per level of the encoder (the decoder has one more).
        block: type of the residual blocks: "biggan", which also resample between the levels, or
            "ddpm".
        resample_with_conv: "ddpm" blocks only: convolve where the image halves or doubles.
        attention_resolutions: image sizes at which residual blocks are followed by attention.
        decoder_attention: in the decoder, "once" after a level's last residual block or after
            "every" one (as in Ho et al.'s code).
        dropout: probability of dropping an activation inside a residual block while training.
        activation: "swish", "elu", "relu" or "lrelu" (of slope 0.2).
        init_scale: of the initial kernels that end a block or the network, whose variance it
            multiplies; 0 stands for 1e-10.
        norm_groups: groups of each normalization; 0 stands for min(C // 4, 32) of C channels.
        conditional: the network is told the noise condition. False: it is not, and has neither
            embedding nor labels nor input frequencies.
        embedding: "positional": sines and cosines of `condition` at `width` / 2 frequencies from
            1 down to 1e-4, made for values of 0 to 1000. "fourier": sines and cosines of
            2 pi W `condition`, W drawn once from N(0, fourier_scale^2) and never trained.
        fourier_scale: standard deviation of W.
        skip_rescale: divide the sum of a block and its shortcut by sqrt(2).
        fir: resample with the [1, 3, 3, 1] filter instead of nearest neighbours and 2x2 means.
        progressive_input: what every level gets of the input: "residual" adds a convolved,
            downsampled copy, "input_skip" combines the downsampled input, "none" is nothing.
        combine: how "input_skip" does it, "sum" or "cat".
        progressive_output: how the levels make the output: "output_skip" sums an upsampled image
            of each, "residual" adds up convolved, upsampled features, "none": the last level alone.
        num_classes: number of class labels; None for a network without labels.
        centered: the input lies in [-1, 1]. False: it lies in [0, 1] and is mapped to [-1, 1].
        input_frequencies: for each f, sin(f pi x) and cos(f pi x) of the input in [-1, 1] are
            given to the first convolution as further channels (Kingma et al. 2021, section 5.1,
            where f = 2^7, 2^8). Unlike there, each is gated by a sigmoid of the embedding: above
            the noise level of a period they are noise, and the network learns to shut them off.
        remat: compute each block again in the backward pass of training instead of keeping what is
            inside it: less memory for a third more time.
        dtype: of the computation. Parameters and the statistics of the normalization are float32
            whatever it is.
        rngs: its `params` stream draws the initial values.

    Raises:
        ValueError: an image size that cannot be halved often enough, widths that do not divide
            into groups, an unknown word, or something that an unconditional network cannot have.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 4,
        block: str = "biggan",
        resample_with_conv: bool = True,
        attention_resolutions: Sequence[int] = (16,),
        decoder_attention: str = "once",
        dropout: float = 0.1,
        activation: str = "swish",
        init_scale: float = 0.0,
        norm_groups: int = 0,
        conditional: bool = True,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        skip_rescale: bool = True,
        fir: bool = False,
        progressive_input: str = "none",
        combine: str = "sum",
        progressive_output: str = "none",
        num_classes: int | None = None,
        centered: bool = True,
        input_frequencies: Sequence[float] = (),
        remat: bool = False,
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
        chosen = (block, activation, progressive_input, progressive_output, combine)
        for (name, words), word in zip(WORDS.items(), (*chosen, decoder_attention), strict=True):
            if word not in words:
                raise ValueError(f"{name} is {word!r}: allowed are {', '.join(words)}")
        if not conditional and (num_classes is not None or input_frequencies):
            raise ValueError("conditional=False goes with neither num_classes nor frequencies")
        self.widths = tuple(width * multiplier for multiplier in multipliers)
        self.sizes = tuple(image_size // 2**level for level in range(len(multipliers)))
        self.attention_sizes = tuple(attention_resolutions)
        self.channels = channels
        self.num_blocks = num_blocks
        self.block = block
        self.resample_with_conv = resample_with_conv
        self.decoder_attention = decoder_attention
        self.progressive_input = progressive_input
        self.combine = combine
        self.progressive_output = progressive_output
        self.conditional = conditional
        self.num_classes = num_classes
        self.centered = centered
        self.input_frequencies = tuple(input_frequencies)
        self.remat = remat
        self.style = Style(
            block=block,
            fir=fir,
            skip_rescale=skip_rescale,
            activation=activation,
            init_scale=init_scale,
            norm_groups=norm_groups,
            dropout=dropout,
            embedding_width=4 * width if conditional else 0,
            dtype=np.dtype(dtype),
        )

        wide, dtype = 4 * width, self.style.dtype
        if conditional:
            self.condition = ConditionEmbedding(
                width, embedding, fourier_scale, activation=activation, dtype=dtype, rngs=rngs
            )
        if num_classes is not None:
            self.labels = LabelEmbedding(num_classes, wide, rngs=rngs)
        features = 2 * channels * len(self.input_frequencies)
        if features:
            self.gate = Dense(wide, features, dtype=dtype, rngs=rngs)
        self.stem = Conv(channels + features, width, dtype=dtype, rngs=rngs)
        self.encoder, skip_widths = self._make_encoder(rngs)
        last = skip_widths[-1]
        self.middle = nnx.Dict(
            block0=self._residual(last, last, rngs),
            attention=AttentionBlock(last, self.style, rngs=rngs),
            block1=self._residual(last, last, rngs),
        )
        self.decoder = self._make_decoder(skip_widths, rngs)
        if progressive_output != "output_skip":
            self.head_norm = self.style.norm(self.widths[0])
            self.head = self._last_conv(self.widths[0], rngs)

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
            condition: what tells the noise level (B,), float32: 999 t or a log SNR. Without effect
                for an unconditional network.
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
        wide, act, run = statistics_dtype(self.style.dtype), self.style.act, self._run(train)
        masks = self._dropout_states(dropout_key, train)
        embedding = self._embed(condition, labels)

        def residual(block: nnx.Module, h: jax.Array) -> jax.Array:
            return run(block, h, embedding, next(masks), train=train)

        x = x.astype(wide)
        if not self.centered:
            x = 2.0 * x - 1.0
        pyramid = x
        if embedding is not None and self.input_frequencies:
            gate = jax.nn.sigmoid(self.gate(embedding)).astype(wide).reshape(len(x), 1, 1, -1)
            x = jnp.concatenate([x, gate * input_features(x, self.input_frequencies)], axis=-1)
        h = self.stem(x, train)

        skips = [h]
        for level in range(len(self.widths)):
            for index in range(self.num_blocks):
                h = residual(self.encoder[f"level{level}_block{index}"], h)
                if self.sizes[level] in self.attention_sizes:
                    h = run(self.encoder[f"level{level}_attention{index}"], h)
                skips.append(h)
            if level < len(self.widths) - 1:
                down = self.encoder[f"level{level}_down"]
                h = residual(down, h) if self.block == "biggan" else down(h, train)
                if self.progressive_input == "residual":
                    pyramid = self.encoder[f"level{level}_input"](pyramid, train)
                    h = pyramid = self.style.add(pyramid, h)
                elif self.progressive_input == "input_skip":
                    pyramid = resampling.down(pyramid, self.style.fir)
                    h = self.encoder[f"level{level}_input"](pyramid, h, train)
                skips.append(h)

        h = residual(self.middle["block0"], h)
        h = run(self.middle["attention"], h)
        h = residual(self.middle["block1"], h)

        for level in reversed(range(len(self.widths))):
            for index in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = residual(self.decoder[f"level{level}_block{index}"], h)
                if f"level{level}_attention{index}" in self.decoder:
                    h = run(self.decoder[f"level{level}_attention{index}"], h)
            if f"level{level}_attention" in self.decoder:
                h = run(self.decoder[f"level{level}_attention"], h)
            if self.progressive_output != "none":
                h, pyramid = self._output(level, h, pyramid, train)
            if level > 0:
                up = self.decoder[f"level{level}_up"]
                h = residual(up, h) if self.block == "biggan" else up(h, train)

        if self.progressive_output == "output_skip":
            return pyramid.astype(wide)
        return self.head(act(self.head_norm(h)), train).astype(wide)

    def _output(
        self, level: int, h: jax.Array, pyramid: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """A level's step of the output pyramid: h, and the pyramid with this level in it."""
        lowest, layer = level == len(self.widths) - 1, self.decoder[f"level{level}_output"]
        if self.progressive_output == "residual" and not lowest:
            pyramid = self.style.add(layer(pyramid, train), h)
            return pyramid, pyramid
        image = layer(self.style.act(self.decoder[f"level{level}_output_norm"](h)), train)
        return h, image if lowest else resampling.up(pyramid, self.style.fir) + image

    def _embed(self, condition: jax.Array, labels: jax.Array | None) -> jax.Array | None:
        """What every residual block gets of the noise level and the class: (B, 4 width)."""
        if labels is not None and self.num_classes is None:
            raise ValueError("labels were given to a network without classes")
        if not self.conditional:
            return None
        embedding = self.condition(condition)
        if labels is not None:
            embedding = embedding + self.labels(labels).astype(embedding.dtype)
        # Every residual block begins by this activation: once here instead of once in each.
        return self.style.act(embedding)

    def _dropout_states(self, key: jax.Array | None, train: bool) -> Iterator[jax.Array | None]:
        """One state of `dropout` per residual block, or Nones where nothing is dropped."""
        levels = len(self.widths)
        resampling_blocks = 2 * (levels - 1) if self.block == "biggan" else 0
        count = levels * (2 * self.num_blocks + 1) + resampling_blocks + 2
        if not train or self.style.dropout == 0.0:
            return iter([None] * count)
        if key is None:
            raise ValueError(f"train=True with dropout {self.style.dropout} needs a dropout_key")
        return iter(dropout_states(key, count))

    def _run(self, train: bool) -> Callable[..., jax.Array]:
        """How a block is called: `run(block, *arrays, **options)`."""

        def plain(block: nnx.Module, *arrays: Any, **options: bool) -> jax.Array:
            return block(*arrays, **options)

        def again(block: nnx.Module, *arrays: Any, **options: bool) -> jax.Array:
            graph, params = nnx.split(block)

            def call(params: Any, *arrays: Any) -> jax.Array:
                return plain(nnx.merge(graph, params), *arrays, **options)

            return jax.checkpoint(call)(params, *arrays)

        return again if self.remat and train else plain

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
                    attention = AttentionBlock(width, self.style, rngs=rngs)
                    blocks[f"level{level}_attention{index}"] = attention
                skip_widths.append(width)
            if level == len(self.widths) - 1:
                break
            if self.block == "biggan":
                blocks[f"level{level}_down"] = self._residual(width, width, rngs, "down")
            else:
                blocks[f"level{level}_down"] = Downsample(
                    width, width, self.style, conv=self.resample_with_conv, rngs=rngs
                )
            if self.progressive_input == "residual":
                blocks[f"level{level}_input"] = Downsample(
                    pyramid_width, width, self.style, conv=True, rngs=rngs
                )
                pyramid_width = width
            elif self.progressive_input == "input_skip":
                blocks[f"level{level}_input"] = Combine(
                    self.channels, width, self.combine, dtype=self.style.dtype, rngs=rngs
                )
                width *= 2 if self.combine == "cat" else 1
            skip_widths.append(width)
        return nnx.Dict(blocks), skip_widths

    def _make_decoder(self, skip_widths: list[int], rngs: nnx.Rngs) -> nnx.Dict:
        blocks: dict[str, nnx.Module] = {}
        width = pyramid_width = skip_widths[-1]
        for level in reversed(range(len(self.widths))):
            attends = self.sizes[level] in self.attention_sizes
            for index in range(self.num_blocks + 1):
                blocks[f"level{level}_block{index}"] = self._residual(
                    width + skip_widths.pop(), self.widths[level], rngs
                )
                width = self.widths[level]
                if attends and self.decoder_attention == "every":
                    attention = AttentionBlock(width, self.style, rngs=rngs)
                    blocks[f"level{level}_attention{index}"] = attention
            if attends and self.decoder_attention == "once":
                blocks[f"level{level}_attention"] = AttentionBlock(width, self.style, rngs=rngs)
            lowest = level == len(self.widths) - 1
            if self.progressive_output == "output_skip":
                blocks[f"level{level}_output_norm"] = self.style.norm(width)
                blocks[f"level{level}_output"] = self._last_conv(width, rngs)
            elif self.progressive_output == "residual" and lowest:
                blocks[f"level{level}_output_norm"] = self.style.norm(width)
                blocks[f"level{level}_output"] = Conv(
                    width, width, dtype=self.style.dtype, rngs=rngs
                )
            elif self.progressive_output == "residual":
                blocks[f"level{level}_output"] = Upsample(
                    pyramid_width, width, self.style, conv=True, rngs=rngs
                )
            pyramid_width = width
            if level > 0 and self.block == "biggan":
                blocks[f"level{level}_up"] = self._residual(width, width, rngs, "up")
            elif level > 0:
                blocks[f"level{level}_up"] = Upsample(
                    width, width, self.style, conv=self.resample_with_conv, rngs=rngs
                )
        return nnx.Dict(blocks)

    def _residual(
        self, in_channels: int, out_channels: int, rngs: nnx.Rngs, resample: str = "none"
    ) -> ResidualBlock:
        return ResidualBlock(in_channels, out_channels, self.style, resample=resample, rngs=rngs)

    def _last_conv(self, in_channels: int, rngs: nnx.Rngs) -> Conv:
        """A convolution to an image."""
        scale, dtype = self.style.init_scale, self.style.dtype
        return Conv(in_channels, self.channels, scale=scale, dtype=dtype, rngs=rngs)
