"""Second-order fine-tuning for the flow's likelihood (Zheng et al. 2023, arXiv:2305.03935, section
4.2, for any process and network).

The flow's log p is an integral of the score's divergence, which score matching leaves to itself. Of
e = sigma score(x_t, t) + z the exact score in D dimensions has

    E[|e|^2 | x_t] = D + sigma^2 div score(x_t, t),

as the covariance of z given x_t is I + sigma^2 times the Hessian of log p_t. So the residual r =
|e|^2 - D - sigma^2 div score is 0 on average at each x_t. The loss is the likelihood's with its
square:

    weight (|e|^2 + 0.1 r^2 / D).

Inside of r the error e is held fixed. Where the score is off by delta, the divergence that makes r
small is off by |delta|^2, which is how the error is bounded (Lu et al. 2022, arXiv:2206.08265,
section 4).

Each of the two factors of r^2 has the divergence by its own Rademacher probe (Hutchinson), so the
gradient is unbiased. (The published code squares the estimate by one probe. That also makes the
probe's variance small, which is the rest of the Jacobian.)
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.losses import Pair, sample_times
from score_sde.sde import SDE, ScoreFn, expand

SHARE = 0.1  # of the second-order term, that of the published code


def loss(
    key: Array,
    sde: SDE,
    score: ScoreFn,
    x0: Array,
    *,
    times: str = "importance",
    t_min: float = 1e-5,
    reduce_mean: bool = True,
    **settings: float,
) -> Array:
    """The loss of each example of a batch, (B,), by one time, one noise and two probes.

    Args:
        key: a jax key for times, noise and probes.
        sde: the process, with alpha(T) > 0.
        score: the score function, (x (B, *shape), t (B,)) -> (B, *shape), with a forward mode.
        x0: data (B, *shape), float32 in the model's range.
        times: a name of ``times.TIMES``.
        t_min: the smallest time.
        reduce_mean: the mean over an example's dimensions; else half their sum.
        settings: ``times_mean`` and ``times_std`` of the normal ones.
    """
    key_t, key_z, key_probe = jax.random.split(key, 3)
    pair = Pair(times, "likelihood")
    t, weight = sample_times(key_t, sde, len(x0), pair, t_min, x0.dtype, **settings)
    z = jax.random.normal(key_z, x0.shape, x0.dtype)
    probes = jax.random.rademacher(key_probe, (2, *x0.shape), x0.dtype)
    size = 1.0 if reduce_mean else 0.5 * math.prod(x0.shape[1:])
    return size * weight * error(sde, score, x0, t, z, probes)


def error(sde: SDE, score: ScoreFn, x0: Array, t: Array, z: Array, probes: Array) -> Array:
    """(|e|^2 + 0.1 r^2 / D) / D for each example, (B,): first and second order, per dimension.

    Args:
        sde: the process.
        score: the score function.
        x0: data (B, *shape); t: times (B,); z: standard normal noise (B, *shape).
        probes: of the divergence, +-1, (2, B, *shape).
    """
    mean, std = sde.marginal(x0, t)
    axes = tuple(range(1, x0.ndim))

    def scaled(x: Array) -> Array:
        return expand(std, x) * score(x, t)

    value, tangent = jax.linearize(scaled, mean + expand(std, z) * z)
    first = jnp.mean(jnp.square(value + z), axis=axes)

    def residual(probe: Array) -> Array:
        divergence = jnp.mean(probe * tangent(probe), axis=axes)  # over sigma, a dimension
        return jax.lax.stop_gradient(first) - 1.0 - std * divergence

    second = jax.vmap(residual)(probes)
    return first + SHARE * second[0] * second[1]
