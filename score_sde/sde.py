"""Forward processes that turn data into noise.

A process *is* its pair ``alpha(t), sigma(t)``: x_t = alpha(t) x0 + sigma(t) z, z ~ N(0, I), with a
signal-to-noise ratio that falls in t. Everything else follows from the pair:

    dx = f(x, t) dt + g(t) dw,   f = (log alpha)' x,   g^2 = (sigma^2)' - 2 (log alpha)' sigma^2
    reverse time:       dx = (f - g^2 score) dt + g dw        (Song et al. 2021, eq. 6)
    probability flow:   dx = (f - 1/2 g^2 score) dt           (Song et al. 2021, eq. 13)

Times ``t`` are float arrays of shape (B,), states ``x`` have shape (B, *shape). The closed forms
are written so that float32 holds down to t = 1e-5: ``expm1`` and differences of exponents, never
``1 - exp(...)``.

References:
    Song et al. 2021, Score-Based Generative Modeling through SDEs, arXiv:2011.13456.
    Kingma et al. 2021, Variational Diffusion Models, arXiv:2107.00630 (log-SNR, transitions).
"""

import dataclasses
import math
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, NamedTuple, cast, dataclass_transform

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.errors import require

ScoreFn = Callable[[Array, Array], Array]
"""The score grad_x log p_t(x): (x of shape (B, *shape), t of shape (B,)) -> (B, *shape)."""


def expand(coefficient: Array, x: Array) -> Array:
    """Reshape a per-sample coefficient (B,) so that it multiplies x (B, *shape)."""
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - 1))


class Dynamics(NamedTuple):
    """An equation dx = drift(x, t) dt + diffusion(t) dw, in either direction of time."""

    drift: Callable[[Array, Array], Array]
    diffusion: Callable[[Array], Array]


class Step(NamedTuple):
    """Coefficients, each (B,), of one discrete step x_t = (1 + f) x_s + G z and of its Gaussian
    reversal: ``posterior_std`` is that of the noise which ancestral sampling adds."""

    f: Array
    G: Array
    posterior_std: Array


@dataclass_transform(frozen_default=True)
class SDE:
    """A forward process, given by ``alpha`` and ``sigma``. A new one is five lines:

        class Cosine(SDE):
            T = 0.99  # alpha(1) = 0: the drift (log alpha)' x has no value there
            def alpha(self, t): return jnp.cos(0.5 * jnp.pi * t)
            def sigma(self, t): return jnp.sin(0.5 * jnp.pi * t)

    Constants are annotated fields (``rate: float = 1.0``). Subclasses become frozen dataclasses and
    pytrees with these fields as leaves, so changing a constant does not recompile.

    Attributes:
        T: the last time of the process, where it is nearly pure noise.
        t_min: the time at which samplers end by default.
        ends_in_noise: whether alpha(T) is known to be 0, without a computation.
        t_resolved: before it sigma is hardly larger than float32's rounding of the data.
        size: of a pair, (alpha, sigma) -> (B,): what a shift of the noise keeps.
    """

    size: ClassVar[Callable[[Any, Any], Array]] = staticmethod(jnp.hypot)
    T: ClassVar[float] = 1.0
    t_min: ClassVar[float] = 1e-3
    t_resolved: ClassVar[float] = 0.0
    ends_in_noise: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True)(cls)
        # mypy does not see that the line above made it a dataclass.
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

        def flatten(process: SDE) -> tuple[tuple[object, ...], Hashable]:
            # The class stands beside the leaves. By JAX's registration of dataclasses VPSDE and
            # VESDE have equal structures (jax 0.10.2): jit may run one's program for the other.
            return tuple(getattr(process, name) for name in names), cast(Hashable, cls)

        jax.tree_util.register_pytree_node(cls, flatten, lambda _, leaves: cls(*leaves))

    def alpha(self, t: Array) -> Array:
        """Factor of the data in x_t, (B,) -> (B,)."""
        raise NotImplementedError(f"{type(self).__name__} must define alpha(t)")

    def sigma(self, t: Array) -> Array:
        """Standard deviation of the noise in x_t, (B,) -> (B,)."""
        raise NotImplementedError(f"{type(self).__name__} must define sigma(t)")

    # The rest follows from the pair. A process overrides what it has in closed form.
    def log_alpha(self, t: Array) -> Array:
        """log alpha(t), (B,) -> (B,); a large negative number where alpha is 0 or rounds below."""
        alpha = self.alpha(t)
        return jnp.log(jnp.maximum(alpha, jnp.finfo(alpha.dtype).tiny))

    def log_snr(self, t: Array) -> Array:
        """2 log(alpha / sigma), falling in t, (B,) -> (B,)."""
        return 2.0 * (self.log_alpha(t) - jnp.log(self.sigma(t)))

    def inverse_log_snr(self, log_snr: Array) -> Array:
        """The time in [0, T] at which the process has this log-SNR, by bisection, (B,) -> (B,).

        Its derivatives are the implicit function's, by the process's constants too: dt = (d log_snr
        - the change of log_snr(t) at fixed t) / log_snr'(t)."""
        process, wanted = jax.tree.map(_constant, (self, log_snr))

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            is_later = process.log_snr(middle) > wanted
            return jnp.where(is_later, middle, low), jnp.where(is_later, high, middle)

        bracket = (jnp.zeros_like(wanted), jnp.full_like(wanted, self.T))
        low, high = jax.lax.fori_loop(0, 60, halve, bracket)
        t = 0.5 * (low + high)
        slope = derivative(process.log_snr, t)
        offset = log_snr - self.log_snr(t)  # only its derivatives count
        return t + (offset - jax.lax.stop_gradient(offset)) / slope

    def drift_rate(self, t: Array) -> Array:
        """(log alpha)'(t): the drift is this times x, (B,) -> (B,)."""
        return derivative(self.log_alpha, t)

    def diffusion(self, t: Array) -> Array:
        """g(t), (B,) -> (B,)."""
        variance_rate = derivative(lambda t: jnp.square(self.sigma(t)), t)
        return jnp.sqrt(variance_rate - 2.0 * self.drift_rate(t) * jnp.square(self.sigma(t)))

    def drift(self, x: Array, t: Array) -> Array:
        """f(x, t) of shape (B, *shape)."""
        return expand(self.drift_rate(t), x) * x

    def marginal(self, x0: Array, t: Array) -> tuple[Array, Array]:
        """Mean (B, *shape) and standard deviation (B,) of x_t given x0."""
        return expand(self.alpha(t), x0) * x0, self.sigma(t)

    def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
        """Factor a and standard deviation b, each (B,), of x_t = a x_s + b z for s <= t.

        b^2 = sigma_t^2 (1 - SNR_t / SNR_s) (Kingma et al. 2021, appendix A).
        """
        factor = jnp.exp(self.log_alpha(t) - self.log_alpha(s))
        kept = -jnp.expm1(self.log_snr(t) - self.log_snr(s))
        return factor, self.sigma(t) * jnp.sqrt(jnp.maximum(kept, 0.0))

    def reverse_step(self, s: Array, t: Array) -> Step:
        """The transition s -> t, with q(x_s | x_t, x0): its std is b sigma_s / sigma_t."""
        factor, std = self.transition(s, t)
        return Step(factor - 1.0, std, std * self.sigma(s) / self.sigma(t))

    def time_steps(self, start: Any, end: Any, num: int) -> Array:
        """The times (num,) of equally long steps: in t, or in what a process puts in its place."""
        return jnp.linspace(start, end, num)

    def keeps_data(self) -> bool:
        """Whether alpha(T) is above 0, so that score and drift at T depend on the data. Within a
        jitted function the answer is True, unless `ends_in_noise` says it."""
        if self.ends_in_noise:
            return False
        alpha = self.alpha(jnp.full((1,), self.T))
        return isinstance(alpha, jax.core.Tracer) or bool(alpha[0] > jnp.finfo(alpha.dtype).eps)

    def check(self) -> None:
        """Raise ValueError if alpha(T) is 0 or the diffusion at T not finite; within a jitted
        function, if `ends_in_noise`."""
        if self.keeps_data():
            diffusion = self.diffusion(jnp.full((1,), self.T))
            if isinstance(diffusion, jax.core.Tracer) or bool(jnp.isfinite(diffusion[0])):
                return
        raise ValueError(
            f"{type(self).__name__}: alpha(T) = 0 or no finite diffusion at T = {self.T}; allowed "
            "are a T a little lower (sde.t_max); samplers that need the denoised data alone "
            "(denoised_only) and variational bounds take this one"
        )

    def check_flow(self, score: Any) -> None:
        """As `check`, for the probability flow of a score."""
        self.check()

    def reverse(self, score: ScoreFn) -> Dynamics:
        """The reverse-time process (Song et al. 2021, eq. 6), to be run from T down."""
        return Dynamics(self._drift_back(score, 1.0), self.diffusion)

    def probability_flow(self, score: ScoreFn) -> Callable[[Array, Array], Array]:
        """dx/dt of the ODE with the same marginals (Song et al. 2021, eq. 13)."""
        return self._drift_back(score, 0.5)

    def _drift_back(self, score: ScoreFn, share: float) -> Callable[[Array, Array], Array]:
        """The drift with this share of g^2 score taken off."""

        def drift(x: Array, t: Array) -> Array:
            change = expand(share * jnp.square(self.diffusion(t)), x) * score(x, t)
            # As x, whose dtype a solver keeps, under a score whose constants are float64.
            return (self.drift(x, t) - change).astype(x.dtype)

        return drift

    def prior_std(self) -> Array:
        """Standard deviation of the Gaussian that sampling starts from, a scalar array."""
        return self.sigma(jnp.full((1,), self.T))[0]

    def prior_log_prob(self, x: Array) -> Array:
        """log density, in nats, of x (B, *shape) under N(0, prior_std^2 I): (B,)."""
        std, dims = self.prior_std(), x[0].size
        quadratic = jnp.sum(jnp.square(x / std), axis=range(1, x.ndim))
        return -0.5 * quadratic - dims * (0.5 * math.log(2.0 * math.pi) + jnp.log(std))


class ByIntegral(SDE):
    """What follows from B(t) = int_0^t beta: alpha = exp(-B/2)."""

    def integral(self, t: Array) -> Array:
        """B(t), (B,) -> (B,)."""
        raise NotImplementedError

    def inverse_integral(self, value: Array) -> Array:
        """The t with B(t) = value, (B,) -> (B,)."""
        raise NotImplementedError

    def beta(self, t: Array) -> Array:
        """beta(t), (B,) -> (B,)."""
        raise NotImplementedError

    def increment(self, s: Array, t: Array) -> Array:
        """B(t) - B(s), (B,)."""
        return self.integral(t) - self.integral(s)

    def log_alpha(self, t: Array) -> Array:
        return -0.5 * self.integral(t)

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self.log_alpha(t))

    def drift_rate(self, t: Array) -> Array:
        return -0.5 * self.beta(t)

    def prior_std(self) -> Array:
        return jnp.ones(())


class _LinearBeta(ByIntegral):
    """What VP and sub-VP share: beta(t) linear from beta_min to beta_max.

    Raises:
        ValueError: constants that are not 0 < beta_min < beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _require_rising(beta_min=self.beta_min, beta_max=self.beta_max)

    def beta(self, t: Array) -> Array:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Array) -> Array:
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def inverse_integral(self, value: Array) -> Array:
        # The root that does not cancel.
        slope = self.beta_max - self.beta_min
        return 2.0 * value / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * slope * value))

    def increment(self, s: Array, t: Array) -> Array:
        return (t - s) * (self.beta_min + 0.5 * (s + t) * (self.beta_max - self.beta_min))


class VP(ByIntegral):
    """Variance-preserving: sigma^2 = 1 - exp(-B) (Song et al. 2021, eq. 32 and 33)."""

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(-self.integral(t)))

    def log_snr(self, t: Array) -> Array:
        integral = self.integral(t)
        return -integral - jnp.log(-jnp.expm1(-integral))

    def inverse_log_snr(self, log_snr: Array) -> Array:
        return self.inverse_integral(jax.nn.softplus(-log_snr))

    def diffusion(self, t: Array) -> Array:
        return jnp.sqrt(self.beta(t))

    def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
        increment = self.increment(s, t)
        return jnp.exp(-0.5 * increment), jnp.sqrt(-jnp.expm1(-increment))


class VPSDE(_LinearBeta, VP):
    """Variance-preserving with beta(t) linear in t (Song et al. 2021, eq. 32 and 33)."""


class SubVPSDE(_LinearBeta):
    """sub-VP: VP's mean with sigma = 1 - exp(-B), below VP's at every time (Song et al. 2021, eq.
    27 to 29)."""

    t_resolved: ClassVar[float] = 1e-3

    def sigma(self, t: Array) -> Array:
        return -jnp.expm1(-self.integral(t))

    def log_snr(self, t: Array) -> Array:
        integral = self.integral(t)
        return -integral - 2.0 * jnp.log(-jnp.expm1(-integral))

    def inverse_log_snr(self, log_snr: Array) -> Array:
        # alpha / (1 - alpha^2) = exp(log_snr / 2) means 2 sinh(B / 2) = exp(-log_snr / 2).
        return self.inverse_integral(2.0 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * log_snr)))

    def diffusion(self, t: Array) -> Array:
        return jnp.sqrt(self.beta(t) * -jnp.expm1(-2.0 * self.integral(t)))

    def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
        # sigma_t = sigma_s + alpha_s^2 w with w = 1 - exp(B_s - B_t): every term of the variance is
        # positive.
        increment = self.increment(s, t)
        w, alpha2, sigma = -jnp.expm1(-increment), jnp.exp(-self.integral(s)), self.sigma(s)
        variance = w * (jnp.square(sigma) + 2.0 * sigma * alpha2 + jnp.square(alpha2) * w)
        return jnp.exp(-0.5 * increment), jnp.sqrt(variance)


class VESDE(SDE):
    """Variance-exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021,
    eq. 30 and 31).

    As in the original, sigma(0) = sigma_min, not 0: sigma_min^2 is not subtracted.
    """

    t_min: ClassVar[float] = 1e-5
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    size: ClassVar[Callable[[Any, Any], Array]] = staticmethod(lambda alpha, sigma: alpha)

    def __post_init__(self) -> None:
        _require_rising(sigma_min=self.sigma_min, sigma_max=self.sigma_max)

    def _log_ratio(self) -> Array:
        return jnp.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return self.sigma_min * jnp.exp(t * self._log_ratio())

    def log_alpha(self, t: Array) -> Array:
        return jnp.zeros_like(t)

    def log_snr(self, t: Array) -> Array:
        return -2.0 * (jnp.log(self.sigma_min) + t * self._log_ratio())

    def inverse_log_snr(self, log_snr: Array) -> Array:
        log_sigma = -0.5 * log_snr
        return (log_sigma - jnp.log(self.sigma_min)) / self._log_ratio()

    def drift_rate(self, t: Array) -> Array:
        return jnp.zeros_like(t)

    def diffusion(self, t: Array) -> Array:
        return self.sigma(t) * jnp.sqrt(2.0 * self._log_ratio())

    def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
        growth = jnp.expm1(2.0 * (t - s) * self._log_ratio())
        return jnp.ones_like(t), self.sigma(s) * jnp.sqrt(growth)


def _require_rising(**constants: object) -> None:
    """Raise ValueError unless 0 < first < second. Tracers and placeholders pass."""
    (low, least), (high, most) = constants.items()
    for name, value in constants.items():
        if isinstance(value, int | float):
            require(0.0 < value < math.inf, name, value, "positive numbers")
    if isinstance(least, int | float) and isinstance(most, int | float):
        require(most > least, high, most, f"numbers above {low} = {least!r}")


def _constant(leaf: Any) -> Any:
    """A leaf through which no gradient passes. Python's own numbers have none."""
    return jax.lax.stop_gradient(leaf) if isinstance(leaf, Array) else leaf


def derivative(function: Callable[[Array], Array], t: Array) -> Array:
    """d function / dt for a function that acts on each time by itself."""
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]
