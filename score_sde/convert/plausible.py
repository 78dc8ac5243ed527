"""Whether a network predicts the noise that it is given; no data are needed.

A setting that stands in no array may be wrong: the network then fits its arrays and is useless. So
it is tried on images that it draws itself. A few steps of DPM-Solver++ draw them, and their pixels
are cut to the range of data. A right network knows the noise z of x_t = alpha x0 + sigma z well:

    error = rms(epsilon(x_t) - z) = (alpha / sigma) rms(D(x_t) - x0)

Both D and x0 are images within the range, so their distance is mostly below half of it, h. Where
noise prevails the error is then below h alpha / sigma, up to what the network is imprecise by.
Where the image prevails it is below 1: to predict no noise at all would be off by that.

A network of the velocity or of the denoised data is within these bounds by its form: a wrong one
is, too. But D is to be E[x0 | x_t]. So the rest, x0 - D, must be uncorrelated with D.
For m, the mean pixel of a channel,

    bias^2 = E[(D - m) (D - x0)] = 0

and where D is off by an error that has nothing in common with x0, bias^2 is its mean square. It is
compared with s^2, the mean square of x0 - m. It is taken where there is an image in x_t: in nearly
pure noise all of a few images leave the same over by chance.

docs/checkpoints.md has the figures of networks with right and wrong settings.
"""

import math
from dataclasses import field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.samplers import ExponentialMultistep
from score_sde.score import Model, full_precision, pytree
from score_sde.sde import expand

STEPS, LEVELS = 10, 10
MOST_NOISE, LEAST_NOISE = -12.0, 1.5  # log-SNRs; a small network sees no noise far below
LEAST_IMAGE = -3.5  # the log-SNR above which the bias counts
IMPRECISE = 0.1  # by which a trained network may be off in nearly pure noise
BIASED = 0.2  # bias^2 / s^2 of 8 images
MOST_PIXELS = 2**16  # of all images that are drawn
LARGEST = 2**22  # pixels of one image; larger ones would take hours and much memory


class Errors(NamedTuple):
    """Of each level, (n,) each.

    Attributes:
        log_snr: which level it is.
        error: in predicting noise.
        allowed: the largest error that is.
        bias: bias^2 / s^2; 0 where it is not taken.
        allowed_bias: the largest that is.
    """

    log_snr: np.ndarray
    error: np.ndarray
    allowed: np.ndarray
    bias: np.ndarray
    allowed_bias: np.ndarray

    def failure(self) -> str:
        """What is furthest above what is allowed, in words; "" where nothing is."""
        for what, found, most in (
            ("its error in predicting the noise that it is given", self.error, self.allowed),
            ("the bias of its denoised images", self.bias, self.allowed_bias),
        ):
            ratio = np.nan_to_num(found / most, nan=np.inf)
            worst = int(np.argmax(ratio))
            if ratio[worst] > 1.0:
                return (
                    f"{what} is {found[worst]:.2f} at a log-SNR of {self.log_snr[worst]:.1f}; "
                    f"allowed are up to {most[worst]:.2f}"
                )
        return ""


@pytree
class _Cut:
    """A model whose denoised images are cut to a range. Otherwise a step that begins where alpha
    is 1e-4 would carry a network's imprecision away, times 1 / alpha."""

    model: Model
    low: float = field(metadata={"static": True})
    high: float = field(metadata={"static": True})

    def __call__(self, x: Array, t: Array) -> Array:
        return self.model(x, t)

    def denoised(self, x: Array, t: Array) -> Array:
        return jnp.clip(self.model.denoised(x, t), self.low, self.high)


@jax.jit
def _measured(model: Model, x0: Array, z: Array, levels: Array) -> tuple[Array, Array]:
    """The error in predicting z, and bias^2 / s^2, of each log-SNR of the levels."""
    rest = x0 - jnp.mean(x0, axis=tuple(range(x0.ndim - 1)), keepdims=True)

    def of_level(level: Array) -> tuple[Array, Array]:
        t = jnp.full(len(x0), model.sde.inverse_log_snr(level.reshape(1)))
        mean, std = model.sde.marginal(x0, t)
        off = -expand(std, x0) * model(mean + expand(std, x0) * z, t) - z
        left = -jnp.exp(-0.5 * level) * off  # D - x0
        return jnp.mean(jnp.square(off)), jnp.mean((rest + left) * left)

    error2, bias2 = jax.lax.map(of_level, levels)
    return jnp.sqrt(error2), bias2 / jnp.mean(jnp.square(rest))


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
    steps = min(STEPS, model.num_levels - 1) if model.num_levels else STEPS
    sampler = ExponentialMultistep(steps, order=2, num_levels=model.num_levels)

    with full_precision():
        x0 = sampler.sample(key, sde, _Cut(model, low, high), x_T).x
        error, bias = map(
            np.asarray, _measured(model, jnp.clip(jnp.nan_to_num(x0), low, high), z, levels)
        )
    log_snr = np.asarray(levels)
    half = 0.5 * (high - low) * np.exp(0.5 * log_snr)
    by_form = model.parameterization in ("velocity", "denoised")
    return Errors(
        log_snr,
        error,
        np.minimum(IMPRECISE + half, 1.0),
        np.where(by_form & (log_snr > LEAST_IMAGE), bias, 0.0),
        # Of chance alone it has a standard deviation that falls as 1 / sqrt(images).
        np.full(LEVELS, BIASED * math.sqrt(8.0 / len(x_T))),
    )
