"""Training of the variances of a chain's reverse steps (Nichol, Dhariwal 2021, Improved DDPM,
arXiv:2102.09672), which the network says (`score.Model`).

-log p(x0) is at most L_vlb = L_0 + ... + L_{N-1} and the prior's term, which no parameter changes.
L_0 is the decoder's, and L_k the KL divergence of the step from level k (`score_sde.bounds`). For
each example one level is drawn, so that L_k over its probability estimates L_vlb. The losses are

    hybrid   |sigma score + z|^2 + 0.001 L_vlb     ibid., eq. 16
    vlb      L_vlb                                 ibid., section 3.3

with L_vlb in bits per dimension, as in the published code. `hybrid` draws the levels uniformly. In
its L_vlb the score is held fixed, so that the variances alone descend it. `vlb` draws the levels by
the last losses of each.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.bounds import decoder_loss, decoder_std, step_kl
from score_sde.discrete import discretization, levels_of
from score_sde.score import Model
from score_sde.sde import expand
from score_sde.spaces import Space
from score_sde.times import low_discrepancy

VLB_WEIGHT = 0.001
KEPT = 10  # losses of each level
UNIFORM = 0.001  # share of the levels that is drawn uniformly, as in the published code


class History(NamedTuple):
    """The last losses of each level, from that of the least noise on.

    Attributes:
        losses: L_k, bits/dim, float32 (N, KEPT), the newest in the place of the oldest.
        seen: how many there have been, int32 (N,).
    """

    losses: Array
    seen: Array


def no_history(num_levels: int) -> History:
    """That of N levels before the first loss."""
    return History(jnp.zeros((num_levels, KEPT)), jnp.zeros(num_levels, jnp.int32))


def probabilities(history: History) -> Array:
    """The probability of each level, (N,): in proportion to the root of the mean square of its last
    losses, by which an estimate of L_vlb scatters the least (ibid., eq. 18). Uniform until each
    level has ``KEPT`` losses."""
    number = len(history.seen)
    size = jnp.sqrt(jnp.mean(jnp.square(history.losses), axis=1))
    share = size / jnp.maximum(jnp.sum(size), jnp.finfo(size.dtype).tiny)
    by_losses = (1.0 - UNIFORM) * share + UNIFORM / number
    return jnp.where(jnp.all(history.seen >= KEPT), by_losses, 1.0 / number)


def recorded(history: History, k: Array, losses: Array) -> History:
    """The history with the losses (B,) of levels k int32 (B,), of which some may be equal."""
    same = k[:, None] == k[None]
    earlier = jnp.sum(jnp.tril(same, -1), axis=1, dtype=k.dtype)
    later = jnp.sum(jnp.triu(same, 1), axis=1)
    # Of more than KEPT losses of a level the last stay: a row beyond the table is left out.
    row = jnp.where(later < KEPT, k, len(history.seen))
    place = (history.seen[k] + earlier) % KEPT
    kept = history.losses.at[row, place].set(losses, mode="drop")
    return History(kept, history.seen.at[k].add(1))


def drawn(key: Array, num: int, probability: Array) -> Array:
    """Levels int32 (num,) of these probabilities (N,), together evenly spread."""
    edges = jnp.cumsum(probability)
    found = jnp.searchsorted(edges, low_discrepancy(key, num) * edges[-1], side="right")
    return jnp.minimum(found, len(probability) - 1)  # where the product has rounded up


def hybrid_loss(
    key: Array, model: Model, x0: Array, data: Array, space: Space | None, **options: Any
) -> Array:
    """L_hybrid of each example, (B,): see the module.

    Args:
        key: a jax key for levels and noise.
        model: with ``num_levels`` and ``learned_variance``, and its condition.
        x0: data (B, *shape), float32 in the model's units.
        data: the same as items of the space, (B, *shape).
        space: where they live; None for points in the model's units.
        options: for the network.
    """
    key_level, key_z = jax.random.split(key)
    number = model.num_levels
    k = drawn(key_level, len(x0), jnp.full(number, 1.0 / number))
    error, term = _at_levels(key_z, model, x0, data, space, k, hold_score=True, **options)
    simple = jnp.mean(jnp.square(error).reshape(len(x0), -1), axis=1)
    return simple + VLB_WEIGHT * number * term


def vlb_loss(
    key: Array,
    model: Model,
    x0: Array,
    data: Array,
    space: Space | None,
    history: History,
    **options: Any,
) -> tuple[Array, History]:
    """An estimate of L_vlb by each example, bits/dim, (B,), and the history with these losses.
    Arguments as of `hybrid_loss`."""
    key_level, key_z = jax.random.split(key)
    probability = probabilities(history)
    k = drawn(key_level, len(x0), probability)
    _, term = _at_levels(key_z, model, x0, data, space, k, hold_score=False, **options)
    kept = recorded(history, k, jax.lax.stop_gradient(term))
    return term / probability[k], kept


def _at_levels(
    key: Array,
    model: Model,
    x0: Array,
    data: Array,
    space: Space | None,
    k: Array,
    *,
    hold_score: bool,
    **options: Any,
) -> tuple[Array, Array]:
    """sigma score + z (B, *shape), and L_k in bits/dim (B,), at levels k int32 (B,). No gradient of
    L_k goes through a score that is held."""
    levels = levels_of(discretization(model.sde).chain(model.num_levels), x0.dtype)
    alpha, sigma, growth, log_ratio = (table[k] for table in levels[1:])
    z = jax.random.normal(key, x0.shape, x0.dtype)
    x = expand(alpha, x0) * x0 + expand(sigma, x0) * z
    noise = model.at_level(levels.order[k])
    score, share = model.score_and_share_at(x, noise, **options)
    error = expand(sigma, x) * score + z
    held = jax.lax.stop_gradient(error) if hold_score else error
    # Every example has a decoder's loss, and that of the first level counts. The others are without
    # an error there, as an infinite gradient times 0 would be nan.
    alpha, sigma, _, of_decoder = (jnp.broadcast_to(table[0], k.shape) for table in levels[1:])
    std = decoder_std(sigma, of_decoder, share)
    counted = jnp.where(expand(k == 0, x), held, 0.0)
    decoded = decoder_loss(space, data, x0, counted, z, sigma / alpha, std)
    nats = jnp.where(k == 0, decoded, step_kl(growth, log_ratio, held, share))
    return error, nats / (x0[0].size * math.log(2.0))
