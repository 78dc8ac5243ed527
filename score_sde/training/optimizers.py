"""Adam as the paper trains with it: warm-up, global-norm clipping; also cosine decay, AdamW, Muon.

One update on the gradient g, in the order of the chain below (Kingma and Ba 2015,
arXiv:1412.6980, algorithm 1; the decay of Loshchilov and Hutter 2019, arXiv:1711.05101):

    g <- g min(1, clip / (|g| + 1e-6))
    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g²
    params <- params - lr(n) (m / (1 - b1^n') / (sqrt(v / (1 - b2^n')) + eps) + decay params)

with n updates made before this one and n' = n + 1. b1 is 0.9, eps 1e-8.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025,
arXiv:2502.16982) takes this step for biases, scales and other vectors alone. Of a matrix, (inputs,
outputs), or of a convolution's kernel with all axes but the last for inputs, it is

    m <- 0.95 m + g
    params <- params - lr(n) (0.2 sqrt(max(inputs, outputs)) orthogonal(g + 0.95 m) + decay params)

where `orthogonal` makes all singular values nearly 1, so that no direction is left behind. The
factor makes its steps as long as Adam's, and one learning rate does for both.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from score_sde.errors import require

OPTIMIZERS = ("adam", "muon")
SCHEDULES = ("constant", "cosine")  # of the learning rate, after the warm-up
EPS = 1e-8
MOMENTUM = 0.95  # Muon's
ITERATION = (3.4445, -4.7750, 2.0315)  # of Newton and Schulz, tuned by Jordan et al.


class LearningRateState(NamedTuple):
    """``num_updates`` made, int32; ``learning_rate`` of the latest, float32."""

    num_updates: Array
    learning_rate: Array


def learning_rate_schedule(
    learning_rate: float,
    *,
    num_steps: int,
    warmup_steps: int = 0,
    schedule: str = "constant",
    schedule_steps: int | None = None,
) -> optax.Schedule:
    """The learning rate of the update that follows n others, as a function of n (int32 scalar).

    The warm-up is the paper's, ``learning_rate * min(n / warmup_steps, 1)``: the first update's
    rate is 0. ``warmup_steps=0`` starts at the full rate. "cosine" decays from there by half a
    cosine, which would be 0 at ``schedule_steps``, by default ``num_steps``. Updates from there on
    keep the rate of the last one before.
    """
    require(schedule in SCHEDULES, "schedule", schedule, ", ".join(SCHEDULES))
    end = (schedule_steps or num_steps) - warmup_steps

    def rate(count: Array) -> Array:
        n = jnp.asarray(count, jnp.float32)
        value = jnp.asarray(learning_rate, jnp.float32)
        if schedule == "cosine":
            decayed = jnp.clip(n - warmup_steps, 0.0, max(end - 1, 0)) / max(end, 1)
            value = value * 0.5 * (1.0 + jnp.cos(jnp.pi * decayed))
        if warmup_steps > 0:
            value = value * jnp.minimum(n / warmup_steps, 1.0)
        return value

    return rate


def optimizer(
    rate: optax.Schedule,
    *,
    optimizer: str = "adam",
    gradient_clip: float = 1.0,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """The optimizer of the module's docstring.

    Args:
        rate: the learning rate of each update, such as of `learning_rate_schedule`.
        optimizer: one of ``OPTIMIZERS``; "muon" is for matrices and kernels.
        gradient_clip: the largest global norm let through; ``math.inf`` clips nothing.
        beta2: decay of the second moment.
        weight_decay: decoupled decay of all parameters, times the learning rate; 0 for none.
    """
    require(optimizer in OPTIMIZERS, "optimizer", optimizer, ", ".join(OPTIMIZERS))
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay > 0 else []
    direction = optax.scale_by_adam(0.9, beta2, EPS)
    if optimizer == "muon":
        direction = optax.partition({True: _muon(), False: direction}, _are_matrices)
    chain = optax.chain(_clip(gradient_clip), direction, *decay, _descend(rate))

    def update(updates, state, params=None):
        # optax raises a Python float to an integer power, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)


def _are_matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _muon() -> optax.GradientTransformation:
    def spread(update):
        matrix = update.reshape(-1, update.shape[-1])
        return (0.2 * max(matrix.shape) ** 0.5 * orthogonal(matrix)).reshape(update.shape)

    orthogonalized = optax.stateless(lambda updates, params: jax.tree.map(spread, updates))
    return optax.chain(optax.trace(MOMENTUM, nesterov=True), orthogonalized)


def orthogonal(matrix: Array) -> Array:
    """A matrix with the same singular vectors, whose singular values lie between 0.7 and 1.2, by
    five iterations of a polynomial. Those below 1e-3 of the Frobenius norm become smaller ones.

    An iteration is X <- f(X X^T) X with f(G) = a + b G + c G². All f commute, so G alone goes
    through the iterations, and X is multiplied once by their product: of a kernel with nine times
    as many inputs as outputs, which is most of them, this takes a third of the products.
    """
    a, b, c = ITERATION
    is_high = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_high else matrix
    x = x / (jnp.linalg.norm(x) + EPS)
    gram, eye = x @ x.T, jnp.eye(len(x), dtype=x.dtype)

    def iteration(_: int, carried: tuple[Array, Array]) -> tuple[Array, Array]:
        gram, product = carried
        factor = a * eye + b * gram + c * gram @ gram
        return factor @ gram @ factor, factor @ product

    _, product = jax.lax.fori_loop(0, 5, iteration, (gram, eye))
    x = product @ x
    return x.T if is_high else x


def _clip(largest_norm: float) -> optax.GradientTransformation:
    # optax.clip_by_global_norm is the paper's JAX rule, 1 / max(norm, clip); this is PyTorch's.
    def clip(updates, params=None):
        scale = jnp.minimum(1.0, largest_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda gradient: scale * gradient, updates)

    return optax.stateless(clip)


def _descend(rate: optax.Schedule) -> optax.GradientTransformation:
    # As optax.scale_by_learning_rate, and the state keeps the rate that was used.
    def init(params):
        return LearningRateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates, state, params=None):
        value = jnp.asarray(rate(state.num_updates), jnp.float32)
        updates = jax.tree.map(lambda direction: -value * direction, updates)
        return updates, LearningRateState(state.num_updates + 1, value)

    return optax.GradientTransformation(init, update)
