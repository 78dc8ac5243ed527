"""Predictor-corrector sampling (Song et al. 2021, algorithm 1 and appendix G).

Between two times t -> s the forward step is x_t = (1 + f) x_s + G z. The predictors reverse it:

    euler_maruyama      x - (drift - g^2 score) dt  + g sqrt(dt) z      eq. 6, discretized
    reverse_diffusion   x - f x + G^2 score         + G z               eq. 46
    ancestral           (x + G^2 score) / (1 + f)   + posterior_std z   Ho et al. 2020, eq. 7
    ancestral_large     the same mean               + G z               ibid., section 3.2
    ancestral_learned   the same mean               + G^v posterior_std^(1 - v) z

In the last one the network says the share v, number by number (Nichol, Dhariwal 2021, improved
DDPM, arXiv:2102.09672, eq. 15). G and posterior_std are of the step from t to s. So between some of
a chain's levels, as the spacings of ``grid`` choose them, it is their respaced sampling (section
4).

Under any process, the mean of these three is that of the Gaussian posterior q(x_s | x_t, x0) at
Tweedie's x0: with a = 1 + f and x0 = (x + sigma_t^2 score) / alpha_t, the posterior's mean

    (a sigma_s^2 / sigma_t^2) x + (alpha_s G^2 / sigma_t^2) x0

simplifies to it. The correctors are Langevin steps x + e score + sqrt(2 e) z, which leave p_t as it
is:

    langevin            e = 2 (1 + f)^2 (snr |z| / |score|)^2           algorithms 4 and 5
    ald                 e = 2 (1 + f)^2 (snr sigma_t)^2
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from jax import Array

from score_sde.discrete import check_steps, original_step
from score_sde.errors import besides, require
from score_sde.samplers.base import norm, require_positive
from score_sde.samplers.grids import SPACINGS, GridSampler
from score_sde.samplers.stepped import Context
from score_sde.sde import SDE, ScoreFn, Step, expand

Predictor = Callable[[SDE, ScoreFn, Array, Array, Array, Step, Array], tuple[Array, Array]]
"""(sde, score, x, t, dt, step, z) -> the next state, at t - dt, and its mean. dt is (B,), ``step``
has the forward step's coefficients, and z (B, *shape) is the noise. A predictor may evaluate the
score any number of times: each call in Python is counted, one within a loop of `jax.lax` once."""
Corrector = Callable[[SDE, ScoreFn, Array, Array, Step, Array, float, bool], tuple[Array, Array]]
"""(sde, score, x, t, step, z, snr, faithful) -> the next state at t and its mean."""


def euler_maruyama(
    sde: SDE, score: ScoreFn, x: Array, t: Array, dt: Array, step: Step, z: Array
) -> tuple[Array, Array]:
    """One step of the reverse SDE: (next state, its mean)."""
    reverse = sde.reverse(score)
    mean = x - reverse.drift(x, t) * expand(dt, x)
    return mean + expand(reverse.diffusion(t) * jnp.sqrt(dt), x) * z, mean


def reverse_diffusion(
    sde: SDE, score: ScoreFn, x: Array, t: Array, dt: Array, step: Step, z: Array
) -> tuple[Array, Array]:
    """The forward chain's step with the opposite sign, and the score's part."""
    mean = x - expand(step.f, x) * x + expand(jnp.square(step.G), x) * score(x, t)
    return mean + expand(step.G, x) * z, mean


def ancestral(
    sde: SDE, score: ScoreFn, x: Array, t: Array, dt: Array, step: Step, z: Array
) -> tuple[Array, Array]:
    """The Gaussian posterior of the forward chain's step."""
    mean = _posterior_mean(x, score(x, t), step)
    return mean + expand(step.posterior_std, x) * z, mean


def ancestral_large(
    sde: SDE, score: ScoreFn, x: Array, t: Array, dt: Array, step: Step, z: Array
) -> tuple[Array, Array]:
    """The posterior's mean, with the forward step's noise."""
    mean = _posterior_mean(x, score(x, t), step)
    return mean + expand(step.G, x) * z, mean


def ancestral_learned(
    sde: SDE, score: Any, x: Array, t: Array, dt: Array, step: Step, z: Array
) -> tuple[Array, Array]:
    """The posterior's mean, with the noise that the network says (`Model.score_and_share`)."""
    found, share = score.score_and_share(x, t)
    mean = _posterior_mean(x, found, step)
    large, small = (expand(jnp.log(std), x) for std in (step.G, step.posterior_std))
    return mean + jnp.exp(share * large + (1.0 - share) * small) * z, mean


class _Cut:
    """A score whose denoised data are cut to [-clip, clip]."""

    def __init__(self, sde: SDE, score: Any, clip: float) -> None:
        self.sde, self.score, self.clip = sde, score, clip

    def __call__(self, x: Array, t: Array) -> Array:
        return self._cut(self.score(x, t), x, t)

    def score_and_share(self, x: Array, t: Array) -> tuple[Array, Array]:
        score, share = self.score.score_and_share(x, t)
        return self._cut(score, x, t), share

    def _cut(self, score: Array, x: Array, t: Array) -> Array:
        alpha, sigma2 = expand(self.sde.alpha(t), x), expand(jnp.square(self.sde.sigma(t)), x)
        x0 = jnp.clip((x + sigma2 * score) / alpha, -self.clip, self.clip)
        return (alpha * x0 - x) / sigma2


def _posterior_mean(x: Array, score: Array, step: Step) -> Array:
    return (x + expand(jnp.square(step.G), x) * score) / expand(1.0 + step.f, x)


def langevin(
    sde: SDE, score: ScoreFn, x: Array, t: Array, step: Step, z: Array, snr: float, faithful: bool
) -> tuple[Array, Array]:
    """A Langevin step whose size follows from the ratio of the norms of noise and score.

    A step size that varies with the sample changes the law: towards p |score|^2, and further if it
    varies with z. So |z| is replaced by its root mean square sqrt(D). For a Gaussian in D
    dimensions this leaves (1 + 2 / D) (1 + snr^2) times the right variance. The rule is for images.
    In a few dimensions a sample near a mode has a score near 0, and its step has no bound; the step
    of `ald` has one.
    """
    gradient = score(x, t)
    if faithful:  # the original averages both norms over the batch
        noise_norm, score_norm = jnp.mean(norm(z))[None], jnp.mean(norm(gradient))[None]
    else:
        noise_norm, score_norm = jnp.sqrt(z[0].size), norm(gradient)
    size = 2.0 * jnp.square(1.0 + step.f) * jnp.square(snr * noise_norm / score_norm)
    return _langevin_update(x, gradient, z, size)


def annealed_langevin(
    sde: SDE, score: ScoreFn, x: Array, t: Array, step: Step, z: Array, snr: float, faithful: bool
) -> tuple[Array, Array]:
    """A Langevin step whose size is a fixed fraction of the noise's variance."""
    size = 2.0 * jnp.square(1.0 + step.f) * jnp.square(snr * sde.sigma(t))
    return _langevin_update(x, score(x, t), z, size)


def _langevin_update(x: Array, gradient: Array, z: Array, size: Array) -> tuple[Array, Array]:
    mean = x + expand(size, x) * gradient
    return mean + expand(jnp.sqrt(2.0 * size), x) * z, mean


PREDICTORS: dict[str, Predictor | None] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "ancestral_large": ancestral_large,
    "ancestral_learned": ancestral_learned,
    "none": None,
}
CORRECTORS: dict[str, Corrector | None] = {
    "langevin": langevin,
    "ald": annealed_langevin,
    "none": None,
}

ANCESTRAL = (ancestral, ancestral_large, ancestral_learned)
LEARNED = tuple(name for name, found in PREDICTORS.items() if found is ancestral_learned)


@dataclass(frozen=True)
class PredictorCorrector(GridSampler):
    """Alternate a predictor over times from T to t_min and a corrector at the time reached. Unless
    there is a ``grid``, the times are uniform in t.

    ``faithful`` follows the original code instead of the paper's algorithm box:

    - The corrector comes first, at the predictor's time.
    - Steps are those of ``discrete.original_step``, with 1 / num_steps in place of the grid's
      distance.
    - Langevin's norms are averaged over the batch, so a sample depends on its batch-mates.
    - ``denoise`` returns the last predictor's mean.
    - A projection acts after the corrector and after the predictor, both at the predictor's time.
      If it has a method ``mean(x, t)``, what ``denoise`` returns is that of the projected state.

    Otherwise steps are the process's exact transitions between the grid's times. Norms are per
    sample. ``denoise`` returns the denoised state at t_min, at one evaluation more.

    Attributes:
        num_steps: predictor steps.
        denoise: return the denoised end state instead of the one at t_min.
        t_min: the last time; None is the process's own.
        predictor: a key of ``PREDICTORS``, or any ``Predictor``.
        corrector: a key of ``CORRECTORS``, or any ``Corrector``.
        corrector_steps: corrector steps at each time.
        snr: signal-to-noise ratio of a corrector step.
        probability_flow: predict by the probability flow instead of the reverse SDE: half the score
            and no noise (Song et al. 2021, eq. 13 and 48). Not for `ancestral` and its kin.
        faithful: as the original code (see above). Not for processes with T above 1.
        clip: the predictor cuts the denoised data to [-clip, clip], as DDPM's codes do; 0: not.
        grid: the times, one of ``grids.GRIDS``; None: uniform in t, also between a chain's levels.
        rho, steps_offset, num_levels: of the grid.
    """

    num_steps: int = 1000
    predictor: str | Predictor = "euler_maruyama"
    corrector: str | Corrector = "none"
    corrector_steps: int = 1
    snr: float = 0.16
    probability_flow: bool = False
    faithful: bool = False
    clip: float = 0.0
    grid: str | None = field(default=None, kw_only=True)  # type: ignore[assignment]  # frozen

    def __post_init__(self) -> None:
        if self.grid is not None:
            super().__post_init__()
            require(not self.faithful, "grid", self.grid, "unset with faithful = True")
        for name, table in (("predictor", PREDICTORS), ("corrector", CORRECTORS)):
            value = getattr(self, name)
            require(callable(value) or value in table, name, value, ", ".join(table))
        names = ", ".join(name for name, corrector in CORRECTORS.items() if corrector)
        ok = self._predictor is not None or self._corrector is not None
        require(ok, "corrector", self.corrector, f"{names} with predictor = 'none'")
        without = (*ANCESTRAL, None)
        flows = ", ".join(name for name, found in PREDICTORS.items() if found not in without)
        ok = not self.probability_flow or self._predictor not in without
        require(ok, "predictor", self.predictor, f"{flows} with probability_flow = True")
        allowed = f"{besides(PREDICTORS, *LEARNED)} with faithful = True, of one variance a step"
        ok = not (self.faithful and self.reads_variance)
        require(ok, "predictor", self.predictor, allowed)
        require(self.clip >= 0, "clip", self.clip, "0 and positive numbers")
        require_positive(
            num_steps=self.num_steps, corrector_steps=self.corrector_steps, snr=self.snr
        )

    @property
    def _predictor(self) -> Predictor | None:
        return PREDICTORS[self.predictor] if isinstance(self.predictor, str) else self.predictor

    @property
    def _corrector(self) -> Corrector | None:
        return CORRECTORS[self.corrector] if isinstance(self.corrector, str) else self.corrector

    def check(self, sde: SDE) -> None:
        super().check(sde)
        if self.faithful and isinstance(sde.T, int | float):  # else it may be a tracer
            allowed = f"False with T = {sde.T:g}, as the original's steps are 1 / num_steps"
            require(sde.T <= 1, "faithful", True, allowed)
        # All steps use the chain's coefficients, except Euler and Maruyama's.
        if self.faithful and (self.corrections or self._predictor not in (euler_maruyama, None)):
            check_steps(sde, self.num_steps)

    def check_start(self, sde: SDE, score: Any) -> None:
        if self.grid not in SPACINGS:  # whose levels end before alpha is 0
            super().check_start(sde, score)
        ok = not self.reads_variance or hasattr(score, "score_and_share")
        allowed = f"{besides(PREDICTORS, *LEARNED)} for a score without learned variances"
        require(ok, "predictor", self.predictor, allowed)

    @property
    def levels(self) -> str:
        return "original" if self.faithful else "matched"

    @property
    def reads_variance(self) -> bool:
        return self._predictor is ancestral_learned

    @property
    def coupled(self) -> bool:
        return self.faithful and self._corrector is langevin

    @property
    def corrections(self) -> int:
        """Corrector steps at each time."""
        return self.corrector_steps if self._corrector else 0

    @property
    def without_effect(self) -> set[str]:
        of_grid = super().without_effect if self.grid else {"rho", "steps_offset"}
        return of_grid | (set() if self.corrections else {"corrector_steps", "snr"})

    def times(self, sde: SDE) -> Array:
        """Times of the predictor's steps and the last one reached, (num_steps + 1,)."""
        t_min = self.last_time(sde)
        if self.faithful:  # N times, both ends included: the step taken at t_min is the last
            grid = sde.time_steps(sde.T, t_min, self.num_steps)
            return jnp.concatenate([grid, grid[-1:]])
        return super().times(sde) if self.grid else sde.time_steps(sde.T, t_min, self.num_steps + 1)

    def memory(self, x: Array) -> Array:
        """The mean of the last update, which `faithful` denoising returns."""
        return x

    def step(self, x: Array, memory: Array, i: Array, c: Context) -> tuple[Array, Array]:
        draws = self.corrections + 1
        noises = jnp.stack([c.noise(x, i * draws + draw) for draw in range(draws)])
        if self.faithful and c.project is not None:
            return self._faithful_level(x, i, noises, c)
        return self.level(c.sde, c.score, x, c.t(i), c.t(i + 1), noises)

    def _faithful_level(self, x: Array, i: Array, z: Array, c: Context) -> tuple[Array, Array]:
        """A level of the original's conditional samplers (controllable_generation.py)."""
        t, dt = c.t(i), jnp.full(len(x), 1.0 / self.num_steps, x.dtype)
        coefficients = original_step(c.sde, t, self.num_steps)
        x, _ = self.correct(c.sde, c.score, x, t, coefficients, z[:-1])
        x = c.projected(x, t, 2 * i)
        x, _ = self.predict(c.sde, c.score, x, t, dt, coefficients, z[-1])
        x = c.projected(x, t, 2 * i + 1)
        return x, c.project.mean(x, t) if hasattr(c.project, "mean") else x

    def after(self, x: Array, i: Array, c: Context) -> Array:
        return x if self.faithful else super().after(x, i, c)

    def end(self, x: Array, memory: Array, c: Context) -> Array:
        x = memory if self.faithful and self.denoise else super().end(x, memory, c)
        return jnp.clip(x, -self.clip, self.clip) if self.denoise and self.clip else x

    def level(
        self, sde: SDE, score: ScoreFn, x: Array, t: Array, s: Array, z: Array
    ) -> tuple[Array, Array]:
        """One level t -> s, each (B,): the state x (B, *shape) at s and its mean.

        z holds the noises (corrections + 1, B, *shape): the corrector's first, then the
        predictor's.
        """
        if self.faithful:
            coefficients = original_step(sde, t, self.num_steps)
            x, mean = self.correct(sde, score, x, t, coefficients, z[:-1])
            dt = jnp.full_like(t, 1.0 / self.num_steps)
            return self.predict(sde, score, x, t, dt, coefficients, z[-1])
        coefficients = sde.reverse_step(s, t)
        x, mean = self.predict(sde, score, x, t, t - s, coefficients, z[-1])
        if not self.corrections:
            return x, mean
        return self.correct(sde, score, x, s, coefficients, z[:-1])

    def predict(
        self, sde: SDE, score: ScoreFn, x: Array, t: Array, dt: Array, step: Step, z: Array
    ) -> tuple[Array, Array]:
        """The predictor's step at t: (next state, its mean)."""
        predictor = self._predictor
        if predictor is None:
            return x, x
        if self.clip:
            score = _Cut(sde, score, self.clip)
        if self.probability_flow:
            _, mean = predictor(sde, lambda x, t: 0.5 * score(x, t), x, t, dt, step, z)
            return mean, mean
        return predictor(sde, score, x, t, dt, step, z)

    def correct(
        self, sde: SDE, score: ScoreFn, x: Array, t: Array, step: Step, z: Array
    ) -> tuple[Array, Array]:
        """The corrector's steps at t, one for each noise in z: (next state, its mean)."""
        corrector, mean = self._corrector, x
        for noise in z[: self.corrections]:
            assert corrector is not None
            x, mean = corrector(sde, score, x, t, step, noise, self.snr, self.faithful)
        return x, mean
