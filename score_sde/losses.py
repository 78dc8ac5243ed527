"""Denoising score matching, in continuous time (Song et al. 2021, eq. 7) and on discrete levels.

For x_t = alpha x0 + sigma z the error of the score is read off the noise: e = sigma score(x_t, t) +
z. Two weightings of |e|^2 over t in [t_min, T] matter:

    paper:       weight 1, t uniform: lambda(t) = sigma^2 in eq. 7;
    likelihood:  weight g^2 / sigma^2, which bounds -log p (Song et al. 2021b, arXiv:2101.09258,
                 theorem 1). It is -(log SNR)', so drawing t uniformly in log-SNR makes the weight
                 a constant (importance sampling, ibid.; Kingma et al. 2021,
                 arXiv:2107.00630, section 5).

A ``mixture`` draws the times of a batch alternately by the one and by the other, with weight 1 for
both. The paper's weighting makes good samples, the likelihood's good bits/dim.

On the levels of a discrete chain the same |e|^2 with weight 1 is the published loss. It is usually
written as

    DDPM:  |network - z|^2                            (Ho et al. 2020, arXiv:2006.11239, eq. 14)
    SMLD:  sigma^2 |score + (x - x0) / sigma^2|^2     (Song, Ermon 2019, arXiv:1907.05600, eq. 6).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.discrete import Chain
from score_sde.sde import SDE, ScoreFn, expand
from score_sde.spaces import item_keys

WEIGHTINGS = ("paper", "likelihood", "mixture")


def low_discrepancy(key: Array, num: int) -> Array:
    """Numbers float32 (num,), each uniform in [0, 1), together evenly spread (Kingma et al. 2021,
    I.1)."""
    places = jnp.arange(num, dtype=jnp.float32) / num
    return jnp.mod(jax.random.uniform(key, dtype=jnp.float32) + places, 1.0)


def sample_times(
    key: Array, sde: SDE, num: int, weighting: str, t_min: float, dtype: Any = jnp.float32
) -> tuple[Array, Array]:
    """Times and weights for a batch.

    Args:
        key: a jax key.
        sde: the process.
        num: batch size.
        weighting: one of ``WEIGHTINGS``.
        t_min: the smallest time.
        dtype: of the times and weights. The draws have 24 bits in any: the same numbers.

    Returns:
        t (num,) in [t_min, T] and the weight (num,) of |e|^2 for each.
    """
    u = low_discrepancy(key, num).astype(dtype)
    uniform = t_min + u * (sde.T - t_min)
    top, bottom = (sde.log_snr(jnp.full((1,), t, u.dtype)) for t in (t_min, sde.T))
    by_snr = jnp.clip(sde.inverse_log_snr(top + u * (bottom - top)), t_min, sde.T)
    if weighting == "paper":
        return uniform, jnp.ones_like(u)
    if weighting == "likelihood":
        return by_snr, jnp.full_like(u, (top - bottom)[0] / (sde.T - t_min))
    if weighting == "mixture":
        return jnp.where(jnp.arange(num) % 2 == 0, uniform, by_snr), jnp.ones_like(u)
    raise ValueError(f"weighting = {weighting!r}: allowed are {', '.join(WEIGHTINGS)}")


def weighted_error(
    sde: SDE, score: ScoreFn, x0: Array, t: Array, z: Array, weight: Array, reduce_mean: bool = True
) -> Array:
    """weight |sigma score(alpha x0 + sigma z, t) + z|^2 for each example, (B,).

    Args:
        sde: the process.
        score: the score function.
        x0: data (B, *shape); t: times (B,); z: standard normal noise (B, *shape); weight: (B,).
        reduce_mean: the mean over an example's dimensions; else half their sum, as the original's
            VE configurations.
    """
    mean, std = sde.marginal(x0, t)
    error = expand(std, z) * score(mean + expand(std, z) * z, t) + z
    return weight * _squared(error, reduce_mean)


def error_by_time(
    key: Array, sde: SDE, score: ScoreFn, x0: Array, t: Array, first: Array | int = 0
) -> Array:
    """|sigma score(alpha x0 + sigma z, t) + z|^2, the mean over an example's dimensions, of each
    example at each time, (B, K): the error of the predicted noise.

    Args:
        key: a jax key. An example's noise depends on its index and the time's, not on its batch.
        sde: the process.
        score: the score function.
        x0: data (B, *shape).
        t: times (K,).
        first: index of the first example.
    """

    ones = jnp.ones(len(x0), x0.dtype)

    def error(t: Array, z: Array) -> Array:
        return weighted_error(sde, score, x0, t, z, ones)

    return _at_each_time(key, x0, t, first, error)


def correct_by_time(
    key: Array,
    sde: SDE,
    logits: Callable[..., Array],
    x0: Array,
    labels: Array,
    t: Array,
    first: Array | int = 0,
) -> Array:
    """1 where a classifier's largest logit at x_t is that of the label, else 0, of each example at
    each time, (B, K). Arguments as of `error_by_time` and `cross_entropy`."""

    def correct(t: Array, z: Array) -> Array:
        mean, std = sde.marginal(x0, t)
        found = jnp.argmax(logits(mean + expand(std, z) * z, t), axis=-1)
        return (found == labels).astype(x0.dtype)

    return _at_each_time(key, x0, t, first, correct)


def _at_each_time(
    key: Array, x0: Array, t: Array, first: Array | int, value: Callable[[Array, Array], Array]
) -> Array:
    """``value(t (B,), z (B, *shape))`` of each example at each time, (B, K)."""

    def at(number: Array) -> Array:
        keys = item_keys(jax.random.fold_in(key, number), len(x0), first)
        z = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:], x0.dtype))(keys)
        return value(t[number] * jnp.ones(len(x0), x0.dtype), z)

    return jax.lax.map(at, jnp.arange(len(t))).T


def level_error(
    chain: Chain, score: ScoreFn, x0: Array, level: Array, z: Array, *, reduce_mean: bool = True
) -> Array:
    """|sigma score(alpha x0 + sigma z, level) + z|^2 for each example, (B,): the loss of DDPM and
    SMLD.

    Args:
        chain: the levels' alpha and sigma.
        score: the score function, which takes levels in the place of times.
        x0: data (B, *shape); level: int32 (B,); z: standard normal noise (B, *shape).
        reduce_mean: the mean over an example's dimensions; else half their sum.
    """
    alpha, sigma = (expand(table[level].astype(x0.dtype), x0) for table in chain)
    return _squared(sigma * score(alpha * x0 + sigma * z, level) + z, reduce_mean)


def _squared(error: Array, reduce_mean: bool) -> Array:
    squared = jnp.square(error).reshape(len(error), -1)
    return jnp.mean(squared, axis=-1) if reduce_mean else 0.5 * jnp.sum(squared, axis=-1)


def denoising_score_matching(
    key: Array,
    sde: SDE,
    score: ScoreFn,
    x0: Array,
    *,
    weighting: str = "paper",
    t_min: float = 1e-5,
    reduce_mean: bool = True,
) -> Array:
    """A Monte Carlo estimate of the loss for each example of a batch, (B,), by one time and one
    noise.

    Args:
        key: a jax key for times and noise.
        sde: the process.
        score: the score function, (x (B, *shape), t (B,)) -> (B, *shape).
        x0: data (B, *shape), float32 in the model's range.
        weighting: ``paper``, ``likelihood`` or ``mixture``.
        t_min: the smallest time (1e-5 in the paper).
        reduce_mean: the mean over an example's dimensions; else half their sum.
    """
    key_t, key_z = jax.random.split(key)
    t, weight = sample_times(key_t, sde, len(x0), weighting, t_min, x0.dtype)
    z = jax.random.normal(key_z, x0.shape, x0.dtype)
    return weighted_error(sde, score, x0, t, z, weight, reduce_mean=reduce_mean)


def cross_entropy(
    key: Array,
    sde: SDE,
    logits: Callable[..., Array],
    x0: Array,
    labels: Array,
    *,
    t_min: float = 1e-5,
) -> Array:
    """-log p(label | x_t) of a classifier for each example, (B,), at one uniform time and one noise
    (Dhariwal, Nichol 2021, section 4).

    Args:
        key: a jax key for times and noise.
        sde: the process.
        logits: the classifier, (x (B, *shape), t (B,)) -> (B, K).
        x0: data (B, *shape), float32 in the model's range.
        labels: int32 (B,).
        t_min: the smallest time.
    """
    key_t, key_z = jax.random.split(key)
    t, _ = sample_times(key_t, sde, len(x0), "paper", t_min, x0.dtype)
    mean, std = sde.marginal(x0, t)
    z = jax.random.normal(key_z, x0.shape, x0.dtype)
    log_prob = jax.nn.log_softmax(logits(mean + expand(std, z) * z, t), axis=-1)
    return -jnp.take_along_axis(log_prob, labels[:, None], axis=1)[:, 0]


def discrete_score_matching(
    key: Array, chain: Chain, score: ScoreFn, x0: Array, *, reduce_mean: bool = True
) -> Array:
    """A Monte Carlo estimate of `level_error` for each example of a batch, (B,): one level, drawn
    uniformly, and one noise for each.

    Args:
        key: a jax key for levels and noise.
        chain: the levels' alpha and sigma.
        score: the score function, (x (B, *shape), level int32 (B,)) -> (B, *shape).
        x0: data (B, *shape), float32 in the model's range.
        reduce_mean: the mean over an example's dimensions; else half their sum.
    """
    key_level, key_z = jax.random.split(key)
    num_levels = len(chain.sigma)
    # Evenly spread, like the continuous times. u < 1, and its product with N may round up to N.
    level = (low_discrepancy(key_level, len(x0)) * num_levels).astype(jnp.int32)
    level = jnp.minimum(level, num_levels - 1)
    z = jax.random.normal(key_z, x0.shape, x0.dtype)
    return level_error(chain, score, x0, level, z, reduce_mean=reduce_mean)
