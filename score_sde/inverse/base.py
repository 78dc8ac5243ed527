"""What the methods for inverse problems share: from a measurement to the score of its posterior.

A measurement is y = A(x0) + sigma_y n with normal noise n. With D = E[x0 | x_t] and g a method's
approximation of grad log p(y | x_t), the posterior at time t has

    score      score(x_t) + g,          denoised      D + (sigma^2 / alpha) g.

An operator A is a function of the whole batch, (B, *shape) to (B, *measured). Its transpose comes
from ``jax.linear_transpose``. A linear operator may add a constant, A(x) = L x + b, as from one
range of pixels to another: A^T is L^T then, and what multiplies it is L.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.errors import one_line, require
from score_sde.functions import as_pytree
from score_sde.score import denoise, evaluations, reverse_only
from score_sde.sde import SDE, ScoreFn, expand

Operator = Callable[[Array], Array]


@dataclass(frozen=True)
class Posterior(ABC):
    """The approximate score of x_t given y, a score function and a pytree.

    Attributes:
        sde: the process.
        score: the score of x_t without the measurement.
        operator: A.
        y: the measurements, (B, *measured), or (1, *measured), one for all.
        sigma_y: standard deviation of their noise.
    """

    sde: SDE
    score: Any
    operator: Any
    y: Array
    sigma_y: Any

    not_a_density = "the approximate score of a posterior belongs to no density"

    @property
    @abstractmethod
    def passes(self) -> int:
        """Passes through the network for each call, forth and back."""

    @abstractmethod
    def estimate(self, x: Array, t: Array) -> tuple[Array, Array]:
        """E[x0 | x_t] and the gradient of log p(y | x_t), (B, *shape) each."""

    def __call__(self, x: Array, t: Array) -> Array:
        x0, gradient = self.estimate(x, t)
        alpha, sigma2 = self.sde.alpha(t), jnp.square(self.sde.sigma(t))
        return (expand(alpha, x) * x0 - x) / expand(sigma2, x) + gradient

    def denoised(self, x: Array, t: Array) -> Array:
        """E[x0 | x_t, y], (B, *shape)."""
        x0, gradient = self.estimate(x, t)
        return x0 + expand(self._lift(t), x) * gradient

    def evaluations(self, t: Array) -> int | Array:
        """Passes through networks for each call."""
        return self.passes * evaluations(self.score, t)

    def _denoised_and_pull(self, x: Array, t: Array) -> tuple[Array, Callable[[Array], Array]]:
        """D at x, and v -> (dD/dx)^T v."""
        score = reverse_only(self.score)  # most of the time is spent on the way back
        x0, pull = jax.vjp(lambda x: denoise(self.sde, score, x, t), x)
        return x0, lambda v: pull(v)[0]

    def _lift(self, t: Array) -> Array:
        """sigma^2 / alpha: this times dD/dx is the covariance of x0 given x_t."""
        return jnp.square(self.sde.sigma(t)) / self.sde.alpha(t)

    def _offset(self, x0: Array) -> Array:
        """y - A(x0), (B, *measured)."""
        return fitting(self.y, found := self.operator(x0), x0) - found

    def _transpose(self, v: Array, like: Array) -> Array:
        return transpose(self.operator, v, like)

    def _multiply(self, u: Array) -> Array:
        return multiply(self.operator, u)

    def _solved(self, x0: Array, r2: Array, iterations: int) -> tuple[Array, Array]:
        """y - A x0, and (r^2 A A^T + sigma_y^2 I)^-1 of it, for r^2 (B,)."""
        offset = self._offset(x0)

        def apply(v: Array) -> Array:
            spread = expand(r2, v) * self._multiply(self._transpose(v, x0))
            return spread + self._noise_variance(v) * v

        return offset, conjugate_gradients(apply, offset, iterations)

    def _noise_variance(self, v: Array) -> Array:
        return jnp.square(jnp.asarray(self.sigma_y, v.dtype))


def measured(
    sde: SDE, score: ScoreFn, operator: Operator, y: Array, sigma_y: float
) -> tuple[SDE, Any, Any, Array, Any]:
    """The first fields of a `Posterior`, checked.

    Raises:
        ValueError: a sigma_y that is negative, infinite or no single number, or a process with
            alpha(T) = 0.
    """
    known = not isinstance(sigma_y, jax.core.Tracer)
    ok = not known or (np.ndim(sigma_y) == 0 and bool(0 <= np.asarray(sigma_y) < np.inf))
    require(ok, "sigma_y", sigma_y, "numbers from 0 on")
    require(sde.keeps_data(), "sde", sde, "processes with alpha(T) above 0")
    return sde, as_pytree(score), as_pytree(operator), jnp.asarray(y), sigma_y


def fitting(y: Array, found: Array, x: Array) -> Array:
    """The measurements, if they are real and have the shape of operator(x); otherwise
    ValueError."""
    real = "real numbers, such as real and imaginary parts"
    is_array = isinstance(found, jax.Array) and found.shape[:1] == x.shape[:1]
    kind = f"{found.dtype} {found.shape}" if isinstance(found, jax.Array) else type(found).__name__
    ok = is_array and jnp.issubdtype(found.dtype, jnp.floating)
    require(ok, "operator(x)", kind, f"arrays ({len(x)}, ...) of {real}")
    require(not jnp.iscomplexobj(y), "y.dtype", f"{y.dtype}", real)
    one_for_all = (1, *found.shape[1:])
    allowed = f"{found.shape}, as of operator(x), and {one_for_all}"
    require(y.shape in (found.shape, one_for_all), "y.shape", y.shape, allowed)
    return y


def transpose(operator: Operator, v: Array, like: Array) -> Array:
    """L^T v of shape (B, *shape), for v (B, *measured) and any states like x.

    Raises:
        ValueError: an operator that is not linear.
    """
    jax.eval_shape(operator, like)  # the operator's own errors are its user's to read
    try:
        found: Array = jax.linear_transpose(operator, like)(v)[0]
    except (jax.errors.JaxRuntimeError, RecursionError):  # of the device, or of Python
        raise
    except (RuntimeError, AssertionError) as error:
        why = one_line(error) or "jax.linear_transpose has no rule for it"
        raise ValueError(f"operator: {why}; allowed are linear ones, except with dps") from error
    return found


def multiply(operator: Operator, u: Array) -> Array:
    """L u of shape (B, *measured), for u (B, *shape)."""
    found: Array = jax.jvp(operator, (u,), (u,))[1]
    return found


def dot(u: Array, v: Array) -> Array:
    """The inner product of each pair of rows, (B,)."""
    return jnp.sum(u * v, axis=range(1, u.ndim))


def conjugate_gradients(
    apply: Operator, b: Array, iterations: int, least: Array | float = 0.0
) -> Array:
    """Solve apply(u) = b for each row of b (B, *measured) by itself, for a symmetric and positive
    operator (Hestenes, Stiefel 1952). In exact arithmetic as many iterations as the operator has
    different eigenvalues are enough. A row stops where the operator's value along a direction is
    not above ``least``."""

    def over(a: Array, b: Array, bound: Array | float = 0.0) -> Array:
        return expand(jnp.where(b > bound, a / jnp.where(b > bound, b, 1), 0), u)

    def body(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        u, r, p = state
        q = apply(p)
        step = over(dot(r, r), dot(p, q), least * dot(p, p))  # 0 where the residual is 0 already
        rest = r - step * q
        return u + step * p, rest, rest + over(dot(rest, rest), dot(r, r)) * p

    u = jnp.zeros_like(b)
    return jax.lax.fori_loop(0, iterations, body, (u, b, b))[0]
