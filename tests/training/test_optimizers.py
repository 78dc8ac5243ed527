"""Adam, Muon, clipping, warm-up, decay and averages against the formulas written a second time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_sde.training.mesh import data_mesh
from score_sde.training.optimizers import learning_rate_schedule, optimizer, orthogonal
from score_sde.training.state import create
from score_sde.training.step import make_train_step, warmed_up_decay

CURVATURE = np.array([0.5, 2.0, 8.0])
START = np.array([3.0, -1.0, 0.5])
STEPS = 30
PEAK, WARMUP, EMA_RATE = 0.05, 4, 0.75


def by_hand(clip: float, decay: float, schedule: str):
    """Gradient norms, parameters and averages of each step on 0.5 sum(c p²), in float64."""
    p, m, v, ema = START.copy(), np.zeros(3), np.zeros(3), START.copy()
    norms, params, means = [], [], []
    for n in range(1, STEPS + 1):
        g = CURVATURE * p
        norms.append(np.sqrt(np.sum(g**2)))
        g = g * min(1.0, clip / (norms[-1] + 1e-6))
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g**2
        rate = PEAK * min((n - 1) / WARMUP, 1.0)
        if schedule == "cosine":
            rate *= (1 + math.cos(math.pi * max(n - 1 - WARMUP, 0) / (STEPS - WARMUP))) / 2
        p = p - rate * (m / (1 - 0.9**n) / (np.sqrt(v / (1 - 0.99**n)) + 1e-8) + decay * p)
        d = min(EMA_RATE, (1 + n) / (10 + n))
        ema = d * ema + (1 - d) * p
        params.append(p.copy())
        means.append(ema.copy())
    return np.array(norms), np.array(params), np.array(means)


@pytest.mark.parametrize(
    "clip, decay, schedule",
    [(1.0, 0.0, "constant"), (4.0, 0.0, "cosine"), (math.inf, 0.1, "constant")],
)
def test_the_step_is_adam_with_averages(clip, decay, schedule):
    mesh = data_mesh()
    rate = learning_rate_schedule(PEAK, num_steps=STEPS, warmup_steps=WARMUP, schedule=schedule)
    adam = optimizer(rate, gradient_clip=clip, beta2=0.99, weight_decay=decay)
    curvature = jnp.asarray(CURVATURE, jnp.float32)

    def loss_fn(params, state, batch, key):
        per_example = batch["x"]  # ones
        return 0.5 * jnp.sum(curvature * params**2) * per_example

    step = make_train_step(loss_fn, adam, EMA_RATE, mesh)
    state = create(jnp.asarray(START, jnp.float32), adam, mesh)
    batch = {"x": np.ones(4 * mesh.size, np.float32)}
    norms, params, means = [], [], []
    for _ in range(STEPS):
        state, metrics = step(state, batch, jax.random.key(0))
        norms.append(float(metrics["grad_norm"]))
        params.append(np.asarray(state.params))
        means.append(np.asarray(state.ema))
    # float32: 1 - beta2 and 1 - beta2^n carry 6e-8 / 0.01 = 6e-6 each, so a step of 0.05 is off
    # by at most 3e-7; 30 of them sum to 9e-6, and the curvature (contraction) does not amplify.
    want_norms, want_params, want_means = by_hand(clip, decay, schedule)
    np.testing.assert_allclose(params, want_params, rtol=0, atol=1e-5)
    np.testing.assert_allclose(means, want_means, rtol=0, atol=1e-5)
    # A norm is at most 8 times the parameters' error in the steepest direction.
    np.testing.assert_allclose(norms, want_norms, rtol=0, atol=8e-5)
    np.testing.assert_array_equal(params[0], START)  # the first update's rate is 0
    assert {4.0: 5, 1.0: 20}.get(clip, 0) <= np.sum(want_norms > clip)  # and clipping is at work


def muon_by_hand(g, decay, steps):
    """Matrices after each step of Muon on a constant gradient, in float64, from 0."""
    p, m, found = np.zeros_like(g), np.zeros_like(g), []
    for n in range(1, steps + 1):
        m = 0.95 * m + g
        x = (g + 0.95 * m).T
        x = x / np.linalg.norm(x)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
        rate = PEAK * min((n - 1) / WARMUP, 1.0)
        p = p - rate * (0.2 * math.sqrt(max(g.shape)) * x.T + decay * p)
        found.append(p.copy())
    return np.array(found)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_orthogonalizes_kernels_and_leaves_the_rest_to_adam(decay):
    draw = np.random.default_rng(0)
    rate = learning_rate_schedule(PEAK, num_steps=9, warmup_steps=WARMUP)
    settings = {"gradient_clip": math.inf, "beta2": 0.99, "weight_decay": decay}
    kernel, bias = draw.normal(size=(2, 3, 2, 4)), draw.normal(size=4)
    gradient = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    params = jax.tree.map(jnp.zeros_like, gradient)
    muon, adam = (optimizer(rate, optimizer=name, **settings) for name in ("muon", "adam"))
    states, alone, found = (muon.init(params), adam.init(params["bias"])), params["bias"], []
    for _ in range(9):
        updates, first = muon.update(gradient, states[0], params)
        update, second = adam.update(gradient["bias"], states[1], alone)
        params, alone = optax.apply_updates(params, updates), optax.apply_updates(alone, update)
        states = first, second
        found.append(np.asarray(params["kernel"]).reshape(12, 4))
    # Five iterations of a cubic map whose slope is at most 3.5 amplify float32's rounding by 500.
    np.testing.assert_allclose(found, muon_by_hand(kernel.reshape(12, 4), decay, 9), atol=3e-5)
    np.testing.assert_array_equal(params["bias"], alone)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (7, 7)])
def test_the_orthogonal_matrix_keeps_the_singular_vectors(shape):
    matrix = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    u, sizes, vt = np.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ np.asarray(orthogonal(jnp.asarray(matrix))) @ vt.T
    assert sizes[-1] > 3e-3 * np.linalg.norm(matrix)  # so none is left behind
    # Jordan et al.: the coefficients trade a limit of 1 for speed.
    assert np.all((np.diag(inside) > 0.65) & (np.diag(inside) < 1.25))
    np.testing.assert_allclose(inside - np.diag(np.diag(inside)), 0.0, atol=1e-4)


def test_schedules():
    def values(steps, **settings):
        rate = learning_rate_schedule(2.0, num_steps=10, **settings)
        return [float(rate(jnp.int32(n))) for n in steps]

    assert values([0, 1, 2, 4, 9], warmup_steps=4) == [0.0, 0.5, 1.0, 2.0, 2.0]
    assert values([0, 9]) == [2.0, 2.0]
    # Half a cosine from the end of the warm-up (2) to num_steps (10), its middle at 6. cos(pi / 2)
    # and cos(7 pi / 8) in float32 are off by at most 1e-7, and so is half of 2 times them.
    last = 1.0 + math.cos(7 / 8 * math.pi)
    cosine = values([0, 1, 2, 6, 9, 10, 99], warmup_steps=2, schedule="cosine")
    np.testing.assert_allclose(cosine, [0.0, 1.0, 2.0, 1.0, last, last, last], rtol=0, atol=2e-7)
    ends = {"schedule": "cosine", "schedule_steps": 4}
    last = 1.0 + math.cos(3 / 4 * math.pi)
    np.testing.assert_allclose(values([2, 3, 9], **ends), [1.0, last, last], rtol=0, atol=2e-7)
    with pytest.raises(ValueError, match="'linear'"):
        learning_rate_schedule(1.0, num_steps=1, schedule="linear")


def test_the_decay_of_the_averages_warms_up():
    # The list of the original's five recorded steps (../shared/reference/train_steps.json), exact
    # to float32's rounding of a quotient.
    decays = [float(warmed_up_decay(0.9999, jnp.int32(n))) for n in range(1, 6)]
    np.testing.assert_allclose(decays, [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15], rtol=1e-7)
    assert float(warmed_up_decay(0.5, jnp.int32(10**6))) == 0.5
