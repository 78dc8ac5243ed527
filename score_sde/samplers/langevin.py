"""Annealed Langevin dynamics (Song, Ermon 2019, arXiv:1907.05600, algorithm 1).

At each of ``num_steps`` noise levels from T to t_min, ``steps_per_level`` Langevin steps

    x + e sigma^2 score(x, t) + sqrt(b) sigma z,     e = step_size, sigma = sigma(t),

with one of two rules for the noise:

    consistent      b = r^2 - (1 - e)^2
    not consistent  b = 2 e

The first is that of Jolicoeur-Martineau et al. 2021, arXiv:2009.05475, algorithm 2; the second the
paper's, whose alpha_i / 2 is e sigma_i^2.

A step shrinks the noise in x to (1 - e) sigma. The consistent rule fills it up to r sigma. In a
level's last step, r sigma is the noise of the next level; before, r = 1. So the noise always has
the size that the score expects. (A level's last e is 1 - r at least. With b = 0 the step is that of
DDIM.)

By the paper's rule the noise settles at a variance 1 / (1 - e / 2) times too large. It also comes
down from the level before with a delay. Only more steps help against that, and over more steps the
errors of a learned score add up.

Under any process this is the algorithm for x / alpha, which has the law of the data with noise of
sigma / alpha. Levels are uniform in log-SNR, the paper's geometric ladder. Between levels x is
rescaled by the ratio of their alphas.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from score_sde.errors import require
from score_sde.samplers.base import require_positive
from score_sde.samplers.grids import times
from score_sde.samplers.stepped import Context, SteppedSampler
from score_sde.sde import SDE

CONSISTENT_STEP = 0.1


@dataclass(frozen=True)
class AnnealedLangevin(SteppedSampler):
    """Langevin dynamics at one noise level after the other.

    Attributes:
        num_steps: noise levels, the first at T and the last at t_min.
        denoise, t_min: as of every ``SteppedSampler``.
        steps_per_level: Langevin steps at each, an evaluation each.
        step_size: e, below 1; the bias of a step's stationary variance is O(step_size). None is 0.1
            with the consistent rule and ``ncsnv2_step_size`` without.
        consistent: how much noise a step adds (see above). False is the algorithm of NCSN and
        NCSNv2.
    """

    num_steps: int = 400
    steps_per_level: int = 1
    step_size: float | None = None
    consistent: bool = True

    def __post_init__(self) -> None:
        require_positive(steps_per_level=self.steps_per_level)
        require(self.num_steps >= 2, "num_steps", self.num_steps, "integers of at least 2")
        ok = self.step_size is None or 0.0 < self.step_size < 1.0
        require(ok, "step_size", self.step_size, "numbers above 0 and below 1")

    def level_times(self, sde: SDE) -> Array:
        """The levels' times from T to t_min, uniform in log-SNR, (num_steps,)."""
        return times("log_snr", sde, self.num_steps - 1, self.last_time(sde))

    def times(self, sde: SDE) -> Array:
        """The time of each Langevin step, and the last level's again."""
        levels = self.level_times(sde)
        return jnp.append(jnp.repeat(levels, self.steps_per_level), levels[-1])

    def tables(self, sde: SDE, times: Array) -> tuple[Array, Array, Array]:
        """Of each step: alpha over that of the step before, e and sqrt(b)."""
        log_alpha, nu = sde.log_alpha(times), jnp.exp(-0.5 * sde.log_snr(times))
        rescaling = jnp.exp(jnp.diff(log_alpha, prepend=log_alpha[:1]))
        e = self.step_length(sde)
        if not self.consistent:
            e = jnp.full(len(times) - 1, e)
            return rescaling, e, jnp.sqrt(2.0 * e)
        r = nu[1:] / nu[:-1]  # 1 except in a level's last step
        e = jnp.maximum(e, 1.0 - r)
        # Where e = 1 - r this is 0, or less by a rounding.
        return rescaling, e, jnp.sqrt(jnp.maximum(jnp.square(r) - jnp.square(1.0 - e), 0.0))

    def step(self, x: Array, memory: None, i: Array, c: Context) -> tuple[Array, None]:
        rescaling, e, root_b = c.tables
        x, t = rescaling[i] * x, c.t(i)
        sigma = c.sde.sigma(t[:1])[0]
        x = x + e[i] * jnp.square(sigma) * c.score(x, t) + root_b[i] * sigma * c.noise(x, i)
        return x, None

    def step_length(self, sde: SDE) -> Array:
        """e, ()."""
        if self.step_size is not None:
            return jnp.asarray(self.step_size)
        if self.consistent:
            return jnp.asarray(CONSISTENT_STEP)
        nu = jnp.exp(-0.5 * sde.log_snr(self.level_times(sde)[:2]))
        return ncsnv2_step_size(nu[0] / nu[-1], self.steps_per_level)


def ncsnv2_step_size(ratio: Array, steps_per_level: int) -> Array:
    """The step size by technique 4 of NCSNv2 (Song, Ermon 2020, arXiv:2006.09011, eq. 4), ().

    Noise from the level before has ``ratio`` squared times the right variance. After T steps of
    size e it has

        (1 - e)^(2 T) (ratio^2 - v) + v,    v = 1 / (1 - e / 2),

    times the right one. The step size is the e that brings this nearest to 1.
    """
    e = jnp.geomspace(1e-5, 0.99, 20_001)
    v = 1.0 / (1.0 - 0.5 * e)
    left = (1.0 - e) ** (2 * steps_per_level) * (jnp.square(ratio) - v) + v
    return e[jnp.argmin(jnp.abs(left - 1.0))]
