"""Easy Consistency Tuning (Geng et al. 2024, Consistency Models Made Easy, arXiv:2406.14548).

A model is trained on until its denoised data are the end of its flow.

A consistency model's denoised data are the same along each path of the flow (Song et al. 2023,
arXiv:2303.01469, section 3), so one evaluation makes a sample (`samplers.consistency`).
"""

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.losses import Pair, sample_times
from score_sde.sde import SDE, ScoreFn, expand

STAGES = 8  # of a training; from one to the next the gap is halved (Geng et al. 2024, appendix)
HUBER = 0.00054  # Song, Dhariwal 2023, arXiv:2310.14189, section 3.3; Geng et al. train with 0


def loss(
    key: Array,
    sde: SDE,
    denoised: ScoreFn,
    x0: Array,
    halvings: Array | int,
    *,
    times: str = "log_normal",
    t_min: float = 1e-5,
    **settings: float,
) -> Array:
    """The loss of each example of a batch, (B,): the distance between the denoised data at two
    noise levels of one x0 and one noise, over the difference of the levels.

    The gap from nu = sigma / alpha down to nu' is nu (1 + 8 / (1 + e^nu)) / 2^(halvings + 1)
    (ibid., section 3). At first it reaches to the data from all nu below 1.95: there the loss is
    that of a diffusion model. At high noise it reaches to nu / 2. Then it shrinks. The gradient is
    that of the upper level. The weight is the first of the paper's, 1 / (nu - nu').

    Args:
        key: a jax key for times and noise.
        sde: the process, with alpha(T) > 0.
        denoised: E[x0 | x_t] of the model, (x (B, *shape), t (B,)) -> (B, *shape). Chance in it, as
            dropout, has to be the same in both calls.
        x0: data (B, *shape), float32 in the model's range.
        halvings: of the gap so far.
        times: a name of ``times.TIMES``, by which nu is drawn.
        t_min: the smallest time. Below its level nu' is 0, which is the data.
        settings: ``times_mean`` and ``times_std`` of the normal ones.
    """
    key_t, key_z = jax.random.split(key)
    t, _ = sample_times(key_t, sde, len(x0), Pair(times, "epsilon"), t_min, x0.dtype, **settings)
    z = jax.random.normal(key_z, x0.shape, x0.dtype)

    def at(t: Array) -> Array:
        mean, std = sde.marginal(x0, t)
        return denoised(mean + expand(std, z) * z, t)

    nu, least = (jnp.exp(-0.5 * sde.log_snr(each)) for each in (t, jnp.full_like(t, t_min)))
    gap = jnp.exp2(-1.0 - jnp.asarray(halvings, x0.dtype)) * (1.0 + 8.0 * jax.nn.sigmoid(-nu))
    lower = nu * (1.0 - gap)
    is_data, lower = lower <= least, jnp.maximum(lower, least)
    wanted = jax.lax.stop_gradient(at(sde.inverse_log_snr(-2.0 * jnp.log(lower))))
    error = at(t) - jnp.where(expand(is_data, x0), x0, wanted)
    # The mean, as in the other losses. Huber's constant keeps the root's gradient finite.
    mean_square = jnp.mean(jnp.square(error), axis=range(1, x0.ndim))
    distance = jnp.sqrt(mean_square + HUBER**2) - HUBER
    return distance / (nu - jnp.where(is_data, 0.0, lower))
