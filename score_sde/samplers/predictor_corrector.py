"""Predictor-corrector sampling (Song et al. 2021, algorithm 1 and appendix G).

Between two times t -> s the forward step is x_t = (1 + f) x_s + G z. The predictors reverse it:

    euler_maruyama      x - (drift - g^2 score) dt  + g sqrt(dt) z      eq. 6, discretized
    reverse_diffusion   x - f x + G^2 score         + G z               eq. 46
    ancestral           (x + G^2 score) / (1 + f)   + posterior_std z   Ho et al. 2020, eq. 7

The last is the mean of the Gaussian posterior q(x_s | x_t, x0) at Tweedie's x0, under any process:
with a = 1 + f and x0 = (x + sigma_t^2 score) / alpha_t, that mean,

    (a sigma_s^2 / sigma_t^2) x + (alpha_s G^2 / sigma_t^2) x0,

simplifies to it. The correctors are Langevin steps x + e score + sqrt(2 e) z that leave p_t as it
is:

    langevin            e = 2 (1 + f)^2 (snr |z| / |score|)^2           algorithms 4 and 5
    ald                 e = 2 (1 + f)^2 (snr sigma_t)^2
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from score_sde.samplers.base import Samples, SteppedSampler, fixed_steps, require_positive, scan
from score_sde.score import denoise
from score_sde.sde import SDE, ScoreFn, Step, expand


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
    """The forward chain's step with its sign turned, and the score's part."""
    mean = x - expand(step.f, x) * x + expand(jnp.square(step.G), x) * score(x, t)
    return mean + expand(step.G, x) * z, mean


def ancestral(
    sde: SDE, score: ScoreFn, x: Array, t: Array, dt: Array, step: Step, z: Array
) -> tuple[Array, Array]:
    """The Gaussian posterior of the forward chain's step."""
    mean = (x + expand(jnp.square(step.G), x) * score(x, t)) / expand(1.0 + step.f, x)
    return mean + expand(step.posterior_std, x) * z, mean


def langevin(
    x: Array, gradient: Array, z: Array, sigma: Array, step: Step, snr: float, faithful: bool
) -> tuple[Array, Array]:
    """A Langevin step whose size follows from the ratio of the norms of noise and score.

    A size that varies with the sample moves the law: towards p |score|^2, and further if it varies
    with z. So |z| is its root mean square sqrt(D), which leaves a variance (1 + 2 / D) (1 + snr^2)
    times the right one for a Gaussian in D dimensions. This rule is one for images: in a few
    dimensions a sample near a mode has a score near 0, and its step no bound; `ald` has one.
    """
    if faithful:  # the original averages both norms over the batch
        noise_norm, score_norm = jnp.mean(_norm(z))[None], jnp.mean(_norm(gradient))[None]
    else:
        noise_norm, score_norm = jnp.sqrt(z[0].size), _norm(gradient)
    size = 2.0 * jnp.square(1.0 + step.f) * jnp.square(snr * noise_norm / score_norm)
    return _langevin_update(x, gradient, z, size)


def annealed_langevin(
    x: Array, gradient: Array, z: Array, sigma: Array, step: Step, snr: float, faithful: bool
) -> tuple[Array, Array]:
    """A Langevin step whose size is a fixed fraction of the noise's variance."""
    return _langevin_update(
        x, gradient, z, 2.0 * jnp.square(1.0 + step.f) * jnp.square(snr * sigma)
    )


def _langevin_update(x: Array, gradient: Array, z: Array, size: Array) -> tuple[Array, Array]:
    mean = x + expand(size, x) * gradient
    return mean + expand(jnp.sqrt(2.0 * size), x) * z, mean


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=range(1, x.ndim)))


PREDICTORS = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "none": None,
}
CORRECTORS = {"langevin": langevin, "ald": annealed_langevin, "none": None}


@dataclass(frozen=True)
class PredictorCorrector(SteppedSampler):
    """Alternate a predictor over a grid uniform in t from T to t_min and a corrector at the time
    reached.

    ``faithful`` follows the original code instead of the paper's algorithm box: the corrector comes
    first and at the predictor's time, steps are those of ``SDE.discretize`` with 1 / num_steps in
    place of the grid's distance, Langevin's norms are averaged over the batch (so a sample depends
    on its batch-mates), and ``denoise`` returns the last predictor's mean. Otherwise the chain's
    own transitions between the grid's times are used, norms are per sample, and ``denoise`` is
    Tweedie's formula at t_min, one evaluation more.

    Attributes:
        num_steps: predictor steps.
        predictor: a key of ``PREDICTORS``, or a function with the arguments of `euler_maruyama`.
        corrector: a key of ``CORRECTORS``, or a function with the arguments of `langevin`.
        corrector_steps: corrector steps at each time.
        snr: signal-to-noise ratio of a corrector step.
        probability_flow: predict by the probability flow instead of the reverse SDE: half the score
            and no noise (Song et al. 2021, eq. 13 and 48). Not for `ancestral`.
        denoise: return the denoised end state instead of the one at t_min.
        faithful: as the original code, above.
        t_min: the last time; None is the process's own.
    """

    num_steps: int = 1000
    predictor: str | Callable[..., tuple[Array, Array]] = "euler_maruyama"
    corrector: str | Callable[..., tuple[Array, Array]] = "none"
    corrector_steps: int = 1
    snr: float = 0.16
    probability_flow: bool = False
    denoise: bool = True
    faithful: bool = False
    t_min: float | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("predictor", self.predictor, PREDICTORS),
            ("corrector", self.corrector, CORRECTORS),
        ):
            if not callable(value) and value not in allowed:
                raise ValueError(f"{name} = {value!r}: allowed are {', '.join(allowed)}")
        if self.probability_flow and self.predictor in ("ancestral", "none"):
            raise ValueError(
                f"predictor = {self.predictor!r}: allowed are euler_maruyama, reverse_diffusion "
                "with probability_flow = True"
            )
        if self.predictor == self.corrector == "none":
            names = ", ".join(name for name in CORRECTORS if name != "none")
            raise ValueError(f"corrector = 'none': allowed are {names} with predictor = 'none'")
        require_positive(
            num_steps=self.num_steps, corrector_steps=self.corrector_steps, snr=self.snr
        )

    def check(self, sde: SDE) -> None:
        # The steps of Euler and Maruyama alone do not take the chain's coefficients.
        if self.faithful and (self.corrections or self.predictor not in ("euler_maruyama", "none")):
            sde.check_discretization(self.num_steps)

    @property
    def levels(self) -> str:
        return "original" if self.faithful else "matched"

    @property
    def without_effect(self) -> set[str]:
        return {"corrector_steps", "snr"} if self.corrector == "none" else set()

    @property
    def coupled(self) -> bool:
        return self.faithful and self.corrector == "langevin"

    @property
    def corrections(self) -> int:
        """Corrector steps at each time."""
        return 0 if self.corrector == "none" else self.corrector_steps

    @property
    def nfe(self) -> int:
        """Evaluations of the score for each sample."""
        predictions = 0 if self.predictor == "none" else 1
        return self.num_steps * (predictions + self.corrections) + int(
            self.denoise and not self.faithful
        )

    def solve(
        self,
        sde: SDE,
        score: ScoreFn,
        x: Array,
        noise: Callable[[Array], Array],
        keep: int = 0,
    ) -> Samples:
        times, draws = self.times(sde), self.corrections + 1

        def level(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
            x, _ = carry
            t, s = jnp.full(len(x), times[i]), jnp.full(len(x), times[i + 1])
            noises = jnp.stack([noise(i * draws + draw) for draw in range(draws)])
            x, mean = self.step(sde, score, x, t, s, noises)
            return (x, mean), x

        (end, mean), path = scan(level, (x, x), self.num_steps, keep)
        if self.denoise:
            t = jnp.full(len(x), times[-1])
            end = mean if self.faithful else denoise(sde, score, end, t)
        return fixed_steps(x, end, path, self.nfe)

    def times(self, sde: SDE) -> Array:
        """Times of the predictor's steps and the last one reached, (num_steps + 1,)."""
        t_min = self.last_time(sde)
        if self.faithful:  # N times, both ends included: the step taken at t_min is the last
            grid = jnp.linspace(sde.T, t_min, self.num_steps)
            return jnp.concatenate([grid, grid[-1:]])
        return jnp.linspace(sde.T, t_min, self.num_steps + 1)

    def step(
        self, sde: SDE, score: ScoreFn, x: Array, t: Array, s: Array, z: Array
    ) -> tuple[Array, Array]:
        """One level t -> s, each (B,): the state x (B, *shape) at s and its mean.

        z holds the noises (corrections + 1, B, *shape): the corrector's first, then the
        predictor's.
        """
        if self.faithful:
            coefficients = sde.discretize(t, self.num_steps)
            x, mean = self.correct(sde, score, x, t, coefficients, z[:-1])
            return self.predict(
                sde, score, x, t, jnp.full_like(t, 1.0 / self.num_steps), coefficients, z[-1]
            )
        coefficients = sde.reverse_step(s, t)
        x, mean = self.predict(sde, score, x, t, t - s, coefficients, z[-1])
        return (
            self.correct(sde, score, x, s, coefficients, z[:-1]) if self.corrections else (x, mean)
        )

    def predict(
        self, sde: SDE, score: ScoreFn, x: Array, t: Array, dt: Array, step: Step, z: Array
    ) -> tuple[Array, Array]:
        """The predictor's step at t: (next state, its mean)."""
        chosen = self.predictor
        predictor = PREDICTORS[chosen] if isinstance(chosen, str) else chosen
        if predictor is None:
            return x, x
        if self.probability_flow:
            _, mean = predictor(sde, lambda x, t: 0.5 * score(x, t), x, t, dt, step, z)
            return mean, mean
        return predictor(sde, score, x, t, dt, step, z)

    def correct(
        self, sde: SDE, score: ScoreFn, x: Array, t: Array, step: Step, z: Array
    ) -> tuple[Array, Array]:
        """The corrector's steps at t, one for each noise in z: (next state, its mean)."""
        chosen = self.corrector
        corrector = CORRECTORS[chosen] if isinstance(chosen, str) else chosen
        mean = x
        for noise in z[: self.corrections]:
            assert corrector is not None
            x, mean = corrector(x, score(x, t), noise, sde.sigma(t), step, self.snr, self.faithful)
        return x, mean
