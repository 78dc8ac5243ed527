"""Distributions whose score and log density are known exactly under any process.

A Gaussian mixture with weights w_k, means m_k and covariances S_k stays a mixture. At time t its
components are N(alpha m_k, alpha^2 S_k + sigma^2 I). With S_k = U_k diag(v_k) U_k^T everything is a
product with U_k, at any t. So samplers and likelihoods can be compared with the truth.
"""

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.score import pytree
from score_sde.sde import SDE


@pytree
class GaussianMixture:
    """A mixture of Gaussians over vectors of D numbers.

    States may have any shape (B, *shape) with D elements after the batch axis: they are flattened
    inside. Build it with ``gaussian_mixture`` or ``gaussian``.

    Attributes:
        log_weights: (K,), their exponentials sum to one.
        means: (K, D).
        variances: (K, D), eigenvalues of the covariances.
        axes: (K, D, D), eigenvectors in columns.
    """

    log_weights: Array
    means: Array
    variances: Array
    axes: Array

    def sample(self, key: Array, num_samples: int) -> Array:
        """Draws of x0, (num_samples, D)."""
        key_component, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_component, self.log_weights, shape=(num_samples,))
        noise = jax.random.normal(key_noise, (num_samples, self.means.shape[1]), self.means.dtype)
        return self.means[k] + jnp.einsum(
            "bde,be->bd", self.axes[k], jnp.sqrt(self.variances[k]) * noise
        )

    def _components(self, sde: SDE, x: Array, t: Array) -> tuple[Array, Array]:
        """Joint log density of component and x, (B, K), and score of each component, (B, K, D)."""
        flat = x.reshape(x.shape[0], 1, -1)
        alpha, sigma = sde.alpha(t)[:, None, None], sde.sigma(t)[:, None, None]
        with jax.default_matmul_precision("highest"):
            offset = jnp.einsum("kde,bkd->bke", self.axes, flat - alpha * self.means[None])
            variance = jnp.square(alpha) * self.variances[None] + jnp.square(sigma)
            normalizer = jnp.sum(jnp.log(2.0 * jnp.pi * variance), axis=-1)
            log_prob = -0.5 * (jnp.sum(jnp.square(offset) / variance, axis=-1) + normalizer)
            score = -jnp.einsum("kde,bke->bkd", self.axes, offset / variance)
        return self.log_weights[None] + log_prob, score

    def log_prob(self, sde: SDE, x: Array, t: Array) -> Array:
        """log p_t(x) in nats, (B,), for x (B, *shape) and t (B,)."""
        return jax.nn.logsumexp(self._components(sde, x, t)[0], axis=-1)

    def posterior(self, sde: SDE, x: Array, t: Array) -> Array:
        """Probability of each component given x_t = x, (B, K)."""
        return jax.nn.softmax(self._components(sde, x, t)[0], axis=-1)

    def given(self, matrix: Array, y: Array, sigma_y: float) -> "GaussianMixture":
        """The mixture of x0 given one measurement y = matrix x0 + sigma_y z, for a matrix (M, D), y
        (M,) and sigma_y above 0."""
        with jax.default_matmul_precision("highest"):
            covariances = jnp.einsum("kde,ke,kfe->kdf", self.axes, self.variances, self.axes)
            across = jnp.einsum("md,kde->kme", matrix, covariances)
            noise = jnp.square(sigma_y) * jnp.eye(len(y), dtype=y.dtype)
            of_y = jnp.einsum("kmd,nd->kmn", across, matrix) + noise[None]
            gain = jnp.linalg.solve(of_y, across)
            offset = y[None] - self.means @ matrix.T
            means = self.means + jnp.einsum("kmd,km->kd", gain, offset)
            remaining = covariances - jnp.einsum("kmd,kme->kde", gain, across)
            whitened = jnp.linalg.solve(of_y, offset[..., None])[..., 0]
            log_prob = -0.5 * (jnp.sum(offset * whitened, -1) + jnp.linalg.slogdet(of_y)[1])
        variances, axes = jnp.linalg.eigh(remaining)
        log_weights = jax.nn.log_softmax(self.log_weights + log_prob)
        return GaussianMixture(log_weights, means, jnp.maximum(variances, 0.0), axes)

    def score(self, sde: SDE) -> "MixtureScore":
        """The exact score under ``sde``. It has a method ``denoised``."""
        return MixtureScore(self, sde)

    def moments(self, sde: SDE, t: float) -> tuple[Array, Array]:
        """Mean (D,) and covariance (D, D) of x_t."""
        weights = jnp.exp(self.log_weights)
        mean = weights @ self.means
        spread = self.means - mean[None]
        within = jnp.einsum("k,kde,ke,kfe->df", weights, self.axes, self.variances, self.axes)
        covariance = within + jnp.einsum("k,kd,ke->de", weights, spread, spread)
        times = jnp.full((1,), t, mean.dtype)
        alpha, sigma = sde.alpha(times)[0], sde.sigma(times)[0]
        return alpha * mean, jnp.square(alpha) * covariance + jnp.square(sigma) * jnp.eye(
            len(mean), dtype=mean.dtype
        )


@pytree
class MixtureScore:
    """The exact score of a mixture under a process, for x (B, *shape) and t (B,)."""

    mixture: GaussianMixture
    sde: SDE

    def __call__(self, x: Array, t: Array) -> Array:
        """grad log p_t(x), (B, *shape)."""
        log_joint, scores = self.mixture._components(self.sde, x, t)
        return jnp.einsum("bk,bkd->bd", jax.nn.softmax(log_joint, axis=-1), scores).reshape(x.shape)

    def denoised(self, x: Array, t: Array) -> Array:
        """E[x0 | x_t = x], (B, *shape), also where alpha(t) = 0: the posterior's mean of each
        component is m_k + alpha S_k (alpha^2 S_k + sigma^2 I)^-1 (x - alpha m_k)."""
        mixture, alpha = self.mixture, self.sde.alpha(t)[:, None, None]
        log_joint, scores = mixture._components(self.sde, x, t)
        with jax.default_matmul_precision("highest"):
            # Each component's score is -(alpha^2 S_k + sigma^2 I)^-1 (x - alpha m_k).
            along = jnp.einsum("kde,bkd->bke", mixture.axes, -scores) * mixture.variances[None]
            means = mixture.means[None] + alpha * jnp.einsum("kde,bke->bkd", mixture.axes, along)
            shares = jax.nn.softmax(log_joint, axis=-1)
            return jnp.einsum("bk,bkd->bd", shares, means).reshape(x.shape)


def gaussian_mixture(weights: Array, means: Array, covariances: Array) -> GaussianMixture:
    """A mixture from weights (K,) that sum to one, means (K, D) and covariances (K, D, D),
    symmetric and positive."""
    variances, axes = jnp.linalg.eigh(jnp.asarray(covariances))
    return GaussianMixture(jnp.log(jnp.asarray(weights)), jnp.asarray(means), variances, axes)


def gaussian(mean: Array, covariance: Array) -> GaussianMixture:
    """One Gaussian with mean (D,) and covariance (D, D)."""
    mean, covariance = jnp.asarray(mean), jnp.asarray(covariance)
    return gaussian_mixture(jnp.ones(1, mean.dtype), mean[None], covariance[None])
