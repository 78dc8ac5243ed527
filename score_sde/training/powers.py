"""Averages of the weights by a power function, and combinations of them (Karras et al. 2024,
arXiv:2312.02696, section 3 and appendix C).

After t updates such an average weighs the parameters after tau of them by its profile p(tau) =
(gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]. Its length is the standard deviation of the profile
over t. From averages of two lengths, kept at several t, follow those of others: the combination
whose profile is nearest by least squares.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PyTree = Any

LENGTHS = (0.05, 0.10)  # those of the paper
LONGEST = 0.28  # gamma is next to 0: the mean of all parameters
MISFIT = 0.1  # of a combination's profile, at most: the norm of its error over the profile's


def exponent(length: float) -> float:
    """gamma of a profile, whose length is sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))."""
    over = length**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - over, 12.0 - over]).real.max())


GAMMAS = tuple(map(exponent, LENGTHS))


def averaged(powers: Sequence[PyTree], params: PyTree, num_updates: Array) -> tuple[PyTree, ...]:
    """One step of the averages of `LENGTHS`, mean + weight (params - mean) with weight = 1 - (1 -
    1 / t)^(gamma + 1).

    Args:
        powers: the averages so far, float32 leaves; any before the first update.
        params: the parameters after the update, a tree of the same shapes.
        num_updates: t, int32 scalar, updates made so far, this one included.
    """
    before = jnp.log1p(-1.0 / num_updates.astype(jnp.float32))

    def follow(power: PyTree, gamma: float) -> PyTree:
        weight = -jnp.expm1((gamma + 1.0) * before)
        return jax.tree.map(lambda mean, value: mean + weight * (value - mean), power, params)

    return tuple(follow(*each) for each in zip(powers, GAMMAS, strict=True))


def inner(t: Any, gamma: Any, s: Any, delta: Any) -> np.ndarray:
    """The integral of the product of two profiles, that of gamma after t updates and that of delta
    after s: float64, numbers or arrays that broadcast."""
    t, gamma, s, delta = np.broadcast_arrays(*(np.asarray(v, float) for v in (t, gamma, s, delta)))
    last, of_last = np.maximum(t, s), np.where(t <= s, delta, gamma)
    ratio = (np.minimum(t, s) / last) ** of_last
    found: np.ndarray = (gamma + 1.0) * (delta + 1.0) / (gamma + delta + 1.0) * ratio / last
    return found


def combination(written: Sequence[int], length: float) -> tuple[np.ndarray, float]:
    """The weights of averages for one of another length after the last of their steps.

    Args:
        written: the steps after which the averages of both `LENGTHS` were written, rising.
        length: of the average wanted, above 0 and up to `LONGEST`.

    Returns:
        float64 (2 len(written),), those of a step one after the other, whose sum is 1; and the
        misfit of the profile: the norm of its error over its own.
    """
    t = np.repeat(np.asarray(written, float), len(LENGTHS)) / written[-1]
    gamma = np.tile(GAMMAS, len(written))
    products = inner(t[:, None], gamma[:, None], t[None], gamma[None])
    wanted = inner(t, gamma, 1.0, exponent(length))
    weights = np.linalg.solve(products, wanted)
    weights /= weights.sum()
    own = float(inner(1.0, exponent(length), 1.0, exponent(length)))
    error = own - 2.0 * float(weights @ wanted) + float(weights @ products @ weights)
    return weights, (max(error, 0.0) / own) ** 0.5
