"""How large the loss is at each noise level, learned with the network (Karras et al. 2024,
arXiv:2312.02696, after Kendall et al. 2018, arXiv:1705.07115).

A loss L at noise level t becomes L e^-u(t) + u(t). It is least where u(t) = log E[L | t]. So all
noise levels come to count alike for the network, whatever the loss's weight at t.

u is linear in Fourier features of the log-SNR: cosines whose half waves divide its range.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

NAME = "uncertainty"  # among the constants beside the network
NUM_FEATURES = 32  # the shortest wave is 2.6 of log-SNR
RANGE = 20.0  # log-SNRs from -20 to 20. Outside u is that of the end: alpha may be 0


def initial() -> dict[str, Any]:
    """The weights by their name, for u = 0: the loss is L."""
    return {NAME: np.zeros(NUM_FEATURES, np.float32)}


def log_size(weights: Array, log_snr: Array) -> Array:
    """u at log-SNRs (B,), of weights (NUM_FEATURES,): (B,)."""
    place = 0.5 + jnp.clip(log_snr, -RANGE, RANGE) / (2.0 * RANGE)
    waves = jnp.pi * jnp.arange(NUM_FEATURES, dtype=place.dtype)
    features = jnp.cos(waves[None] * place[:, None])
    return jnp.dot(features, weights.astype(place.dtype), precision="highest")


def weighted(loss: Array, u: Array) -> Array:
    """L e^-u + u, (B,)."""
    return loss * jnp.exp(-u) + u
