"""A U-Net whose layers keep the magnitude of what passes them: EDM2 (Karras et al. 2024,
arXiv:2312.02696, configuration G and appendix B).

Activations of unit variance stay so through every layer, at the start and after any training: each
output of a weight has a kernel of norm 1, sums and concatenations are divided by their expected
size, and the paper's normalizations and biases are gone. Only the gains are free: one number at
the output, and one in each block for its embedding.

A kernel is normalized where it is used (the paper's section 2.3). So its own size has no effect,
and its gradient is orthogonal to it. The paper also sets it back after each update (eq. 66), so
that the updates keep their relative size, the learning rate. Here the kernels grow, as
with weight normalization: by sqrt(1 + n r^2) at most in n updates of the rate r, as an update
changes an element by up to r and elements begin with unit variance.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from score_sde.errors import require
from score_sde.networks.convolution import convolve, convolve_reverse_only
from score_sde.networks.embeddings import check_names, input_features
from score_sde.networks.layers import (
    constant,
    dropout,
    dropout_states,
    host_draw,
    normal,
    statistics_dtype,
)
from score_sde.networks.resampling import mean_down, nearest_up

EPS = 1e-8  # added to mean squares: the paper adds 1e-4 to their roots
SILU_SIZE = 0.596  # sqrt(E[silu(z)^2]) of normal z (eq. 81)
RESIDUAL = 0.3  # t of the sum of a path and its residual (config G)
EQUAL = 0.5  # t of other sums, and of concatenations


def mp_silu(x: jax.Array) -> jax.Array:
    """silu(x) / 0.596: of unit size where x is normal (eq. 81)."""
    return jax.nn.silu(x) / SILU_SIZE


def mp_sum(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2): as large as a and b, if they are as large and
    uncorrelated (eq. 88)."""
    return ((1.0 - t) * a + t * b) / math.hypot(1.0 - t, t)


def mp_cat(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """a and b along their last axis; b has the share t^2 / ((1 - t)^2 + t^2) of the sum of squares,
    and the whole is as large as a and b (eq. 103)."""
    n, m = a.shape[-1], b.shape[-1]
    whole = math.sqrt(n + m) / math.hypot(1.0 - t, t)
    parts = [(whole * (1.0 - t) / math.sqrt(n)) * a, (whole * t / math.sqrt(m)) * b]
    return jnp.concatenate(parts, axis=-1)


def pixel_norm(x: jax.Array) -> jax.Array:
    """x over its root mean square along the last axis; the statistics in float32."""
    wide = x.astype(statistics_dtype(x.dtype))
    size = lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + EPS)
    return (wide * size).astype(x.dtype)


def unit_kernel(kernel: jax.Array) -> jax.Array:
    """A kernel (..., out) with norm 1 for each output (eq. 47)."""
    axes = tuple(range(kernel.ndim - 1))
    return kernel * lax.rsqrt(jnp.sum(jnp.square(kernel), axis=axes, keepdims=True) + EPS)


class MPDense(nnx.Module):
    """y = x W over the last axis, W (n, m) with columns of norm 1."""

    def __init__(self, n: int, m: int, *, dtype: np.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(normal(rngs, (n, m), 1.0))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., n) -> (..., m)."""
        return x.astype(self.dtype) @ unit_kernel(self.kernel[...]).astype(self.dtype)


class MPConv(nnx.Module):
    """A 3x3 convolution without bias, of kernels (3, 3, n, m) of norm 1 for each output."""

    def __init__(self, n: int, m: int, *, dtype: np.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(normal(rngs, (3, 3, n, m), 1.0))

    def __call__(self, x: jax.Array, reverse_only: bool) -> jax.Array:
        """(B, H, W, n) -> (B, H, W, m); `reverse_only` as for `convolution.Conv`."""
        kernel = unit_kernel(self.kernel[...]).astype(self.dtype)
        function = convolve_reverse_only if reverse_only else convolve
        return function(x.astype(self.dtype), kernel, 1, (1, 1))


class MPFourier(nnx.Module):
    """sqrt(2) cos(2 pi (f c + phase)), f normal and phases uniform, neither learned (eq. 75)."""

    def __init__(self, features: int, scale: float, *, rngs: nnx.Rngs):
        self.frequencies = nnx.Param(normal(rngs, (features,), scale))
        self.phases = nnx.Param(
            host_draw(rngs, (features,), lambda source: source.random(features, "f4"))
        )

    def __call__(self, noise: jax.Array) -> jax.Array:
        """(B,) -> (B, features)."""
        frequencies, phases = (
            lax.stop_gradient(part[...]).astype(noise.dtype).reshape(1, -1)
            for part in (self.frequencies, self.phases)
        )
        angles = noise.reshape(-1, 1) * frequencies + phases
        return math.sqrt(2.0) * jnp.cos((2.0 * math.pi) * angles)


@dataclass(frozen=True)
class EDM2Spec:
    """The settings of an `EDM2`; those of `UNetSpec` by the same names.

    Raises:
        ValueError: a value that is not allowed, by the setting's name; the checks stop at the
            first.
    """

    image_size: int | tuple[int, int]
    channels: int
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    head_width: int = 0
    num_heads: int = 1
    dropout: float = 0.1
    fourier_scale: float = 16.0
    num_classes: int = 0
    augmentation: int = 0
    input_frequencies: tuple[float, ...] = ()
    dtype: np.dtype[Any] = np.dtype("float32")  # noqa: RUF009  (immutable)

    def __post_init__(self) -> None:
        for name in ("multipliers", "attention_resolutions", "input_frequencies"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        halved = 2 ** (len(self.multipliers) - 1)
        widths = self.widths
        for name, ok, allowed in (
            ("channels", self.channels > 0, "positive integers"),
            ("width", self.width > 0 and self.width % 4 == 0, "positive multiples of 4"),
            ("num_blocks", self.num_blocks > 0, "positive integers"),
            ("dropout", 0 <= self.dropout < 1, "numbers from 0 to below 1"),
            (
                "multipliers",
                len(widths) > 0 and min(widths) > 0 and all(side % halved == 0 for side in sides),
                f"positive integers; image_size = {self.image_size} halves from level to level",
            ),
            (
                "attention_resolutions",
                set(self.attention_resolutions) <= set(self.sizes),
                f"the levels' image sizes {', '.join(map(str, self.sizes))}",
            ),
            (
                "head_width",
                not self.head_width or all(width % self.head_width == 0 for width in widths),
                "0 and divisors of all levels' widths",
            ),
            (
                "num_heads",
                self.num_heads > 0 and all(width % self.num_heads == 0 for width in widths),
                "divisors of all levels' widths",
            ),
        ):
            require(ok, name, getattr(self, name), allowed)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Image size of each level: its shorter side."""
        size = self.image_size
        shorter = min(size) if isinstance(size, tuple) else size
        return tuple(shorter // 2**level for level in range(len(self.multipliers)))


class Step(NamedTuple):
    """A block by its name, with the channels that it reads from below and from a skip connection,
    and those that it writes."""

    name: str
    inputs: int
    skip: int
    outputs: int
    resample: str = "none"
    attention: bool = False


def steps(spec: EDM2Spec) -> tuple[list[Step], list[Step]]:
    """The blocks of encoder and decoder in their order (the paper's figure 21)."""
    encoder, decoder = [], []
    now, skips = spec.width, [spec.width]
    levels = list(zip(range(len(spec.widths)), spec.sizes, spec.widths, strict=True))
    for level, size, width in levels:
        if level:
            encoder.append(Step(f"level{level}_down", now, 0, now, "down"))
            skips.append(now)
        for index in range(spec.num_blocks):
            attention = size in spec.attention_resolutions
            name = f"level{level}_block{index}"
            encoder.append(Step(name, now, 0, width, attention=attention))
            now = width
            skips.append(now)
    for level, size, width in reversed(levels):
        if level == len(levels) - 1:
            decoder.append(Step("middle0", now, 0, now, attention=True))
            decoder.append(Step("middle1", now, 0, now))
        else:
            decoder.append(Step(f"level{level}_up", now, 0, now, "up"))
        for index in range(spec.num_blocks + 1):
            attention = size in spec.attention_resolutions
            name = f"level{level}_block{index}"
            decoder.append(Step(name, now, skips.pop(), width, attention=attention))
            now = width
    return encoder, decoder


class EDM2(nnx.Module):
    """The network of EDM2, configuration G.

    Args:
        spec: the settings.
        rngs: its `params` stream draws the initial values.
    """

    Spec = EDM2Spec
    rank = 3  # axes of an item

    def __init__(self, spec: EDM2Spec, *, rngs: nnx.Rngs):
        self.spec = spec
        options: Any = {"dtype": spec.dtype, "rngs": rngs}
        wide = max(spec.widths)
        self.fourier = MPFourier(spec.width, spec.fourier_scale, rngs=rngs)
        self.noise = MPDense(spec.width, wide, **options)
        if spec.num_classes:
            self.labels = MPDense(spec.num_classes, wide, **options)
        if spec.augmentation:
            self.augmentation = MPDense(spec.augmentation, wide, **options)
        features = 2 * len(spec.input_frequencies) * spec.channels
        if features:
            self.gate = MPDense(wide, features, **options)
            self.gate_gain = constant((), 0.0)
        self.stem = MPConv(spec.channels + features + 1, spec.width, **options)
        encoder, decoder = steps(spec)
        self.encoder = nnx.Dict({s.name: Block(s, wide, spec, True, rngs=rngs) for s in encoder})
        self.decoder = nnx.Dict({s.name: Block(s, wide, spec, False, rngs=rngs) for s in decoder})
        self.output = MPConv(spec.width, spec.channels, **options)
        self.output_gain = constant((), 0.0)

    def __call__(
        self,
        x: jax.Array,
        noise: jax.Array,
        condition: Mapping[str, jax.Array] | None = None,
        *,
        dropout_key: jax.Array | None = None,
        reverse_only: bool = False,
    ) -> jax.Array:
        """Evaluates the network; arguments, result and errors as those of `UNet.__call__`.

        `x` (B, H, W, C) is of unit variance. The output is zero at the start.
        """
        dtype = statistics_dtype(self.spec.dtype)
        embedding = self._embedding(noise.astype(dtype), condition or {})
        encoder, decoder = steps(self.spec)
        count = len(encoder) + len(decoder)
        masks = iter(dropout_states(dropout_key, self.spec.dropout, count))
        h = self.stem(self._input(x.astype(dtype), embedding), reverse_only)
        skips = [h]
        for step in encoder:
            h = self.encoder[step.name](h, embedding, next(masks), reverse_only)
            skips.append(h)
        for step in decoder:
            if step.skip:
                h = mp_cat(h, skips.pop(), EQUAL)
            h = self.decoder[step.name](h, embedding, next(masks), reverse_only)
        gain = self.output_gain[...].astype(dtype)
        return gain * self.output(h, reverse_only).astype(dtype)

    def _embedding(self, noise: jax.Array, condition: Mapping[str, jax.Array]) -> jax.Array:
        """What every block gets of noise level, class and augmentation, activated: (B, wide)."""
        spec = self.spec
        known = {"labels": spec.num_classes, "augmentation": spec.augmentation}
        check_names(condition, [name for name, number in known.items() if number])
        embedding = self.noise(self.fourier(noise))
        if spec.num_classes:
            none = jnp.full(noise.shape, -1, jnp.int32)
            chosen = jax.nn.one_hot(condition.get("labels", none), spec.num_classes)
            label = self.labels(math.sqrt(spec.num_classes) * chosen)
            embedding = mp_sum(embedding, label, EQUAL)
        if "augmentation" in condition:
            embedding = embedding + self.augmentation(condition["augmentation"])
        return mp_silu(embedding)

    def _input(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """What the stem reads: x, its gated Fourier features, and ones in place of biases."""
        parts = [x]
        if self.spec.input_frequencies:
            gain = self.gate_gain[...].astype(x.dtype)
            gate = 2.0 * jax.nn.sigmoid(gain * self.gate(embedding).astype(x.dtype))
            features = math.sqrt(2.0) * input_features(x, self.spec.input_frequencies)
            parts.append(gate.reshape(len(x), 1, 1, -1) * features)
        return jnp.concatenate([*parts, jnp.ones_like(x[..., :1])], axis=-1)


class Block(nnx.Module):
    """A block of encoder or decoder (the paper's figure 21).

    The encoder's begins with a 1x1 map, if the channels change, and normalizes each pixel. Its
    residual and its shortcut begin there. The decoder's maps the shortcut alone.
    """

    def __init__(self, step: Step, wide: int, spec: EDM2Spec, encodes: bool, *, rngs: nnx.Rngs):
        self.spec, self.encodes, self.resample = spec, encodes, step.resample
        options: Any = {"dtype": spec.dtype, "rngs": rngs}
        n, m = step.inputs + step.skip, step.outputs
        self.shortcut = MPDense(n, m, **options) if n != m else None
        self.conv0 = MPConv(m if encodes else n, m, **options)
        self.embedding = MPDense(wide, m, **options)
        self.gain = constant((), 0.0)
        self.conv1 = MPConv(m, m, **options)
        self.attention = CosineAttention(m, spec, rngs=rngs) if step.attention else None

    def __call__(
        self, x: jax.Array, embedding: jax.Array, mask: jax.Array | None, reverse_only: bool
    ) -> jax.Array:
        """Evaluates the block.

        Args:
            x: (B, H, W, n).
            embedding: activated, (B, wide).
            mask: state that the dropout mask is drawn from; None drops nothing.
            reverse_only: see `MPConv`.

        Returns:
            (B, H', W', m) with H' = H, 2 H or H / 2.
        """
        if self.resample != "none":
            x = nearest_up(x) if self.resample == "up" else mean_down(x)
        mapped = x if self.shortcut is None else self.shortcut(x)
        if self.encodes:
            x = mapped = pixel_norm(mapped)
        h = self.conv0(mp_silu(x), reverse_only)
        scale = 1.0 + self.gain[...].astype(h.dtype) * self.embedding(embedding)
        h = mp_silu(h * scale.reshape(len(h), 1, 1, -1))
        if mask is not None:
            h = dropout(mask, h, self.spec.dropout)
        h = mp_sum(mapped, self.conv1(h, reverse_only), RESIDUAL)
        return h if self.attention is None else self.attention(h)


class CosineAttention(nnx.Module):
    """Self-attention over all pixels whose queries, keys and values are normalized for each head
    (the paper's section 2.3): logits are sqrt(d) times cosines, of heads with d channels."""

    def __init__(self, channels: int, spec: EDM2Spec, *, rngs: nnx.Rngs):
        options: Any = {"dtype": spec.dtype, "rngs": rngs}
        self.each = spec.head_width or channels // spec.num_heads
        self.project = MPDense(channels, 3 * channels, **options)
        self.output = MPDense(channels, channels, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        shape = (batch, height * width, 3, channels // self.each, self.each)
        qkv = pixel_norm(self.project(x).reshape(shape))
        q, k, v = (part.squeeze(2) for part in jnp.split(qkv, 3, axis=2))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(self.each)
        weights = jax.nn.softmax(logits.astype(statistics_dtype(x.dtype)), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
        return mp_sum(x, self.output(mixed.reshape(x.shape)), RESIDUAL)
