"""Replacement: after each step the measured part of the state is that of the measurement.

For exact measurements y = A x0 the state must have A x_t = alpha y + sigma A z. The projection

    x  ->  x + A^+ (alpha y - A x) + sigma A^+ A z,         A^+ the pseudoinverse,

sets it, with fresh noise z each time, and leaves the rest (Song et al. 2021, appendix I.2 and I.3:
inpainting, where A is a mask, and colorizing, where A is the grey image). The rest follows the
unconditional score, so it learns of y by the network alone, and too late: the samples are not those
of the posterior.

Of a noisy measurement, alpha A^+ y has noise itself. Along a right singular vector of A with the
singular value s its variance is (alpha sigma_y / s)^2. So noise of the variance

    sigma^2 - (alpha sigma_y / s)^2

is added there, and the sum has that of the state. Where this is below 0 the measurement tells less
than the state has, and the state stays as it is. (So do Kawar et al. 2022, arXiv:2201.11793, by the
singular value decomposition, with both their etas 1.) Here Lanczos' iterations find the functions
of A^T A that are needed.

By `PredictorCorrector(faithful=True)` it is the original code's algorithm, which is for exact
measurements: see there. What is returned then has no noise in the measured part, and the noise of
t_min in the rest. By any other sampler with fixed steps the projection acts once after each step,
at the time reached, and the last denoising is that of the whole state.
"""

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.inverse.base import Operator, fitting, measured, multiply, transpose
from score_sde.samplers.base import norm, require_positive
from score_sde.score import pytree
from score_sde.sde import SDE, ScoreFn, expand


def replacement(
    sde: SDE,
    score: ScoreFn,
    operator: Operator,
    y: Array,
    sigma_y: float = 0.0,
    *,
    iterations: int = 1,
) -> "Replacement":
    """The projection for the argument ``project`` of a sampler with fixed steps.

    Args:
        sde: the process.
        score: without effect; as of the other methods.
        operator: A, linear, (B, *shape) to (B, *measured).
        y: measurements, (B, *measured) or (1, *measured).
        sigma_y: standard deviation of their noise.
        iterations: of Lanczos. One is exact for masks, grey images and means over blocks, where
            A A^T is a multiple of a projection. In exact arithmetic as many are enough as A has
            different singular values. With fewer, near singular values count as one, and too
            little noise may be added there. Each iteration keeps an array of the size of x.

    Raises:
        ValueError: a negative sigma_y, iterations below 1, an operator that is not linear, a
            process with alpha(T) = 0.
    """
    require_positive(iterations=iterations)
    sde, _, operator, y, sigma_y = measured(sde, score, operator, y, sigma_y)
    return Replacement(sde, operator, y, sigma_y, iterations)


@pytree
class Replacement:
    """The projection that `replacement` returns."""

    sde: SDE
    operator: Any
    y: Array
    sigma_y: Any
    iterations: int = field(metadata={"static": True})

    def __call__(self, x: Array, t: Array, keys: Array) -> Array:
        """The states x (B, *shape) with the measured part at t (B,); keys (B,)."""
        z = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)

        def std(eigenvalues: Array, left: Array) -> Array:
            return jnp.sqrt(jnp.maximum(left, 0)) / eigenvalues

        return self.mean(x, t) + self._filtered(self._squared(z), std, t)

    def mean(self, x: Array, t: Array) -> Array:
        """The states with the measured part alpha y, without the noise that is added to it.
        Components that the projection leaves stay as they are."""
        alpha, found = self.sde.alpha(t), self.operator(x)
        y = fitting(self.y, found, x)
        missing = expand(alpha, found) * y - found
        constant = self.operator(jnp.zeros_like(x))  # 0, unless the operator adds one
        missing += expand(1 - alpha, found) * constant
        apart = transpose(self.operator, missing, x)
        return x + self._filtered(apart, lambda value, left: jnp.where(left >= 0, 1 / value, 0), t)

    def held(self, x: Array, before: Array, t: Array) -> Array:
        """The states x, with the components of those before along which the projection at t
        changes nothing."""
        apart = self._squared(before - x)
        return x + self._filtered(apart, lambda value, left: jnp.where(left < 0, 1 / value, 0), t)

    def _squared(self, u: Array) -> Array:
        """A^T A u, for u (B, *shape)."""
        return transpose(self.operator, multiply(self.operator, u), u)

    def _filtered(self, b: Array, function: Callable[[Array, Array], Array], t: Array) -> Array:
        """f(A^T A) b for b (B, *shape) in the range of A^T. The function takes eigenvalues above 0,
        and the variance of the noise to be added along their eigenvectors."""
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        noise = jnp.asarray(self.sigma_y, b.dtype)

        def of_range(eigenvalues: Array) -> Array:
            tiny = 100 * jnp.finfo(b.dtype).eps * jnp.max(eigenvalues, axis=1, keepdims=True)
            known = jnp.where(eigenvalues > tiny, eigenvalues, 1)
            left = jnp.square(sigma) - jnp.square(alpha * noise) / known
            return jnp.where(eigenvalues > tiny, function(known, left), 0)

        return _lanczos(self._squared, b, self.iterations, of_range)


def _lanczos(
    apply: Operator, b: Array, iterations: int, function: Callable[[Array], Array]
) -> Array:
    """f(M) b for each row of b (B, *shape), for a symmetric M by its product with such rows
    (Lanczos 1950; Golub, Van Loan, Matrix Computations, section 10.1).

    M is seen on the Krylov space of b alone. ``function`` takes eigenvalues, (B, iterations). With
    f = 1 / x the result is that of as many conjugate gradients.
    """
    rounding = 100 * jnp.finfo(b.dtype).eps
    einsum = partial(jnp.einsum, precision="highest")

    def body(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        vectors, diagonal, beside = state
        product = apply(vectors[i].reshape(b.shape)).reshape(len(b), -1)
        rest = product
        for _ in range(2):  # once more, against rounding
            rest = rest - einsum("ib,ibd->bd", einsum("ibd,bd->ib", vectors, rest), vectors)
        # What rounding has left is no direction: the space is complete.
        size = norm(rest)
        size = jnp.where(size > rounding * norm(product), size, 0)
        vectors = vectors.at[i + 1].set(_over(rest, size), mode="drop")
        diagonal = diagonal.at[i].set(jnp.sum(vectors[i] * product, axis=1))
        return vectors, diagonal, beside.at[i].set(size)

    rows = b.reshape(len(b), -1)
    size = norm(rows)
    vectors = jnp.zeros((iterations, *rows.shape), b.dtype).at[0].set(_over(rows, size))
    zeros = jnp.zeros((iterations, len(b)), b.dtype)
    vectors, diagonal, beside = jax.lax.fori_loop(0, iterations, body, (vectors, zeros, zeros))
    eigenvalues, q = jax.vmap(_of_tridiagonal)(diagonal.T, beside[:-1].T)
    shares = einsum("bij,bj,bj->ib", q, function(eigenvalues), q[:, 0])
    return einsum("b,ib,ibd->bd", size, shares, vectors).reshape(b.shape)


def _over(rows: Array, size: Array) -> Array:
    """Rows (B, D) over their size (B,); zeros where it is 0."""
    return rows / jnp.where(size > 0, size, jnp.inf)[:, None]


def _of_tridiagonal(diagonal: Array, beside: Array) -> tuple[Array, Array]:
    """Eigenvalues (m,) and eigenvectors (m, m) of the symmetric matrix with these diagonals."""
    return tuple(jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(beside, -1) + jnp.diag(beside, 1)))
