"""Whether a network predicts the noise that it is given; no data are needed.

A setting that stands in no array may be wrong: the network then fits its arrays and is useless. So
it is tried on images that it draws itself. A few steps of DDIM draw them, and their pixels are cut
to the range of data. A right network knows the noise z of x_t = alpha x0 + sigma z well:

    error = rms(epsilon(x_t) - z) = (alpha / sigma) rms(D(x_t) - x0)

Both D and x0 are images within the range, so their distance is mostly below half of it, h. Where
noise prevails the error is then below h alpha / sigma, up to what the network is imprecise by.
Where the image prevails it is below 1: to predict no noise at all would be off by that.

Small networks of digits, trained for a minute, were off by 0.03 to 0.09 in nearly pure noise. The
same with other groups or eps of the normalizations, other rescaling, another activation or padding
were off by 0.15 to 0.8 there, or by more than 1 in their own images. A network of the velocity or
of the denoised data is right in pure noise by its form, so less is noticed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.samplers import DDIM
from score_sde.score import Model, full_precision
from score_sde.sde import expand

LEVELS = 8
MOST_NOISE, LEAST_NOISE = -12.0, 1.5  # log-SNRs; a small network sees no noise far below
IMPRECISE = 0.1  # by which a trained network may be off in nearly pure noise
MOST_PIXELS = 2**16  # of all images that are drawn


class Errors(NamedTuple):
    """Of each level, (n,) each: its log-SNR, the error, and the largest that is allowed."""

    log_snr: np.ndarray
    error: np.ndarray
    allowed: np.ndarray

    def worst(self) -> int | None:
        """The level at which the error is furthest above what is allowed; None where none is."""
        ratio = np.nan_to_num(self.error / self.allowed, nan=np.inf)
        return int(np.argmax(ratio)) if ratio.max() > 1.0 else None


def noise_errors(key: Array, model: Model, x_T: Array, low: float, high: float) -> Errors:
    """Return the errors of a network in predicting noise.

    Args:
        key: of the noise.
        model: the network, with its condition.
        x_T: noise of the prior (B, *shape), to draw images from.
        low, high: the range of the data in the model's units.
    """
    sde, z = model.sde, jax.random.normal(key, x_T.shape, x_T.dtype)
    first = float(sde.log_snr(jnp.full(1, sde.T))[0])
    levels = jnp.linspace(max(first, MOST_NOISE), LEAST_NOISE, LEVELS)

    @jax.jit
    def draw(model: Model, x: Array) -> Array:
        # DDIM with denoised images cut to the range. Otherwise a step that begins where alpha is
        # 1e-4 would carry a network's imprecision away, times 1 / alpha.
        def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
            t, s = (jnp.full(len(x), end) for end in ends)
            x0 = jnp.clip(model.denoised(x, t), low, high)
            epsilon = (x - expand(sde.alpha(t), x) * x0) / expand(sde.sigma(t), x)
            return expand(sde.alpha(s), x) * x0 + expand(sde.sigma(s), x) * epsilon, None

        times = DDIM(10, num_levels=model.num_levels).times(sde)
        x, _ = jax.lax.scan(step, x, (times[:-1], times[1:]))
        return jnp.clip(jnp.nan_to_num(x), low, high)

    @jax.jit
    def errors(model: Model, x0: Array) -> Array:
        def error(level: Array) -> Array:
            t = jnp.full(len(x0), sde.inverse_log_snr(level.reshape(1)))
            mean, std = sde.marginal(x0, t)
            epsilon = -expand(std, x0) * model(mean + expand(std, x0) * z, t)
            return jnp.sqrt(jnp.mean(jnp.square(epsilon - z)))

        return jax.lax.map(error, levels)

    with full_precision():
        found = errors(model, draw(model, x_T))
    ratio = 0.5 * (high - low) * np.exp(0.5 * np.asarray(levels))
    return Errors(np.asarray(levels), np.asarray(found), np.minimum(IMPRECISE + ratio, 1.0))
