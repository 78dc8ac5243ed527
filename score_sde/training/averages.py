"""Exponential moving average of the parameters, with a decay that warms up."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any


def warmed_up_decay(rate: float, num_updates: Array) -> Array:
    """min(rate, (1 + n) / (10 + n)) for n updates, this one included; float32 scalar.

    With a constant rate the average of a young run is mostly its initial noise: at 0.9999 the
    first parameters still weigh 0.37 after 10,000 updates. This is the paper's PyTorch rule; its
    JAX version keeps the rate constant.
    """
    n = num_updates.astype(jnp.float32)
    return jnp.minimum(rate, (1.0 + n) / (10.0 + n))


def update(ema: PyTree, params: PyTree, rate: float, num_updates: Array) -> PyTree:
    """One step of the average, ema + (1 - decay) (params - ema).

    Args:
        ema: the average so far, float32 leaves.
        params: the parameters after the update, a tree of the same shapes.
        rate: the decay in the long run, in [0, 1); 0 gives the parameters themselves.
        num_updates: int32 scalar, updates made so far, this one included.
    """
    weight = 1.0 - warmed_up_decay(rate, num_updates)
    return jax.tree.map(lambda mean, value: mean + weight * (value - mean), ema, params)
