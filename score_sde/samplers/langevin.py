"""Annealed Langevin dynamics (Song, Ermon 2019, arXiv:1907.05600, algorithm 1).

At each of ``num_steps`` noise levels from T to t_min, ``steps_per_level`` Langevin steps

    x + e score(x, t) + sqrt(2 e) z,      e = step_size sigma(t)^2

(the paper's alpha_i / 2 with alpha_i = epsilon sigma_i^2 / sigma_L^2; the ratio to sigma_L is in
``step_size``). Under any process this is the paper's algorithm for x / alpha, whose law is the
data's with noise of sigma / alpha: levels are uniform in log-SNR, its geometric ladder, and between
levels x is rescaled by the ratio of their alphas.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from score_sde.samplers.base import (
    Samples,
    batch_shape,
    image_keys,
    normal,
    require_positive,
    start,
)
from score_sde.score import as_pytree, denoise
from score_sde.sde import SDE, ScoreFn, expand


@dataclass(frozen=True)
class AnnealedLangevin:
    """Langevin dynamics at one noise level after the other.

    Attributes:
        num_steps: noise levels.
        steps_per_level: Langevin steps at each.
        step_size: e / sigma(t)^2; the bias of a step's stationary variance is O(step_size).
        denoise: return the denoised end state (Tweedie's formula, one evaluation more).
        t_min: the last time; None is the process's own.
    """

    num_steps: int = 400
    steps_per_level: int = 5
    step_size: float = 0.1
    denoise: bool = True
    t_min: float | None = None

    def __post_init__(self) -> None:
        require_positive(
            num_steps=self.num_steps,
            steps_per_level=self.steps_per_level,
            step_size=self.step_size,
        )

    @property
    def nfe(self) -> int:
        """Evaluations of the score for each sample."""
        return self.num_steps * self.steps_per_level + int(self.denoise)

    def sample(
        self,
        key: Array,
        sde: SDE,
        score: ScoreFn,
        x_init: Array | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        trajectory: bool = False,
        first: int = 0,
    ) -> Samples:
        """Draw samples; arguments as ``PredictorCorrector.sample``, the trajectory has one state a
        level."""
        sde.check()
        shape = batch_shape(x_init, shape)
        x, path = _sample(key, sde, as_pytree(score), x_init, first, self, shape, trajectory)
        return Samples(x, jnp.full(shape[0], self.nfe, jnp.int32), path)

    def times(self, sde: SDE) -> Array:
        """The levels' times from T to t_min, uniform in log-SNR, (num_steps,)."""
        t_min = sde.t_min if self.t_min is None else self.t_min
        ends = sde.log_snr(jnp.asarray([sde.T, t_min], jnp.float32))
        levels = sde.inverse_log_snr(jnp.linspace(ends[0], ends[1], self.num_steps))
        return jnp.clip(levels, t_min, sde.T)


@partial(jax.jit, static_argnums=(5, 6, 7))
def _sample(
    key: Array,
    sde: SDE,
    score: Partial,
    x_init: Array | None,
    first: Array,
    sampler: AnnealedLangevin,
    shape: tuple[int, ...],
    trajectory: bool,
) -> tuple[Array, Array | None]:
    keys, times = image_keys(key, shape[0], first), sampler.times(sde)

    rescaling = jnp.exp(jnp.diff(sde.log_alpha(times), prepend=sde.log_alpha(times[:1])))

    def level(x: Array, index: Array) -> tuple[Array, Array | None]:
        t, x = jnp.full(shape[0], times[index]), rescaling[index] * x
        size = expand(sampler.step_size * jnp.square(sde.sigma(t)), x)

        def langevin(repeat: int, x: Array) -> Array:
            z = normal(keys, 1 + index * sampler.steps_per_level + repeat, shape[1:])
            return x + size * score(x, t) + jnp.sqrt(2.0 * size) * z

        x = jax.lax.fori_loop(0, sampler.steps_per_level, langevin, x)
        return x, (x if trajectory else None)

    x = start(keys, sde, x_init, shape)
    end, path = jax.lax.scan(level, x, jnp.arange(sampler.num_steps))
    if sampler.denoise:
        end = denoise(sde, score, end, jnp.full(shape[0], times[-1]))
    return end, None if path is None else jnp.concatenate([x[None], path])
