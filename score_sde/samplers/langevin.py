"""Annealed Langevin dynamics (Song, Ermon 2019, arXiv:1907.05600, algorithm 1).

At each of ``num_steps`` noise levels from T to t_min, ``steps_per_level`` Langevin steps

    x + e sigma^2 score(x, t) + sqrt(b) sigma z,     e = step_size, sigma = sigma(t),

with one of two rules for the noise:

    consistent      b = r^2 - (1 - e)^2
    not consistent  b = 2 e

The first is that of Jolicoeur-Martineau et al. 2021, arXiv:2009.05475, algorithm 2; the second the
paper's, whose alpha_i / 2 is e sigma_i^2.

A step shrinks the noise in x to (1 - e) sigma; the consistent rule fills it up to r sigma, where r
sigma is the next level's noise for a level's last step and r = 1 for those before. So the noise is
what the score takes it for at every step. (A level's last e is 1 - r at least; at b = 0 the step is
that of DDIM.) By the paper's rule the noise settles at a variance 1 / (1 - e / 2) times too large,
and comes down from the level before with a delay, against which only more steps help; in these the
errors of a learned score add up.

Under any process this is the algorithm for x / alpha, whose law is the data's with noise of sigma /
alpha: levels are uniform in log-SNR, the paper's geometric ladder, and between levels x is rescaled
by the ratio of their alphas.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.samplers.base import Samples, SteppedSampler, fixed_steps, require_positive, scan
from score_sde.samplers.grids import times
from score_sde.score import denoise
from score_sde.sde import SDE, ScoreFn, expand

CONSISTENT_STEP = 0.1


@dataclass(frozen=True)
class AnnealedLangevin(SteppedSampler):
    """Langevin dynamics at one noise level after the other.

    Attributes:
        num_steps: noise levels, the first at T and the last at t_min.
        steps_per_level: Langevin steps at each.
        step_size: e, below 1; the bias of a step's stationary variance is O(step_size). None is 0.1
            with the consistent rule and ``ncsnv2_step_size`` without.
        consistent: how much noise a step adds, above. False is NCSN's and NCSNv2's algorithm.
        denoise: return the denoised end state (Tweedie's formula, one evaluation more).
        t_min: the last time; None is the process's own.
    """

    num_steps: int = 400
    steps_per_level: int = 1
    step_size: float | None = None
    consistent: bool = True
    denoise: bool = True
    t_min: float | None = None

    def __post_init__(self) -> None:
        require_positive(steps_per_level=self.steps_per_level)
        if self.num_steps < 2:
            raise ValueError(f"num_steps = {self.num_steps!r}: allowed are integers of at least 2")
        if self.step_size is not None and not 0.0 < self.step_size < 1.0:
            raise ValueError(
                f"step_size = {self.step_size!r}: allowed are numbers above 0 and below 1"
            )

    @property
    def nfe(self) -> int:
        """Evaluations of the score for each sample."""
        return self.num_steps * self.steps_per_level + int(self.denoise)

    def solve(
        self,
        sde: SDE,
        score: ScoreFn,
        x: Array,
        noise: Callable[[Array], Array],
        keep: int = 0,
    ) -> Samples:
        times = self.times(sde)
        nu = jnp.exp(-0.5 * sde.log_snr(times))  # the noise of x / alpha
        to_next = jnp.append(nu[1:] / nu[:-1], 1.0)
        rescaling = jnp.exp(jnp.diff(sde.log_alpha(times), prepend=sde.log_alpha(times[:1])))
        step_size = self.step(sde)

        def level(x: Array, i: Array) -> tuple[Array, Array]:
            t, x = jnp.full(len(x), times[i]), rescaling[i] * x
            sigma = expand(sde.sigma(t), x)

            def langevin(repeat: int, x: Array) -> Array:
                if self.consistent:
                    r = jnp.where(repeat == self.steps_per_level - 1, to_next[i], 1.0)
                    e = jnp.maximum(step_size, 1.0 - r)
                    # Where e = 1 - r this is 0, or less by a rounding.
                    b = jnp.maximum(jnp.square(r) - jnp.square(1.0 - e), 0.0)
                else:
                    e, b = step_size, 2.0 * step_size
                z = noise(i * self.steps_per_level + repeat)
                return x + e * jnp.square(sigma) * score(x, t) + jnp.sqrt(b) * sigma * z

            x = jax.lax.fori_loop(0, self.steps_per_level, langevin, x)
            return x, x

        end, path = scan(level, x, self.num_steps, keep)
        if self.denoise:
            end = denoise(sde, score, end, jnp.full(len(x), times[-1]))
        return fixed_steps(x, end, path, self.nfe)

    def times(self, sde: SDE) -> Array:
        """The levels' times from T to t_min, uniform in log-SNR, (num_steps,)."""
        return times("log_snr", sde, self.num_steps - 1, self.last_time(sde))

    def step(self, sde: SDE) -> Array:
        """e, ()."""
        if self.step_size is not None:
            return jnp.asarray(self.step_size)
        if self.consistent:
            return jnp.asarray(CONSISTENT_STEP)
        nu = jnp.exp(-0.5 * sde.log_snr(self.times(sde)[:2]))
        return ncsnv2_step_size(nu[0] / nu[-1], self.steps_per_level)


def ncsnv2_step_size(ratio: Array, steps_per_level: int) -> Array:
    """The step size by technique 4 of NCSNv2 (Song, Ermon 2020, arXiv:2006.09011, eq. 4), ().

    Noise that comes from the level before with ``ratio`` squared times the right variance has

        (1 - e)^(2 T) (ratio^2 - v) + v,    v = 1 / (1 - e / 2),

    times the right one after T steps of size e: the e that brings this nearest to 1.
    """
    e = jnp.geomspace(1e-5, 0.99, 20_001)
    v = 1.0 / (1.0 - 0.5 * e)
    left = (1.0 - e) ** (2 * steps_per_level) * (jnp.square(ratio) - v) + v
    return e[jnp.argmin(jnp.abs(left - 1.0))]
