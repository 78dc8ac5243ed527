"""What all samplers share: their result, their noise and where they start.

Every image has a key of its own, folded from the caller's key and the image's index, so the images
do not depend on how many are drawn at a time.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.sde import SDE


class Samples(NamedTuple):
    """What a sampler returns.

    Attributes:
        x: (B, *shape) at t_min, or denoised where the sampler's settings say so.
        nfe: evaluations of the score for each sample, all counted: (B,) int32.
        trajectory: states from the first to the last, (times, B, *shape); None unless requested.
    """

    x: Array
    nfe: Array
    trajectory: Array | None = None


def image_keys(key: Array, num: int, first: int | Array = 0) -> Array:
    """A key for each of the images first ... first + num - 1, (num,)."""
    return jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(num))


def normal(keys: Array, step: Array | int, shape: tuple[int, ...]) -> Array:
    """Standard normal noise (B, *shape) of one step, from each image's key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)


def start(keys: Array, sde: SDE, x_init: Array | None, shape: tuple[int, ...]) -> Array:
    """The state at T, (B, *shape): given, or drawn from the prior."""
    if x_init is not None:
        return x_init
    return sde.prior_std() * normal(keys, 0, shape[1:])


def batch_shape(x_init: Array | None, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of the batch, from whichever of the two the caller gave.

    Raises:
        ValueError: if neither is given, or both and they differ.
    """
    if x_init is None:
        if shape is None:
            raise ValueError("give x_init or shape=(B, *shape)")
        return tuple(shape)
    if shape is not None and tuple(x_init.shape) != tuple(shape):
        raise ValueError(f"x_init has shape {x_init.shape}, but shape = {tuple(shape)}")
    return tuple(x_init.shape)


def require_positive(**settings: float) -> None:
    """Raise ValueError, naming the setting, for one that is not above 0."""
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name} = {value!r}: allowed are numbers above 0")
