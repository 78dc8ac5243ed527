"""Heun's method with churn (Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364,
algorithm 2).

In y = x / alpha and nu = sigma / alpha the probability flow of every process is the same,

    dy/dnu = (y - D) / nu,     D = E[x0 | x]                               (eq. 1 with eq. 3),

so the algorithm for alpha = 1 serves them all.
"""

from dataclasses import dataclass, field

import jax.numpy as jnp
from jax import Array

from score_sde.errors import require
from score_sde.samplers.base import require_positive
from score_sde.samplers.grids import GridSampler, nearest_levels
from score_sde.samplers.stepped import Context
from score_sde.score import denoise
from score_sde.sde import SDE


@dataclass(frozen=True)
class Heun(GridSampler):
    """Heun's second-order steps, each from a little above its noise level where there is churn.

    The grid is the paper's. With some 37 evaluations no other is nearer to the truth by more than
    the standard errors, under any process, on a mixture and on digits (benchmarks/README.md). With
    fewer evaluations `log_snr` is nearer, on digits under VP. The first steps of `angle` are too
    long in nu for Euler's method.

    The paper's last step, from the lowest level to 0, is ``denoise``: an Euler step to nu = 0 ends
    at D. So the paper's N steps are ``num_steps = N - 1`` and that one. It has no churn here, nor
    in the paper's settings, whose S_tmin lies above. Churn does not lift a state above the level of
    T, where the network was not trained.

    Attributes:
        churn: S_churn: a step starts from nu (1 + min(churn / N, sqrt(2) - 1)). 0 is the
            probability flow.
        churn_from: S_tmin: no churn at nu below this.
        churn_to: S_tmax: no churn at nu above this.
        churn_noise: S_noise: standard deviation of the added noise.
        num_steps and the others: as of every ``GridSampler``; a step is two evaluations.
    """

    num_steps: int = 18
    grid: str = field(default="karras", kw_only=True)
    churn: float = 0.0
    churn_from: float = 0.0
    churn_to: float = float("inf")
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(churn_noise=self.churn_noise, churn_to=self.churn_to)
        for name in ("churn", "churn_from"):
            value = getattr(self, name)
            require(value >= 0, name, value, "numbers of at least 0")
        allowed = f"numbers from churn_from = {self.churn_from!r} on"
        require(self.churn_to >= self.churn_from, "churn_to", self.churn_to, allowed)

    @property
    def without_effect(self) -> set[str]:
        of_churn = set() if self.churn else {"churn_from", "churn_to", "churn_noise"}
        return super().without_effect | of_churn

    def tables(self, sde: SDE, times: Array) -> tuple[Array, ...]:
        """Of the times: alpha and nu. Of the steps: nu_hat, the noise level after churn, its time,
        and the noise that lifts the state there."""
        nu = jnp.exp(-0.5 * sde.log_snr(times))
        churned = (nu >= self.churn_from) & (nu <= self.churn_to)
        most = min(self.churn / (len(times) - 1 + self.denoise), 2.0**0.5 - 1.0)
        # Not above the level of T: the network was not trained there.
        gamma = jnp.minimum(jnp.where(churned, most, 0.0), jnp.maximum(nu[0] / nu - 1.0, 0.0))
        if self.num_levels:  # to a level of the chain, perhaps the same
            levels = nearest_levels(sde, -2.0 * jnp.log(nu * (1.0 + gamma)), self.num_levels)
            known = jnp.maximum(jnp.exp(-0.5 * levels) / nu - 1.0, 0.0)
            gamma = jnp.where(gamma > 0.0, known, 0.0)
        nu_hat = nu * (1.0 + gamma)
        # The inverse rounds. Without a lift the times are those of the grid.
        t_hat = jnp.where(gamma > 0.0, sde.inverse_log_snr(-2.0 * jnp.log(nu_hat)), times)
        lift = nu * jnp.sqrt(gamma * (2.0 + gamma))  # sqrt(nu_hat^2 - nu^2) without cancellation
        return sde.alpha(times), nu, nu_hat, t_hat, lift

    def step(self, x: Array, memory: None, i: Array, c: Context) -> tuple[Array, None]:
        alpha, nu, nu_hat, t_hat, lift = c.tables

        def slope(y: Array, nu: Array, time: Array) -> Array:
            t = jnp.full(len(y), time)
            return (y - denoise(c.sde, c.score, c.sde.alpha(time[None])[0] * y, t)) / nu

        y = x / alpha[i]
        if self.churn:
            y = y + lift[i] * self.churn_noise * c.noise(x, i)
        d = slope(y, nu_hat[i], t_hat[i])
        euler = y + (nu[i + 1] - nu_hat[i]) * d
        d_next = slope(euler, nu[i + 1], c.times[i + 1])
        y = y + (nu[i + 1] - nu_hat[i]) * 0.5 * (d + d_next)
        return alpha[i + 1] * y, None
