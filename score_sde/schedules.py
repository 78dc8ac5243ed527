"""Processes of the works that followed: cosine, sigmoid, flow matching, EDM; and shifted ones.

The first three end in pure noise, alpha(T) = 0. The drift (log alpha)' x has no value there, but
the probability flow has:

    dx/dt = alpha' D + sigma' epsilon,     D = E[x0 | x_t],   epsilon = (x - alpha D) / sigma,

the velocity (Salimans and Ho 2022; Lipman et al. 2023). So the flow and its likelihood begin at T
itself if the score has a method ``denoised``. The reverse SDE needs a last time below 1, ``t_max``.

References:
    Nichol, Dhariwal 2021, Improved DDPM, arXiv:2102.09672.
    Chen 2023, On the Importance of Noise Scheduling for Diffusion Models, arXiv:2301.10972.
    Hoogeboom et al. 2023, Simple diffusion, arXiv:2301.11093.
    Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364.
    Lipman et al. 2023, Flow Matching for Generative Modeling, arXiv:2210.02747.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.errors import require
from score_sde.functions import divides_by_alpha
from score_sde.sde import SDE, ScoreFn, derivative, expand


class ToNoise(SDE):
    """A process that may end in pure noise, alpha(T) = 0: its probability flow is the velocity of a
    score that has a method ``denoised``. A user's own pair may derive from it."""

    def check_flow(self, score: Any) -> None:
        """Raise ValueError if the flow cannot begin at T; within a jitted function do nothing."""
        end = jnp.full((1,), self.T)
        rates = jnp.concatenate([derivative(self.alpha, end), derivative(self.sigma, end)])
        if isinstance(rates, jax.core.Tracer):
            return
        has_denoised = hasattr(score, "denoised") and not divides_by_alpha(score)
        if not (has_denoised and bool(jnp.all(jnp.isfinite(rates)))):
            self.check()

    def probability_flow(self, score: ScoreFn) -> Callable[[Array, Array], Array]:
        denoised = getattr(score, "denoised", None)
        if denoised is None:
            return super().probability_flow(score)

        def velocity(x: Array, t: Array) -> Array:
            x0 = denoised(x, t)
            epsilon = (x - expand(self.alpha(t), x) * x0) / expand(self.sigma(t), x)
            rates = (expand(derivative(of, t), x) for of in (self.alpha, self.sigma))
            alpha_rate, sigma_rate = rates
            return (alpha_rate * x0 + sigma_rate * epsilon).astype(x.dtype)

        return velocity


class _Ending(ToNoise):
    """What the first three share: the last time is a setting.

    Attributes:
        t_max: T, above t_min and up to 1, where alpha is 0.

    Raises:
        ValueError: another ``t_max``.
    """

    t_max: float = 1.0

    def __post_init__(self) -> None:
        _require_time(self.t_max, self.t_min, 1.0)

    @property
    def T(self) -> Any:  # type: ignore[override]  # a constant in SDE
        return self.t_max

    @property
    def ends_in_noise(self) -> bool:  # type: ignore[override]  # a constant in SDE
        # Else it may be a tracer. Times are float32, by which 0.99999999 is 1.
        return isinstance(self.t_max, int | float) and bool(np.float32(self.t_max) >= 1.0)


class Cosine(_Ending):
    """Variance-preserving with alpha = cos(phi) / cos(phi_0), phi rising linearly from phi_0 to
    pi / 2: sqrt(alpha_bar) of Nichol and Dhariwal 2021, eq. 17, with their offset s = 0.008.

    With a = phi - phi_0, sigma^2 = sin(a) sin(a + 2 phi_0) / cos(phi_0)^2 does not cancel.
    """

    rate: ClassVar[float] = 0.5 * math.pi / 1.008  # of phi
    phi_0: ClassVar[float] = 0.008 * rate

    def alpha(self, t: Array) -> Array:
        return jnp.sin(self.rate * (1.0 - t)) / math.cos(self.phi_0)

    def sigma(self, t: Array) -> Array:
        a = self.rate * t
        product = jnp.sin(a) * jnp.sin(a + 2.0 * self.phi_0)
        return jnp.sqrt(product) / math.cos(self.phi_0)

    def inverse_log_snr(self, log_snr: Array) -> Array:
        # From sigma where the noise is less, from alpha where it is more: each has digits there.
        # With u = tan(a): (cos 2 phi_0 - q) u^2 + sin(2 phi_0) u = q, q = sigma^2 cos(phi_0)^2.
        q = math.cos(self.phi_0) ** 2 * jax.nn.sigmoid(-jnp.maximum(log_snr, 0.0))
        linear, square = math.sin(2.0 * self.phi_0), math.cos(2.0 * self.phi_0) - q
        u = 2.0 * q / (linear + jnp.sqrt(linear**2 + 4.0 * q * square))
        alpha = jnp.sqrt(jax.nn.sigmoid(jnp.minimum(log_snr, 0.0)))
        late = 1.0 - jnp.arcsin(math.cos(self.phi_0) * alpha) / self.rate
        return jnp.where(log_snr > 0.0, jnp.arctan(u) / self.rate, late)

    def drift_rate(self, t: Array) -> Array:
        return -self.rate / jnp.tan(self.rate * (1.0 - t))

    def diffusion(self, t: Array) -> Array:
        return jnp.sqrt(-2.0 * self.drift_rate(t))


class Sigmoid(_Ending):
    """Variance-preserving with alpha^2 falling as a logistic function over [-3, 3], from 1 to 0
    (Chen 2023, section 2.1, with its defaults).

    There SNR = sinh(3 (1 - t)) / sinh(3 t). At T alpha' is infinite, so the flow needs ``t_max``
    below 1.
    """

    def alpha(self, t: Array) -> Array:
        return jnp.sqrt(jnp.sinh(3.0 * (1.0 - t)) / self._sum(t))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(jnp.sinh(3.0 * t) / self._sum(t))

    def _sum(self, t: Array) -> Array:
        """sinh(3 (1 - t)) + sinh(3 t)."""
        return 2.0 * math.sinh(1.5) * jnp.cosh(3.0 * (t - 0.5))

    def inverse_log_snr(self, log_snr: Array) -> Array:
        # coth(3 t) = (SNR + cosh 3) / sinh 3; where there is more noise by 1 - t and 1 / SNR.
        larger = jnp.exp(jnp.abs(log_snr))
        end = jnp.arctanh(math.sinh(3.0) / (larger + math.cosh(3.0))) / 3.0
        return jnp.where(log_snr > 0.0, end, 1.0 - end)

    def drift_rate(self, t: Array) -> Array:
        return -1.5 * (jnp.tanh(3.0 * (t - 0.5)) + 1.0 / jnp.tanh(3.0 * (1.0 - t)))

    def diffusion(self, t: Array) -> Array:
        return jnp.sqrt(-2.0 * self.drift_rate(t))


class Flow(_Ending):
    """The straight path of flow matching, alpha = 1 - t and sigma = t (Lipman et al. 2023, example
    II; rectified flow), as the diffusion with these marginals."""

    size: ClassVar[Callable[[Any, Any], Array]] = staticmethod(jnp.add)

    def alpha(self, t: Array) -> Array:
        return 1.0 - t

    def sigma(self, t: Array) -> Array:
        return t

    def inverse_log_snr(self, log_snr: Array) -> Array:
        return jax.nn.sigmoid(-0.5 * log_snr)

    def drift_rate(self, t: Array) -> Array:
        return -1.0 / (1.0 - t)

    def diffusion(self, t: Array) -> Array:
        return jnp.sqrt(2.0 * t / (1.0 - t))

    def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
        std = jnp.sqrt((t - s) * (s * (1.0 - t) + t * (1.0 - s))) / (1.0 - s)
        return (1.0 - t) / (1.0 - s), std


class EDM(SDE):
    """alpha = 1 and sigma = t, from sigma_min = t_min to sigma_max = t_max (Karras et al. 2022,
    table 1).

    Time is the noise level, so even steps in t are far too long at its end. The process's own steps
    are eq. 5's, even in t^(1/7).

    Raises:
        ValueError: a ``t_max`` that is not above t_min.
    """

    t_min: ClassVar[float] = 0.002
    t_max: float = 80.0
    size: ClassVar[Callable[[Any, Any], Array]] = staticmethod(lambda alpha, sigma: alpha)

    def __post_init__(self) -> None:
        _require_time(self.t_max, self.t_min, 1e6)

    @property
    def T(self) -> Any:  # type: ignore[override]  # a constant in SDE
        return self.t_max

    def time_steps(self, start: Any, end: Any, num: int) -> Array:
        roots = jnp.linspace(start ** (1 / 7), end ** (1 / 7), num)
        return (roots**7).at[0].set(start).at[-1].set(end)  # where the power has rounded

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return t

    def log_alpha(self, t: Array) -> Array:
        return jnp.zeros_like(t)

    def inverse_log_snr(self, log_snr: Array) -> Array:
        return jnp.exp(-0.5 * log_snr)

    def drift_rate(self, t: Array) -> Array:
        return jnp.zeros_like(t)

    def diffusion(self, t: Array) -> Array:
        return jnp.sqrt(2.0 * t)

    def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
        return jnp.ones_like(t), jnp.sqrt((t - s) * (t + s))


class Shifted(ToNoise):
    """A process whose noise levels sigma / alpha are ``shift`` times another's, at the same times:
    its log-SNR is the other's + 2 log(1 / shift).

    An image of d x d pixels keeps more of its content under the same noise than one of 64 x 64, as
    it can be averaged over (d / 64)^2 pixels: d / 64 is the shift that makes up for it (Hoogeboom
    et al. 2023, section 3.1). Under ``Flow`` this is t -> shift t / (1 + (shift - 1) t) (Esser et
    al. 2024, arXiv:2403.03206, eq. 23).

    The pair keeps the other's ``size``: a variance-preserving process stays one.

    Raises:
        ValueError: a shift that is not positive.
    """

    process: SDE
    shift: Any = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.shift, int | float):  # else it is a tracer
            require(0.0 < self.shift < math.inf, "shift", self.shift, "positive numbers")

    @property
    def T(self) -> Any:  # type: ignore[override]  # a constant in SDE
        return self.process.T

    @property
    def t_min(self) -> Any:  # type: ignore[override]  # a constant in SDE
        return self.process.t_min

    @property
    def ends_in_noise(self) -> bool:  # type: ignore[override]  # a constant in SDE
        return self.process.ends_in_noise

    @property
    def t_resolved(self) -> Any:  # type: ignore[override]  # a constant in SDE
        return self.process.t_resolved

    @property
    def size(self) -> Any:  # type: ignore[override]  # a constant in SDE
        return self.process.size

    def time_steps(self, start: Any, end: Any, num: int) -> Array:
        return self.process.time_steps(start, end, num)

    def _pair(self, t: Array) -> tuple[Array, Array]:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        more = self.shift * sigma
        scale = self.size(alpha, sigma) / self.size(alpha, more)
        return scale * alpha, scale * more

    def alpha(self, t: Array) -> Array:
        return self._pair(t)[0]

    def sigma(self, t: Array) -> Array:
        return self._pair(t)[1]

    def log_snr(self, t: Array) -> Array:
        return self.process.log_snr(t) - 2.0 * jnp.log(self.shift)

    def inverse_log_snr(self, log_snr: Array) -> Array:
        return self.process.inverse_log_snr(log_snr + 2.0 * jnp.log(self.shift))


def _require_time(t_max: Any, t_min: float, most: float) -> None:
    if isinstance(t_max, int | float):  # else it is a tracer
        require(t_min < t_max <= most, "t_max", t_max, f"times above {t_min:g}, up to {most:g}")
