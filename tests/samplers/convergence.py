"""Errors of the fast solvers against exact flows, in float64: with `JAX_ENABLE_X64=1` as a program,
which prints JSON.

The data are independent in their three components: two Gaussians of different widths, whose flow is
affine, and a mixture of two, whose flow keeps the value of the distribution function.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import ndtr

from score_sde.sde import SDE
from tests.cases import FIRST, SAMPLER_CASES, process_of, run_with

NUM_STEPS = (40, 160)

MEANS, VARIANCES = np.asarray([0.5, -1.0]), np.asarray([1.0, 0.01])
WEIGHTS, MODES, MODE_VARIANCES = (
    np.asarray([0.35, 0.65]),
    np.asarray([-0.8, 0.5]),
    np.asarray([0.2, 0.05]),
)


def _scales(sde: SDE, t: float | Array) -> tuple[float, float]:
    times = jnp.asarray([t])
    return float(sde.alpha(times)[0]), float(sde.sigma(times)[0])


def _distribution(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    stds = np.sqrt(alpha**2 * MODE_VARIANCES + sigma**2)
    return ndtr((x[:, None] - alpha * MODES) / stds) @ WEIGHTS


def exact_flow(sde: SDE, x: np.ndarray, end: float | Array) -> np.ndarray:
    """Where the probability flow takes x (B, 3) from T to ``end``."""
    (a, s), (b, r) = _scales(sde, sde.T), _scales(sde, end)
    stretch = np.sqrt((b**2 * VARIANCES + r**2) / (a**2 * VARIANCES + s**2))
    gaussians = b * MEANS + stretch * (x[:, :2] - a * MEANS)
    value = _distribution(x[:, 2], a, s)
    low, high = np.full(len(x), -20.0), np.full(len(x), 20.0)
    for _ in range(80):
        middle = 0.5 * (low + high)
        above = _distribution(middle, b, r) > value
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.concatenate([gaussians, low[:, None]], axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DataScore:
    """The exact score of the data above."""

    sde: SDE

    def __call__(self, x: Array, t: Array) -> Array:
        return jax.vmap(jax.grad(self.log_density))(x, t)

    def log_density(self, x: Array, t: Array) -> Array:
        alpha, sigma = self.sde.alpha(t[None])[0], self.sde.sigma(t[None])[0]
        variances = alpha**2 * VARIANCES + sigma**2
        mode_variances = alpha**2 * MODE_VARIANCES + sigma**2
        terms = jnp.log(WEIGHTS) - 0.5 * jnp.log(mode_variances)
        terms = terms - 0.5 * jnp.square(x[2] - alpha * MODES) / mode_variances
        gaussians = -0.5 * jnp.sum(jnp.square(x[:2] - alpha * MEANS) / variances)
        return gaussians + jax.nn.logsumexp(terms)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianScore:
    """The exact score of N(0.7, 0.25)."""

    sde: SDE

    def __call__(self, x: Array, t: Array) -> Array:
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        return -(x - alpha * 0.7) / (alpha**2 * 0.25 + sigma**2)


def errors(names: Iterable[str]) -> dict[str, dict[str, list[float]]]:
    """{process/solver: {data: root mean square error for each of NUM_STEPS}}, and the NFE."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in names:
        sde = process_of(name)
        alpha, sigma = _scales(sde, sde.T)
        noise = np.random.default_rng(0).normal(size=(256, 3))
        x = sigma * noise + alpha * np.asarray([*MEANS, 0.0])
        truth = exact_flow(sde, x, sde.t_min)
        for solver, case in SAMPLER_CASES.items():
            if not case.order:
                continue
            row: dict[str, list[float]] = {"gaussian": [], "mixture": [], "nfe": []}
            for num in NUM_STEPS:
                sampler = case.make(num_steps=num, denoise=False)
                out = sampler.sample(jax.random.key(0), sde, DataScore(sde), jnp.asarray(x))
                squares = np.mean(np.square(np.asarray(out.x) - truth), axis=0)
                row["gaussian"].append(float(np.sqrt(squares[:2].mean())))
                row["mixture"].append(float(np.sqrt(squares[2])))
                row["nfe"].append(int(out.nfe[0]))
            found[f"{name}/{solver}"] = row
    return found


def weak_errors(names: Iterable[str]) -> dict[str, dict[str, list[float]]]:
    """{process/solver: {moment: relative error for each of NUM_STEPS}} on N(0.7, 0.25), exactly.

    The solvers are affine in state and noises there: rows of a batch that differ in one of them
    give all the slopes, and these the mean and variance at the end.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for name in names:
        sde = process_of(name)
        (a, s), (b, r) = _scales(sde, sde.T), _scales(sde, sde.t_min)
        for solver, case in SAMPLER_CASES.items():
            if not case.weak_order:
                continue
            row: dict[str, list[float]] = {"mean": [], "variance": []}
            for num in NUM_STEPS:
                sampler = case.make(num_steps=num, denoise=False)
                x = jnp.zeros((num + 2, 1)).at[1, 0].set(1.0)
                noises = jnp.eye(num + 2, num, -2)[..., None]  # row i + 2 has the i-th noise
                end = run_with(sampler, sde, GaussianScore(sde), x, noises)[-1]
                offset, at_one, *at_noise = np.asarray(end)[:, 0]
                mean = offset + (at_one - offset) * a * 0.7
                variance = (at_one - offset) ** 2 * (a**2 * 0.25 + s**2)
                variance += sum((at - offset) ** 2 for at in at_noise)
                std = np.sqrt(b**2 * 0.25 + r**2)
                row["mean"].append(float(abs(mean - b * 0.7) / std))
                row["variance"].append(float(abs(variance / std**2 - 1.0)))
            found[f"{name}/{solver}"] = row
    return found


if __name__ == "__main__":
    json.dump({"errors": errors(FIRST), "weak": weak_errors(FIRST)}, sys.stdout)
