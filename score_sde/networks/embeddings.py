"""Embeddings of the noise level and the class, and Fourier features of the input."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from score_sde.networks.layers import (
    ACTIVATIONS,
    Dense,
    normal,
    statistics_dtype,
    variance_scaling,
)


def check_names(condition: Mapping[str, jax.Array], allowed: Collection[str]) -> None:
    """Raises ValueError at the first condition that the network does not take."""
    for name in condition:
        if name not in allowed:
            names = ", ".join(allowed) or "none with this network"
            raise ValueError(f"condition {name!r}: allowed are {names}")


class NoiseEmbedding(nnx.Module):
    """Sines and cosines of the noise level, then Dense, activation, Dense.

    Args:
        width: number of features; the embedding has four times as many.
        spec: the network's, with `embedding`: "positional" or "vaswani" (`positional_features`) or
            "fourier" (Tancik et al. 2020), `fourier_scale`, `activation` and `dtype`.
    """

    def __init__(self, width: int, spec: Any, *, rngs: nnx.Rngs):
        self.width, self.kind, self.dtype = width, spec.embedding, spec.dtype
        self.activation = spec.activation
        if self.kind == "fourier":
            # A parameter, so that it is saved with the others, but one without gradient.
            self.frequencies = nnx.Param(normal(rngs, (width,), spec.fourier_scale))
        features = 2 * width if self.kind == "fourier" else width
        self.dense0 = Dense(features, 4 * width, dtype=spec.dtype, rngs=rngs)
        self.dense1 = Dense(4 * width, 4 * width, dtype=spec.dtype, rngs=rngs)

    def __call__(self, noise: jax.Array) -> jax.Array:
        """(B,) -> (B, 4 width)."""
        # Not in bfloat16: the arguments reach several hundred radians.
        noise = noise.astype(statistics_dtype(self.dtype)).reshape(-1, 1)
        if self.kind != "fourier":
            features = positional_features(noise, self.width, to_the_end=self.kind == "positional")
        else:
            frequencies = lax.stop_gradient(self.frequencies[...]).astype(noise.dtype)
            angles = (2.0 * math.pi) * noise * frequencies.reshape(1, -1)
            features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return self.dense1(ACTIVATIONS[self.activation](self.dense0(features)))


class LabelEmbedding(nnx.Module):
    """A learned vector for each class; zeros for a label outside the classes."""

    def __init__(self, num_classes: int, features: int, *, rngs: nnx.Rngs):
        self.num_classes = num_classes
        self.table = nnx.Param(variance_scaling(rngs, (num_classes, features), 1.0))

    def __call__(self, labels: jax.Array) -> jax.Array:
        """(B,) int32 -> (B, features)."""
        return jax.nn.one_hot(labels, self.num_classes, dtype=jnp.float32) @ self.table[...]


class VectorEmbedding(nnx.Module):
    """A linear map without a constant: zeros are the same as nothing."""

    def __init__(self, n: int, features: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(variance_scaling(rngs, (n, features), 1.0))

    def __call__(self, vector: jax.Array) -> jax.Array:
        """(B, n) -> (B, features)."""
        return vector @ self.table[...]


def positional_features(noise: jax.Array, width: int, *, to_the_end: bool = True) -> jax.Array:
    """[sin(c f_i), cos(c f_i)] with f_i = 10000^(-i / (width // 2 - 1)), i = 0 ... width // 2 - 1.

    The divisor is width // 2 - 1, not width // 2 as in Vaswani et al. (2017): the published
    networks have it so. An odd width gets a zero at the end.

    Args:
        noise: c, (B, 1).
        width: number of features.
        to_the_end: the last frequency is 1e-4. False: the divisor is width // 2.

    Returns:
        (B, width).
    """
    half = width // 2
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / (half - to_the_end))
    angles = noise * jnp.asarray(frequencies.reshape(1, -1), noise.dtype)
    features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(features, ((0, 0), (0, width % 2)))


def input_features(x: jax.Array, frequencies: Sequence[float]) -> jax.Array:
    """sin(f pi x) and cos(f pi x) for every f (Kingma et al. 2021, section 3.4, appendix C).

    (B, H, W, C) -> (B, H, W, 2 F C), for F frequencies.
    """
    angles = jnp.concatenate([(f * math.pi) * x for f in frequencies], axis=-1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
