"""Heun's method with churn (Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364,
algorithm 2).

In y = x / alpha and nu = sigma / alpha the probability flow of every process is the same,

    dy/dnu = (y - D) / nu,     D = E[x0 | x]                                            (eq. 3),

so the algorithm, written for alpha = 1, is one for them all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from score_sde.samplers.base import Samples, fixed_steps, require_positive, scan
from score_sde.samplers.grids import GridSampler, nearest_levels
from score_sde.score import denoise
from score_sde.sde import SDE, ScoreFn


@dataclass(frozen=True)
class Heun(GridSampler):
    """Heun's second-order steps, each from a little above its noise level where there is churn.

    The grid is the paper's: with some 37 evaluations none is nearer to the truth by more than the
    standard errors, under any process, on a mixture and on digits (benchmarks/README.md). With
    fewer, `log_snr` is on digits under VP. The first steps of `angle` are too long in nu for
    Euler's.

    The paper's last step, from the lowest level to 0, is ``denoise``: an Euler step to nu = 0 ends
    at D. Churn does not lift a state above the level of T, where the network was not trained.

    Attributes:
        num_steps: steps, of two evaluations each.
        churn: S_churn: a step starts from nu (1 + min(churn / num_steps, sqrt(2) - 1)). 0 is the
            probability flow.
        churn_from: S_tmin: no churn at nu below this.
        churn_to: S_tmax: no churn at nu above this.
        churn_noise: S_noise: standard deviation of the added noise.
        grid, rho, num_levels, denoise, t_min: as of every ``GridSampler``.
    """

    num_steps: int = 18
    churn: float = 0.0
    churn_from: float = 0.0
    churn_to: float = float("inf")
    churn_noise: float = 1.0
    grid: str = "karras"
    rho: float = 7.0
    num_levels: int = 0
    denoise: bool = True
    t_min: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(churn_noise=self.churn_noise, churn_to=self.churn_to)
        for name in ("churn", "churn_from"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name} = {value!r}: allowed are numbers of at least 0")
        if self.churn_to < self.churn_from:
            raise ValueError(
                f"churn_to = {self.churn_to!r}: allowed are numbers from churn_from = "
                f"{self.churn_from!r} on"
            )

    @property
    def without_effect(self) -> set[str]:
        of_churn = {"churn_from", "churn_to", "churn_noise"}
        return super().without_effect | (set() if self.churn else of_churn)

    @property
    def nfe(self) -> int:
        """Evaluations of the score for each sample."""
        return 2 * self.intervals + int(self.denoise)

    def solve(
        self,
        sde: SDE,
        score: ScoreFn,
        x: Array,
        noise: Callable[[Array], Array],
        keep: int = 0,
    ) -> Samples:
        times = self.times(sde)
        alpha, nu = sde.alpha(times), jnp.exp(-0.5 * sde.log_snr(times))
        churned = (nu >= self.churn_from) & (nu <= self.churn_to)
        gamma = jnp.where(churned, min(self.churn / self.intervals, 2.0**0.5 - 1.0), 0.0)
        gamma = jnp.minimum(gamma, jnp.maximum(nu[0] / nu - 1.0, 0.0))
        nu_hat = nu * (1.0 + gamma)
        if self.num_levels:  # a level that the network knows, perhaps the same
            levels = nearest_levels(sde, -2.0 * jnp.log(nu_hat), self.num_levels)
            gamma = jnp.where(gamma > 0.0, jnp.maximum(jnp.exp(-0.5 * levels) / nu - 1.0, 0.0), 0.0)
            nu_hat = nu * (1.0 + gamma)
        lift = nu * jnp.sqrt(gamma * (2.0 + gamma))  # sqrt(nu_hat^2 - nu^2) without cancellation
        # The inverse rounds: where nothing is lifted, the grid's own times.
        t_hat = jnp.where(gamma > 0.0, sde.inverse_log_snr(-2.0 * jnp.log(nu_hat)), times)

        def slope(y: Array, nu: Array, t: Array) -> Array:
            alpha = sde.alpha(t[None])[0]
            return (y - denoise(sde, score, alpha * y, jnp.full(len(y), t))) / nu

        def step(y: Array, i: Array) -> tuple[Array, Array]:
            if self.churn:
                y = y + lift[i] * self.churn_noise * noise(i)
            d = slope(y, nu_hat[i], t_hat[i])
            euler = y + (nu[i + 1] - nu_hat[i]) * d
            d_next = slope(euler, nu[i + 1], times[i + 1])
            y = y + (nu[i + 1] - nu_hat[i]) * 0.5 * (d + d_next)
            return y, alpha[i + 1] * y

        end, path = scan(step, x / alpha[0], self.intervals, keep)
        end = alpha[-1] * end
        if self.denoise:
            end = denoise(sde, score, end, jnp.full(len(x), times[-1]))
        return fixed_steps(x, end, path, self.nfe)
