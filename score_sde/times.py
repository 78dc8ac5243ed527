"""Times of a training: how they are drawn in [t_min, T]; nu = sigma / alpha.

uniform       in t
log_snr       uniform in log-SNR
alternate     by the one and by the other in turn
importance    the density of the log-SNR is in proportion to 1 / (1 + nu^2), by which the error
              of the variance-preserving velocity counts in -log p (Zheng et al. 2023,
              arXiv:2305.03935, section 4)
log_normal    log(sigma / alpha) is normal (Karras et al. 2022, arXiv:2206.00364, table 1)
logit_normal  log(t / (T - t)) is normal (Esser et al. 2024, arXiv:2403.03206, section 3.1)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.sde import SDE


class Times(NamedTuple):
    """Times that were drawn.

    Attributes:
        t: (B,).
        spread: one over the density of their log-SNR, (B,), when it is called.
    """

    t: Array
    spread: Callable[[], Array]


def low_discrepancy(key: Array, num: int) -> Array:
    """Numbers float32 (num,), each uniform in [0, 1), together evenly spread (Kingma et al. 2021,
    I.1)."""
    places = jnp.arange(num, dtype=jnp.float32) / num
    return jnp.mod(jax.random.uniform(key, dtype=jnp.float32) + places, 1.0)


def uniform(sde: SDE, u: Array, t_min: float) -> Times:
    """Uniform in t."""
    t = t_min + u * (sde.T - t_min)
    return Times(t, lambda: log_snr_rate(sde, t) * (sde.T - t_min))


def by_log_snr(sde: SDE, u: Array, t_min: float) -> Times:
    """Uniform in log-SNR."""
    top, bottom = (sde.log_snr(jnp.full((1,), t, u.dtype)) for t in (t_min, sde.T))
    t = jnp.clip(sde.inverse_log_snr(top + u * (bottom - top)), t_min, sde.T)
    return Times(t, lambda: jnp.full_like(u, (top - bottom)[0]))


def alternate(sde: SDE, u: Array, t_min: float) -> Times:
    """By the two above in turn."""
    first, second = uniform(sde, u, t_min), by_log_snr(sde, u, t_min)
    t = jnp.where(jnp.arange(len(u)) % 2 == 0, first.t, second.t)

    def spread() -> Array:  # one over the mean of the two densities
        evenly = log_snr_rate(sde, t) * (sde.T - t_min)
        return 2.0 / (1.0 / evenly + 1.0 / second.spread())

    return Times(t, spread)


def importance(sde: SDE, u: Array, t_min: float) -> Times:
    """By the share of the velocity's error in the likelihood, 1 / (1 + nu^2) in log-SNR."""
    # The integral of sigmoid(log_snr) is log(1 + SNR).
    top, bottom = (sde.log_snr(jnp.full((1,), t, u.dtype)) for t in (t_min, sde.T))
    first, last = jax.nn.softplus(top), jax.nn.softplus(bottom)
    place = first + u * (last - first)
    log_snr = jnp.clip(place + jnp.log(-jnp.expm1(-place)), bottom, top)
    t = jnp.clip(sde.inverse_log_snr(log_snr), t_min, sde.T)
    return Times(t, lambda: (first - last)[0] / jax.nn.sigmoid(sde.log_snr(t)))


def log_normal(
    sde: SDE, u: Array, t_min: float, times_mean: float = -1.2, times_std: float = 1.2
) -> Times:
    """log(sigma / alpha) is normal."""
    normal = _normal(u)
    t = jnp.clip(sde.inverse_log_snr(-2.0 * (times_mean + times_std * normal)), t_min, sde.T)
    return Times(t, lambda: 2.0 * times_std / jax.scipy.stats.norm.pdf(normal))


def logit_normal(
    sde: SDE, u: Array, t_min: float, times_mean: float = 0.0, times_std: float = 1.0
) -> Times:
    """log(t / (T - t)) is normal."""
    normal = _normal(u)
    share = jax.nn.sigmoid(times_mean + times_std * normal)
    t = jnp.clip(share * sde.T, t_min, sde.T)
    density = jax.scipy.stats.norm.pdf(normal) / (times_std * sde.T * share * (1.0 - share))
    return Times(t, lambda: log_snr_rate(sde, t) / density)


TIMES: dict[str, Callable[..., Times]] = {
    "uniform": uniform,
    "log_snr": by_log_snr,
    "alternate": alternate,
    "importance": importance,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
}
"""(sde, u (B,), t_min) -> times in [t_min, T], of numbers u, uniform in [0, 1)."""


def _normal(u: Array) -> Array:
    """Normal deviates of uniform numbers, within 5.3 standard deviations."""
    return jax.scipy.special.ndtri(jnp.clip(u, 1e-7, 1.0 - 1e-7))


def log_snr_rate(sde: SDE, t: Array) -> Array:
    """-(log SNR)' = g^2 / sigma^2, (B,) -> (B,)."""
    return jnp.square(sde.diffusion(t) / sde.sigma(t))
