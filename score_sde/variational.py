"""Training by the bound on -log p, with a schedule that is learned (Kingma et al. 2021,
arXiv:2107.00630).

At a time t, uniform in [0, T], and a noise z an example's bound is estimated by

    prior + T/2 gamma'(t) |sigma score(alpha x0 + sigma z, t) + z|^2 + reconstruction

(`score_sde.bounds`), here in nats per dimension. Two gradients come from one backward pass
(ibid., section 5.3 and appendix I.2): the network and the ends of gamma descend the bound. What is
between the ends does not change its mean. It descends the mean square of the middle term, and so
the estimate's variance: d(l^2) = 2 l dl, so the gradient that reaches gamma(t) and gamma'(t) is
multiplied by 2 l.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.learned import ByGamma
from score_sde.score import Model
from score_sde.sde import expand
from score_sde.times import low_discrepancy

ENDS = ("gamma_min", "gamma_max")
Gamma = tuple[Array, Array]
"""gamma and its derivative at the times of a batch, (B,) each."""


class _At(ByGamma):
    """The process at given levels, whatever the time."""

    level: Any

    def gamma(self, t: Array) -> Array:
        return self.level


def variational_loss(key: Array, model: Model, x0: Array, **options: Any) -> Array:
    """The estimate for each example of a batch, nats per dimension, (B,); its gradient with respect
    to the model's parameters and process is as the module says. There is none for x0, nor for a
    condition.

    The decoder is N(x_t / alpha, (sigma / alpha)^2 I) at t = 0. It needs no network, so the noise
    of one time is all that is evaluated. It is a density of dequantized pixels. The paper's decoder
    says the probability of a pixel's 256 values (ibid., eq. 8), so its term is another number.

    Args:
        key: a jax key for times and noise.
        model: the network under a `LearnedVP`, whose noise condition is by the log-SNR or by sigma.
        x0: points (B, *shape), float, in the model's range; images dequantized.
        options: for the network.
    """
    process: Any = model.sde
    arrays = {name: each for name, each in options.items() if isinstance(each, Array)}
    key_t, key_z = jax.random.split(key)
    t = process.T * low_discrepancy(key_t, len(x0)).astype(x0.dtype)
    z = jax.random.normal(key_z, x0.shape, x0.dtype)

    def estimate(params: Any, gamma: Gamma, rest: Any) -> Array:
        (level, slope), (x0, z, t, condition, arrays) = gamma, rest
        at = dataclasses.replace(model, params=params, sde=_At(level), condition=condition)
        mean, std = at.sde.marginal(x0, t)
        error = expand(std, z) * at(mean + expand(std, z) * z, t, **(options | arrays)) + z
        return 0.5 * process.T * slope * jnp.mean(jnp.square(error).reshape(len(x0), -1), axis=-1)

    between = tuple(f.name for f in dataclasses.fields(process) if f.name not in ENDS)
    by_bound, by_variance = (_held(process, part) for part in (between, ENDS))
    gamma, again = ((each.gamma(t), each.slope(t)) for each in (by_bound, by_variance))
    rest = x0, z, t, model.condition, arrays
    diffusion = _two_gradients(estimate)(model.params, gamma, again, rest)
    first, last = (by_bound.gamma(jnp.full((1,), end, x0.dtype))[0] for end in (0.0, process.T))
    alpha2, sigma2 = jax.nn.sigmoid(-last), jax.nn.sigmoid(last)
    size2 = jnp.mean(jnp.square(x0).reshape(len(x0), -1), axis=-1)
    prior = 0.5 * (alpha2 * size2 + sigma2 - 1.0 - jnp.log(sigma2))
    return prior + diffusion + 0.5 * (math.log(2.0 * math.pi) + 1.0 + first)


def _held(process: Any, names: tuple[str, ...]) -> Any:
    """The process with these constants held fixed."""
    fixed = {name: jax.lax.stop_gradient(getattr(process, name)) for name in names}
    return dataclasses.replace(process, **fixed)


def _two_gradients(
    estimate: Callable[[Any, Gamma, Any], Array],
) -> Callable[[Any, Gamma, Gamma, Any], Array]:
    """`estimate(params, gamma, rest)` as a function of gamma twice, equal in value. The first gets
    the gradient of the estimate, the second that of its square, and the rest none. The function
    must not take a traced array from around it: JAX does not see such in a `custom_vjp`."""

    @jax.custom_vjp
    def twice(params: Any, gamma: Gamma, again: Gamma, rest: Any) -> Array:
        return estimate(params, gamma, rest)

    def forward(params: Any, gamma: Gamma, again: Gamma, rest: Any) -> tuple[Array, Any]:
        value, back = jax.vjp(lambda *given: estimate(given[0], given[1], rest), params, gamma)
        return value, (value, back)

    def backward(kept: Any, cotangent: Array) -> tuple[Any, Gamma, Gamma, None]:
        value, back = kept
        params, gamma = back(cotangent)
        level, slope = (2.0 * value * each for each in gamma)
        return params, gamma, (level, slope), None

    twice.defvjp(forward, backward)
    return twice
