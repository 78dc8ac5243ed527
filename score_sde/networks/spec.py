"""The settings of a U-Net, checked once."""

import itertools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from score_sde.errors import require
from score_sde.networks.layers import ACTIVATIONS

# Beyond every network that was published, and below what fills a machine's memory by its names.
MOST_CHANNELS, MOST_BLOCKS = 2**14, 400

# The allowed words of each setting that is a word.
CHOICES: dict[str, tuple[str, ...]] = {
    "block": ("biggan", "adm", "ddpm"),
    "activation": tuple(ACTIVATIONS),
    "embedding": ("positional", "vaswani", "fourier"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_output": ("none", "output_skip", "residual"),
    "combine": ("sum", "cat"),
    "decoder_attention": ("once", "every"),
}


@dataclass(frozen=True)
class UNetSpec:
    """The settings of a `UNet`. The defaults are DDPM++.

    Attributes:
        image_size: height and width of the images: one number, or (height, width).
        channels: channels of the images.
        width: channels of the first level, a multiple of 4.
        multipliers: for each level its width in multiples of `width`. The image halves from each
            level to the next, so both sides are divisible by 2^(levels - 1).
        num_blocks: residual blocks per level of the encoder (the decoder has one more).
        block: type of the residual blocks: "biggan" and "adm", which also resample between the
            levels, or "ddpm". See `ResidualBlock`.
        scale_shift: the embedding gives each channel of a residual block's second normalization a
            factor and a shift (Nichol, Dhariwal 2021; Perez et al. 2018). False: it is added to
            what is normalized.
        resample_with_conv: "ddpm" blocks only: convolve where the image halves or doubles.
        symmetric_padding: "ddpm" blocks without `fir` only: where such a convolution halves, pad
            both sides of the image by 1, else the right and the bottom alone.
        attention_resolutions: the levels' image sizes (the shorter side's) at which residual blocks
            are followed by attention.
        decoder_attention: in the decoder, "once" after a level's last residual block or after
            "every" one (as in Ho et al.'s code).
        head_width: channels of each head of an attention; 0 for `num_heads` heads.
        num_heads: heads of every attention, where `head_width` is 0.
        dropout: probability of dropping an activation inside a residual block.
        activation: "swish", "elu", "relu" or "lrelu" (of slope 0.2).
        init_scale: factor of the variance of the initial kernels that end a block or the network;
            0 stands for 1e-10.
        norm_groups: groups of each normalization; 0 stands for min(C // 4, 32) of C channels.
        norm_eps: what each normalization adds to the variance.
        conditional: the blocks read the noise level. Without it the network has no embedding,
            classes, augmentation or input frequencies.
        embedding: "positional": sines and cosines of the noise level at `width` / 2 frequencies
            from 1 down to 1e-4, made for values of 0 to 1000. "vaswani": likewise, the lowest
            frequency a step above 1e-4 (`positional_features`). "fourier": sines and cosines of
            2 pi W times the noise level, W drawn once from N(0, fourier_scale^2), never trained.
        embedding_features: of the noise level, from which the embedding of four times as many is
            made; 0 stands for `width`.
        level_scale: factor of the noise level before its features.
        fourier_scale: standard deviation of W.
        skip_rescale: divide the sum of a block and its shortcut by sqrt(2).
        fir: resample with the [1, 3, 3, 1] filter instead of nearest neighbours and 2x2 means.
        progressive_input: what every level gets of the input: "residual" adds a convolved,
            downsampled copy, "input_skip" combines the downsampled input, "none" is nothing.
        combine: how "input_skip" does it, "sum" or "cat".
        progressive_output: how the levels make the output: "output_skip" sums an upsampled image
            of each, "residual" adds up convolved, upsampled features, "none": the last level alone.
        num_classes: number of class labels; 0 for a network without labels.
        augmentation: parameters of an augmentation that the network is given; 0 without.
        logits: classes that a classifier tells apart: encoder and middle alone, the mean of their
            features over the pixels mapped to (B, logits). 0: the whole network.
        learned_variance: the output has twice the images' channels (`score.Model`).
        centered: the input lies in [-1, 1]. False: it lies in [0, 1] and is mapped to [-1, 1].
        input_frequencies: for each f, sin(f pi x) and cos(f pi x) of the input in [-1, 1] are
            given to the first convolution as further channels (Kingma et al. 2021, section 3.4,
            where f = 2^7, 2^8). Unlike there, each is gated by a sigmoid of the embedding: above
            the noise level of a period they are noise, and the network learns to shut them off.
        remat: compute each block again in the backward pass instead of keeping its inner arrays:
            less memory for a third more time. Acts on `reverse_only` calls, which training makes.
        dtype: of the computation. Parameters and the statistics of the normalization are always
            float32.

    Raises:
        ValueError: a value that is not allowed, by the setting's name; the checks stop at the
            first.
    """

    image_size: int | tuple[int, int]
    channels: int
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 4
    block: str = "biggan"
    scale_shift: bool = False
    resample_with_conv: bool = True
    symmetric_padding: bool = False
    attention_resolutions: tuple[int, ...] = (16,)
    decoder_attention: str = "once"
    head_width: int = 0
    num_heads: int = 1
    dropout: float = 0.1
    activation: str = "swish"
    init_scale: float = 0.0
    norm_groups: int = 0
    norm_eps: float = 1e-6
    conditional: bool = True
    embedding: str = "positional"
    embedding_features: int = 0
    level_scale: float = 1.0
    fourier_scale: float = 16.0
    skip_rescale: bool = True
    fir: bool = False
    progressive_input: str = "none"
    combine: str = "sum"
    progressive_output: str = "none"
    num_classes: int = 0
    augmentation: int = 0
    logits: int = 0
    learned_variance: bool = False
    centered: bool = True
    input_frequencies: tuple[float, ...] = ()
    remat: bool = False
    dtype: np.dtype[Any] = np.dtype("float32")  # noqa: RUF009  (immutable)

    def __post_init__(self) -> None:
        for name in ("multipliers", "attention_resolutions", "input_frequencies"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,)
        if len(set(sides)) == 1:  # so that equal networks have equal specifications
            object.__setattr__(self, "image_size", sides[0])
        for name, words in CHOICES.items():
            self._require(name, getattr(self, name) in words, ", ".join(words))
        sides_ok = len(sides) in (1, 2) and min(sides) > 0
        self._require("image_size", sides_ok, "positive integers, (height, width)")
        for name in ("channels", "num_blocks"):
            self._require(name, getattr(self, name) > 0, "positive integers")
        fours = self.width % 4 == 0 and 0 < self.width <= MOST_CHANNELS
        self._require("width", fours, f"positive multiples of 4, up to {MOST_CHANNELS}")
        features = self.embedding_features
        fours = features % 4 == 0 and 0 <= features <= MOST_CHANNELS
        self._require("embedding_features", fours, f"0, multiples of 4 up to {MOST_CHANNELS}")
        self._require("level_scale", self.level_scale > 0, "positive numbers")
        self._require("dropout", 0 <= self.dropout < 1, "numbers from 0 to below 1")
        both = self.sides[0] | self.sides[1]
        most = (both & -both).bit_length()
        self._require(
            "multipliers",
            1 <= len(self.multipliers) <= most and min(self.multipliers) > 0,
            f"1 to {most} positive integers with image_size = {self.image_size}, which halves from "
            "level to level",
        )
        narrow = max(self.widths) <= MOST_CHANNELS
        self._require("multipliers", narrow, f"levels of up to {MOST_CHANNELS} channels")
        few = self.num_blocks * len(self.multipliers) <= MOST_BLOCKS
        self._require("num_blocks", few, f"up to {MOST_BLOCKS} blocks on all levels together")
        sizes = ", ".join(map(str, self.sizes))
        levels = set(self.attention_resolutions) <= set(self.sizes)
        self._require("attention_resolutions", levels, f"the levels' image sizes {sizes}")
        divides = not self.norm_groups or self.width % self.norm_groups == 0
        self._require("norm_groups", divides, f"0 and divisors of width = {self.width}")
        attends = (size in self.attention_resolutions for size in self.sizes)
        attended = {*itertools.compress(self.widths, attends), self.widths[-1]}  # of the middle
        widths = ", ".join(map(str, sorted(attended)))
        whole = not self.head_width or all(width % self.head_width == 0 for width in attended)
        self._require("head_width", whole, f"0 and divisors of the widths {widths} with attention")
        whole = self.num_heads > 0 and all(width % self.num_heads == 0 for width in attended)
        self._require("num_heads", whole, f"divisors of the widths {widths} with attention")
        self._require("norm_eps", self.norm_eps > 0, "positive numbers")
        for name, none in (("num_classes", 0), ("augmentation", 0), ("input_frequencies", ())):
            ok = self.conditional or not getattr(self, name)
            self._require(name, ok, f"{none} with conditional = False")

    def _require(self, name: str, ok: bool, allowed: str) -> None:
        require(ok, name, getattr(self, name), allowed)

    @property
    def without_effect(self) -> set[str]:
        """The settings that have no effect, given the others."""
        levels, of_ddpm = len(self.multipliers) > 1, self.block == "ddpm"
        of_noise = {"embedding", "embedding_features", "level_scale", "scale_shift"}
        resampling = {"fir", "combine", "progressive_input", "resample_with_conv"}
        # Only a convolution at stride 2 pads both sides, or one.
        halves = (of_ddpm and self.resample_with_conv) or self.progressive_input == "residual"
        read = {
            "fourier_scale": self.conditional and self.embedding == "fourier",
            "combine": self.progressive_input == "input_skip",
            "resample_with_conv": of_ddpm,
            "symmetric_padding": levels and halves and not self.fir,
            "num_heads": not self.head_width,
            "decoder_attention": bool(self.attention_resolutions) and not self.logits,
        }
        without = {name for name, when in read.items() if not when}
        return (
            without | (set() if self.conditional else of_noise) | (set() if levels else resampling)
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Image size of each level: its shorter side."""
        return tuple(min(self.sides) // 2**level for level in range(len(self.multipliers)))

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.channels * (2 if self.learned_variance else 1)

    @property
    def embedding_width(self) -> int:
        """Features of the embedding, which the blocks' Dense layers read; 0 without one."""
        return 4 * (self.embedding_features or self.width) if self.conditional else 0
