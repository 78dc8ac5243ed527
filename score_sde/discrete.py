"""Discrete chains: the noise levels of networks trained on N levels, and the original code's steps.

A network trained on a chain gets a level instead of a time. Levels are counted as the published
networks count them: DDPM's level 0 has the least noise, SMLD's level 0 the most.

References:
    Ho et al. 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239 (DDPM).
    Song, Ermon 2019, Generative Modeling by Estimating Gradients of the Data Distribution,
    arXiv:1907.05600 (SMLD).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.errors import require
from score_sde.schedules import Cosine
from score_sde.sde import SDE, VESDE, VP, VPSDE, Step


class Chain(NamedTuple):
    """The N noise levels of a discretely trained network: x = alpha x0 + sigma z, with a row for
    each integer level.

    Attributes:
        alpha: factor of the data, (N,).
        sigma: standard deviation of the noise, (N,).
    """

    alpha: Array
    sigma: Array

    def log_snr(self) -> Array:
        """2 log(alpha / sigma) of each level, (N,)."""
        return 2.0 * (jnp.log(self.alpha) - jnp.log(self.sigma))


class Levels(NamedTuple):
    """The levels k of a chain from the least noise on, and the steps between them, (N,) each.

    Attributes:
        order: the level's number in the chain, int32.
        alpha, sigma: of the level.
        growth: SNR_{k-1} / SNR_k - 1; 0 for the first.
        log_ratio: log of the smaller variance of the step from k over the larger. For the first, of
            the smaller variance of the next step over sigma^2: those of the decoder.
    """

    order: Array
    alpha: Array
    sigma: Array
    growth: Array
    log_ratio: Array


def levels_of(chain: Chain, dtype: Any) -> Levels:
    """The levels and steps of a chain, as numbers of this dtype."""
    order = jnp.argsort(-chain.log_snr())  # as DDPM counts them
    alpha, sigma = (table[order].astype(dtype) for table in chain)
    log_snr = Chain(alpha, sigma).log_snr()
    fall = log_snr[:-1] - log_snr[1:]
    growth = jnp.concatenate([jnp.zeros_like(fall[:1]), jnp.expm1(fall)])
    of_decoder = jnp.log(-jnp.expm1(-fall[:1]))
    log_ratio = jnp.concatenate([of_decoder, 2.0 * (jnp.log(sigma[:-1]) - jnp.log(sigma[1:]))])
    return Levels(order, alpha, sigma, growth, log_ratio)


def interpolate(x: Array, places: Array, values: Array) -> Array:
    """`jnp.interp`: the values (N,) at rising places (N,), linearly between them, at x (B,).

    It compares with all places instead of searching in a loop. Inside of another loop, as a
    sampler's, XLA cannot compile such a search for GPUs (jax 0.11.2)."""
    after = jnp.clip(jnp.searchsorted(places, x, side="right", method="compare_all"), 1,
                     len(places) - 1)  # fmt: skip
    width = places[after] - places[after - 1]
    share = (x - places[after - 1]) / jnp.where(width > 0.0, width, 1.0)
    found = values[after - 1] + share * (values[after] - values[after - 1])
    found = jnp.where(x < places[0], values[0], found)
    return jnp.where(x > places[-1], values[-1], found)


NO_DATA = 170.0  # B that stands for infinity: alpha = 1e-37, ten times float32's smallest number


class DiscreteVPSDE(VP):
    """Variance-preserving through the N levels of a chain: x_k = sqrt(1 - beta_k) x_{k-1} +
    sqrt(beta_k) z (Ho et al. 2020, eq. 2 and 4), with any betas.

    Level k = 0 ... N - 1 is the time k / (N - 1). There the noise is the chain's own: B(t) = -sum_j
    log(1 - beta_j), j = 0 ... k. B is linear in t between two levels. So sigma(0) is sqrt(beta_0),
    not 0, as it is the least noise that a network of this chain has seen.

    Attributes:
        betas: beta_0 ... beta_{N-1}, above 0 and below 1. The last may be 1: then alpha(T) = 0
            (Lin et al. 2024, arXiv:2305.08891).

    Raises:
        ValueError: other betas, or fewer than two.
    """

    t_min: ClassVar[float] = 1e-5
    betas: Any

    def __post_init__(self) -> None:
        if isinstance(self.betas, tuple | list):  # else it is an array already, or a tracer
            betas = np.asarray(self.betas, np.float64)
            ok = betas.ndim == 1 and len(betas) > 1 and bool(np.all(betas > 0.0))
            ok = ok and bool(np.all(betas[:-1] < 1.0)) and bool(betas[-1] <= 1.0)
            allowed = "at least two numbers above 0 and below 1, the last up to 1"
            require(ok, "betas", self.betas if len(self.betas) < 5 else "(...)", allowed)
            object.__setattr__(self, "betas", jnp.asarray(betas, jnp.float32))

    def __repr__(self) -> str:
        return f"DiscreteVPSDE of {len(self.betas)} betas"

    @property
    def integrals(self) -> Array:
        """B of the levels, rising, (N,). Where the last beta is 1, alpha is next to the smallest
        number of float32 instead of 0, so that its logarithm is finite."""
        kept = -jnp.log1p(-self.betas)
        return jnp.minimum(jnp.cumsum(kept), NO_DATA)

    def integral(self, t: Array) -> Array:
        return interpolate(t, *self._levels(t.dtype))

    def inverse_integral(self, value: Array) -> Array:
        return interpolate(value, *reversed(self._levels(value.dtype)))

    def _levels(self, dtype: Any) -> tuple[Array, Array]:
        """The times of the levels and B there."""
        return jnp.linspace(0.0, self.T, len(self.betas), dtype=dtype), self.integrals.astype(dtype)

    def beta(self, t: Array) -> Array:
        """beta(t), (B,) -> (B,): (N - 1) times B's increment between the levels about t."""
        last = len(self.betas) - 1
        after = jnp.clip(jnp.ceil(t / self.T * last).astype(jnp.int32), 1, last)
        integrals = self.integrals
        return (last / self.T * (integrals[after] - integrals[after - 1])).astype(t.dtype)


@dataclass(frozen=True)
class DDPM:
    """VP: x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) z, beta_k linear in k from beta_min / N to
    beta_max / N (Ho et al. 2020, eq. 2 and 4)."""

    sde: VPSDE

    def check(self, name: str, number: int) -> None:
        most = self.sde.beta_max
        if isinstance(most, int | float) and number <= most:  # else it is a tracer
            none = "0, " if name == "num_levels" else ""
            raise ValueError(
                f"{name} = {number}: allowed are {none}integers above beta_max = {most:g}, as the "
                "chain's betas are below 1"
            )

    def chain(self, num_levels: int) -> Chain:
        """The levels that networks are trained on."""
        low, high = self.sde.beta_min, self.sde.beta_max
        self.check("num_levels", num_levels)
        betas = jnp.linspace(low / num_levels, high / num_levels, num_levels)
        log_alpha2 = jnp.cumsum(jnp.log1p(-betas))
        return Chain(jnp.exp(0.5 * log_alpha2), jnp.sqrt(-jnp.expm1(log_alpha2)))

    def level(self, t: Array, num_levels: int) -> Array:
        """The level at time t, a real number between 0 and num_levels - 1: (B,) -> (B,)."""
        return t / self.sde.T * (num_levels - 1)

    def snap(self, level: Array) -> tuple[Array, Array]:
        """The original code's two roundings of a level, each (B,): the level that its network gets,
        and the integer level whose row of the chain it uses."""
        # The embedding gets the level as it is. The table's row is its integer part.
        return level, jnp.trunc(level)

    def step(self, t: Array, num_steps: int) -> Step:
        """With the larger of DDPM's two posterior noises."""
        low, high = self.sde.beta_min, self.sde.beta_max
        index = jnp.trunc(t * (num_steps - 1) / self.sde.T)
        beta = (low + index * (high - low) / max(num_steps - 1, 1)) / num_steps
        return Step(jnp.expm1(0.5 * jnp.log1p(-beta)), jnp.sqrt(beta), jnp.sqrt(beta))


@dataclass(frozen=True)
class Betas(DDPM):
    """VP of any betas: the chain is the process itself at its N levels."""

    # Frozen, so a narrower type than DDPM's is safe; mypy takes the field for one that is assigned.
    sde: DiscreteVPSDE  # type: ignore[assignment]

    def check(self, name: str, number: int) -> None:
        if name == "num_levels":
            levels = len(self.sde.betas)
            require(number == levels, name, number, f"0, {levels}, the number of sde.betas")

    def chain(self, num_levels: int) -> Chain:
        self.check("num_levels", num_levels)
        integrals = self.sde.integrals
        return Chain(jnp.exp(-0.5 * integrals), jnp.sqrt(-jnp.expm1(-integrals)))

    def step(self, t: Array, num_steps: int) -> Step:
        """The exact transition over T / num_steps, which is the chain's where num_steps = N."""
        sde = self.sde
        s = jnp.maximum(t - sde.T / num_steps, 0.0)
        factor, std = sde.transition(s, t)
        return Step(factor - 1.0, std, std)


@dataclass(frozen=True)
class ImprovedDDPM(DDPM):
    """The cosine schedule's chain: beta_k = 1 - alpha_bar((k + 1) / N) / alpha_bar(k / N), at most
    0.999 (Nichol, Dhariwal 2021, arXiv:2102.09672, section 3.2)."""

    # As of Betas.
    sde: Cosine  # type: ignore[assignment]

    def check(self, name: str, number: int) -> None:
        """Any number will do."""

    def betas(self, number: int) -> np.ndarray:
        """Those of a chain of so many levels, float64 (N,)."""
        phi = self.sde.phi_0 + self.sde.rate * np.linspace(0.0, 1.0, number + 1)
        kept = np.square(np.cos(phi[1:]) / np.cos(phi[:-1]))
        return np.minimum(1.0 - kept, 0.999)

    def chain(self, num_levels: int) -> Chain:
        log_alpha2 = np.cumsum(np.log1p(-self.betas(num_levels)))
        alpha, sigma = np.exp(0.5 * log_alpha2), np.sqrt(-np.expm1(log_alpha2))
        return Chain(jnp.asarray(alpha, jnp.float32), jnp.asarray(sigma, jnp.float32))

    def step(self, t: Array, num_steps: int) -> Step:
        index = jnp.trunc(t * (num_steps - 1) / self.sde.T).astype(jnp.int32)
        beta = jnp.asarray(self.betas(num_steps), t.dtype)[index]
        return Step(jnp.expm1(0.5 * jnp.log1p(-beta)), jnp.sqrt(beta), jnp.sqrt(beta))


@dataclass(frozen=True)
class SMLD:
    """VE: sigmas on a geometric grid from sigma_max to sigma_min, alpha = 1 (Song, Ermon 2019,
    section 4)."""

    sde: VESDE

    def check(self, name: str, number: int) -> None:
        """Any number will do."""

    def chain(self, num_levels: int) -> Chain:
        sigma = self.sde.sigma(jnp.linspace(self.sde.T, 0.0, num_levels))
        return Chain(jnp.ones_like(sigma), sigma)

    def level(self, t: Array, num_levels: int) -> Array:
        return (1.0 - t / self.sde.T) * (num_levels - 1)

    def snap(self, level: Array) -> tuple[Array, Array]:
        whole = jnp.round(level)  # half to even, as the original
        return whole, whole

    def step(self, t: Array, num_steps: int) -> Step:
        """From sigma_{k-1} to sigma_k, with sigma_{-1} = 0."""
        sde, last = self.sde, max(num_steps - 1, 1)
        index = jnp.trunc(t * (num_steps - 1) / sde.T)
        sigma = sde.sigma(index / last * sde.T)
        below = jnp.where(index > 0, sde.sigma((index - 1.0) / last * sde.T), 0.0)
        G = jnp.sqrt((sigma - below) * (sigma + below))
        return Step(jnp.zeros_like(t), G, G * below / sigma)


DISCRETE: dict[type[SDE], Any] = {
    VPSDE: DDPM,
    VESDE: SMLD,
    DiscreteVPSDE: Betas,
    Cosine: ImprovedDDPM,
}
"""The processes that have a discrete chain. A user's own process is added here."""


def discretization(sde: SDE) -> Any:
    """How networks of this process are trained on levels: an object with the methods of `DDPM`.

    Raises:
        ValueError: for a process without a discrete chain.
    """
    if type(sde) not in DISCRETE:
        allowed = ", ".join(process.__name__ for process in DISCRETE)
        raise ValueError(
            f"num_levels: {type(sde).__name__} has no discrete chain; with one are {allowed}"
        )
    return DISCRETE[type(sde)](sde)


def check_steps(sde: SDE, num_steps: int) -> None:
    """Raise ValueError unless ``original_step`` takes ``num_steps``; compute nothing."""
    if type(sde) in DISCRETE:
        discretization(sde).check("num_steps", num_steps)


def original_step(sde: SDE, t: Array, num_steps: int) -> Step:
    """The original code's forward step at time t (B,) on a grid of ``num_steps``: the chain's step,
    or Euler and Maruyama's over 1 / num_steps for a process without a chain."""
    if type(sde) in DISCRETE:
        return discretization(sde).step(t, num_steps)
    dt = 1.0 / num_steps
    f, G = sde.drift_rate(t) * dt, sde.diffusion(t) * math.sqrt(dt)
    s = jnp.maximum(t - dt, 0.0)
    return Step(f, G, G * sde.sigma(s) / sde.sigma(t))
