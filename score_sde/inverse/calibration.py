"""Whether the spread of draws is right: how often the truth lies within their intervals."""

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betainc

from score_sde.errors import require


def coverage(draws: Array, truth: Array, share: float) -> Array:
    """The part of each item's numbers that lie within an interval of the draws' mean and deviation.

    The interval is Student's, for a further draw of a Gaussian: mean +- q s sqrt(1 + 1/n) with n
    draws of standard deviation s. So right draws of Gaussian posteriors have ``share``, however few
    they are.

    Args:
        draws: (B, n, *shape), n of at least 2.
        truth: (B, *shape).
        share: of the interval, such as 0.9.

    Returns:
        (B,), between 0 and 1.

    Raises:
        ValueError: fewer than two draws.
    """
    number = draws.shape[1]
    require(number > 1, "draws", number, "at least 2 for each item")
    error = jnp.square(truth - jnp.mean(draws, axis=1))
    variance = jnp.var(draws, axis=1, ddof=1) * (1.0 + 1.0 / number)
    freedom = number - 1.0
    # Of a t that is |error| / deviation: the probability of a smaller one.
    tail = freedom * variance / jnp.where(error > 0, freedom * variance + error, 1.0)
    inside = 1.0 - betainc(0.5 * freedom, 0.5, jnp.where(error > 0, tail, 1.0)) <= share
    return jnp.mean(inside, axis=range(1, truth.ndim))
