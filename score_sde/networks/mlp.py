"""A residual network for vectors, with the arguments and the conditions of the U-Net."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from score_sde.errors import require
from score_sde.networks.embeddings import LabelEmbedding, NoiseEmbedding, check_names
from score_sde.networks.layers import (
    ACTIVATIONS,
    Dense,
    constant,
    dropout,
    dropout_states,
    spread,
    statistics_dtype,
)
from score_sde.networks.spec import CHOICES

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class MLPSpec:
    """The settings of an `MLP`.

    Attributes:
        features: columns of the vectors, D.
        width: features of the hidden layers, a multiple of 4 of at least 16.
        depth: number of residual blocks.
        dropout: probability of dropping an activation inside a residual block while training.
        activation: a key of `layers.ACTIVATIONS`.
        embedding: of the noise level, "positional", "vaswani" or "fourier"; see `NoiseEmbedding`.
        fourier_scale: standard deviation of the Fourier frequencies.
        num_classes: number of class labels; 0 for a network without labels.
        condition_features: columns of the vector that the network is given, k; 0 for none.
        logits: classes that a classifier tells apart; 0 for a network of vectors.
        learned_variance: the output has twice the columns (`score.Model`).
        dtype: of the computation. Parameters and the statistics of the normalization are float32.

    Raises:
        ValueError: a number out of its range, or an unknown word.
    """

    features: int
    width: int = 128
    depth: int = 3
    dropout: float = 0.1
    activation: str = "swish"
    embedding: str = "positional"
    fourier_scale: float = 16.0
    num_classes: int = 0
    condition_features: int = 0
    logits: int = 0
    learned_variance: bool = False
    dtype: np.dtype = _FLOAT32

    def __post_init__(self) -> None:
        for name, ok, allowed in (
            ("features", self.features > 0, "positive integers"),
            ("depth", self.depth > 0, "positive integers"),
            ("width", self.width >= 16 and self.width % 4 == 0, "multiples of 4 of at least 16"),
            ("dropout", 0 <= self.dropout < 1, "numbers from 0 to below 1"),
            ("embedding", self.embedding in CHOICES["embedding"], ", ".join(CHOICES["embedding"])),
            ("activation", self.activation in ACTIVATIONS, ", ".join(ACTIVATIONS)),
            ("condition_features", self.condition_features >= 0, "integers of at least 0"),
        ):
            require(ok, name, getattr(self, name), allowed)

    @property
    def without_effect(self) -> set[str]:
        """The settings that have no effect, given the others."""
        return set() if self.embedding == "fourier" else {"fourier_scale"}


class MLP(nnx.Module):
    """A residual network for vectors (B, D): a dense stem, residual blocks, a dense head.

    The embedding is the sum of what the noise level, the label and the condition vector give. Each
    block takes scale and shift of its normalized input from it (Perez et al. 2018,
    arXiv:1709.07871; Peebles, Xie 2023, arXiv:2212.09748, without their gate). At the start each
    block is the identity and the output is zero.

    Args:
        spec: the settings.
        rngs: its `params` stream draws the initial values.
    """

    Spec = MLPSpec
    rank = 1  # axes of an item

    def __init__(self, spec: MLPSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        width, dtype = spec.width, spec.dtype
        # Of four times as many features as its argument says.
        self.noise = NoiseEmbedding(width // 4, spec, rngs=rngs)
        if spec.num_classes:
            self.labels = LabelEmbedding(spec.num_classes, width, rngs=rngs)
        if spec.condition_features:
            self.vector = Dense(spec.condition_features, width, dtype=dtype, rngs=rngs)
        self.stem = Dense(spec.features, width, dtype=dtype, rngs=rngs)
        blocks = {f"block{index}": _Block(spec, rngs=rngs) for index in range(spec.depth)}
        self.blocks = nnx.Dict(blocks)
        self.head_norm = _LayerNorm(width, dtype=dtype)
        outputs = spec.logits or spec.features * (2 if spec.learned_variance else 1)
        self.head = Dense(width, outputs, scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        noise: jax.Array,
        condition: Mapping[str, jax.Array] | None = None,
        *,
        dropout_key: jax.Array | None = None,
        reverse_only: bool = False,
    ) -> jax.Array:
        """Evaluates the network.

        Args:
            x: vectors (B, D), float32.
            noise: what says the noise level (B,), float32: 999 t or a log SNR.
            condition: `labels` (B,) int32 and `vector` (B, k) float32, of the network's kinds. A
                label outside 0 ... num_classes - 1, such as -1, is a sample without label, and a
                missing key a batch without.
            dropout_key: key of the dropout masks; None for no dropout.
            reverse_only: without effect, as all of the network has both modes.

        Returns:
            (B, D), with `learned_variance` (B, 2 D), or a classifier's (B, logits), float32
            (float64 if that is the dtype of the computation).

        Raises:
            ValueError: a condition that the network is not made for.
        """
        wide = statistics_dtype(self.spec.dtype)
        act = ACTIVATIONS[self.spec.activation]
        embedding = act(self._embed(noise, condition or {}))
        masks = dropout_states(dropout_key, self.spec.dropout, self.spec.depth)
        h = self.stem(x)
        for index, mask in enumerate(masks):
            h = self.blocks[f"block{index}"](h, embedding, mask)
        return self.head(act(self.head_norm(h))).astype(wide)

    def _embed(self, noise: jax.Array, condition: Mapping[str, jax.Array]) -> jax.Array:
        """Noise (B,) and conditions to (B, width)."""
        kinds = ["labels"] if self.spec.num_classes else []
        kinds += ["vector"] if self.spec.condition_features else []
        check_names(condition, kinds)
        embedding = self.noise(noise)
        if "labels" in condition:
            embedding = embedding + self.labels(condition["labels"]).astype(embedding.dtype)
        if "vector" in condition:
            embedding = embedding + self.vector(condition["vector"])
        return embedding


class _Block(nnx.Module):
    """h + W1 act(W0 act((1 + scale) norm(h) + shift)), scale and shift from the embedding."""

    def __init__(self, spec: MLPSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        width, dtype = spec.width, spec.dtype
        self.norm = _LayerNorm(width, dtype=dtype)
        self.modulation = Dense(width, 2 * width, dtype=dtype, rngs=rngs)
        self.dense0 = Dense(width, width, dtype=dtype, rngs=rngs)
        self.dense1 = Dense(width, width, scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(self, h: jax.Array, embedding: jax.Array, mask: jax.Array | None) -> jax.Array:
        act = ACTIVATIONS[self.spec.activation]
        scale, shift = jnp.split(self.modulation(embedding), 2, axis=-1)
        y = self.dense0(act((1.0 + scale) * self.norm(h) + shift))
        y = act(y) if mask is None else dropout(mask, act(y), self.spec.dropout)
        return h + self.dense1(y)


class _LayerNorm(nnx.Module):
    """Normalization over the features with eps 1e-6, statistics in float32 and in two passes."""

    def __init__(self, width: int, *, dtype: np.dtype):
        self.dtype = dtype
        self.scale = constant((width,), 1.0)
        self.bias = constant((width,), 0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, width) -> (B, width)."""
        x = x.astype(statistics_dtype(self.dtype))
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(variance + 1e-6) * spread(self.scale[...].astype(x.dtype), 2)
        return (centered * scale + spread(self.bias[...].astype(x.dtype), 2)).astype(self.dtype)
