"""The probability-flow ODE from noise to data (Song et al. 2021, eq. 13, section 4.3), and from
data to their latents and back."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.functions import as_pytree, check_arguments
from score_sde.integrate import MAX_STEPS, Solution, check, check_method, integrate
from score_sde.samplers.base import ALL, Progress, Sampler, Samples, Start, norm, require_positive
from score_sde.score import denoise, evaluations, full_precision
from score_sde.sde import SDE, ScoreFn, expand

FRAMES = 50  # of a trajectory by default, evenly in t


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """Solve of the probability flow at ``highest`` matrix precision.

    Attributes:
        rtol: relative tolerance of a step's error; without effect for ``euler``.
        atol: absolute tolerance of a step's error; likewise.
        solver: ``dopri5``, ``tsit5``, ``dopri8``, ``heun``, whose steps adapt, or ``euler``.
        step_control: ``sample``, a step size for each sample, or ``batch``, one for all. Then a
            sample depends on its batch-mates. Without effect for ``euler``.
        num_steps: of ``euler``, equal in t; None is 100. Without effect for the others.
        denoise: return the denoised end state (one evaluation more).
        t_min: the last time; None is the process's own.
        max_steps: after so many steps an adaptive solve fails. No result depends on it.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    solver: str = "dopri5"
    step_control: str = "sample"
    num_steps: int | None = None
    denoise: bool = True
    t_min: float | None = None
    max_steps: int = field(default=MAX_STEPS, repr=False)

    levels = "smooth"

    def __post_init__(self) -> None:
        require_positive(rtol=self.rtol, atol=self.atol)
        check_method(self.solver, self.step_control, self.steps)

    @property
    def steps(self) -> int | None:
        """Steps of ``euler``; None for the others."""
        if self.solver != "euler":
            return None
        return 100 if self.num_steps is None else self.num_steps

    @property
    def coupled(self) -> bool:
        return self.step_control == "batch" and self.solver != "euler"

    @property
    def without_effect(self) -> set[str]:
        adaptive = {"rtol", "atol", "step_control", "max_steps"}
        return {"num_steps"} if self.steps is None else adaptive

    def _draw(
        self, start: Start, shape: tuple[int, ...], keep: int, progress: Progress | None
    ) -> Samples:
        if start.project is not None:
            raise ValueError("project: allowed with samplers whose number of steps is fixed")
        samples, verdict = _sample(start, self, shape, keep)
        check(verdict, self.max_steps)
        return samples

    def check_start(self, sde: SDE, score: Any) -> None:
        sde.check_flow(score)

    def encode(self, sde: SDE, score: ScoreFn, x0: Array) -> Samples:
        """The latents at T of data: the end of the flow that starts at the data at t_min.

        Args:
            sde: the process.
            score: the score function. It is evaluated on all samples at once, so it may hold arrays
                with a row for each, such as labels (B,).
            x0: float (B, *shape), in the model's range.

        Returns:
            the latents, (B, *shape), as ``x``, and the evaluations. They are of the prior's size:
            their standard deviation is about ``sde.prior_std()``.

        Raises:
            ValueError: as `sample`.
            RuntimeError: with the reason, if a solve did not succeed.
        """
        self.check(sde)
        check_arguments("score", score, "x, t")
        sde.check_flow(score)
        latents, verdict = _encode(sde, as_pytree(score), x0, self)
        check(verdict, self.max_steps)
        return latents

    def decode(self, sde: SDE, score: ScoreFn, latents: Array) -> Samples:
        """The states at t_min of latents at T, (B, *shape): the inverse of ``encode``, up to the
        tolerance.

        It never denoises. ``sample`` with ``x_init`` denoises if the settings say so. Arguments and
        errors are those of ``encode``.
        """
        unused = jax.random.key(0)  # nothing is drawn
        return replace(self, denoise=False).sample(unused, sde, score, latents)

    def solve(
        self, sde: SDE, score: ScoreFn, x: Array, start: float, end: float, times: Array | None
    ) -> Solution:
        """The flow of x (B, *shape) from one time to another, within a jitted function."""
        flow, num_steps = sde.probability_flow(score), self.steps
        names = ("rtol", "atol", "solver", "step_control", "max_steps")
        settings: Any = {name: getattr(self, name) for name in names}
        ends: Any = {"start": start, "end": end, "times": times, "num_steps": num_steps}
        with full_precision():
            solution = integrate(lambda t, x: flow(x, t), x, **ends, **settings)
        # With guidance in an interval every call counts as guided: some sample may be inside it.
        most = evaluations(score, jnp.linspace(start, end, 1000, dtype=x.dtype))
        return solution._replace(nfe=solution.nfe * most)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _sample(
    start: Start, flow: ProbabilityFlow, shape: tuple[int, ...], keep: int
) -> tuple[Samples, Array]:
    sde, score, t_min = start.sde, start.score, flow.last_time(start.sde)
    _, x = start.states(shape)
    frames = FRAMES if keep == ALL else keep
    times = jnp.linspace(sde.T, t_min, frames) if keep else None
    solution = flow.solve(sde, score, x, sde.T, t_min, times)
    end, nfe = solution.y, solution.nfe
    if flow.denoise:
        last = jnp.full(len(x), t_min, x.dtype)
        with full_precision():
            end, nfe = denoise(sde, score, end, last), nfe + evaluations(score, last)
    path = None if solution.path is None else jnp.swapaxes(solution.path, 0, 1)
    return Samples(end, nfe, path), solution.verdict


@partial(jax.jit, static_argnums=3)
def _encode(sde: SDE, score: Any, x0: Array, flow: ProbabilityFlow) -> tuple[Samples, Array]:
    solution = flow.solve(sde, score, x0, flow.last_time(sde), sde.T, None)
    return Samples(solution.y, solution.nfe), solution.verdict


def slerp(a: Array, b: Array, weights: Array) -> Array:
    """States between two on the great circle through both (Shoemake 1985).

    All latents have nearly the same norm, sqrt(D) times the prior's standard deviation. A straight
    line between two latents passes through norms that hardly occur. So the direction turns about
    the origin, the prior's mean, by equal angles for equal weights. The norm changes linearly:

        |x| = (1 - w) |a| + w |b|,    x / |x| = (sin((1 - w) angle) u + sin(w angle) v) / sin(angle)

    with u = a / |a| and v = b / |b|. Equal directions are kept. For opposite directions the circle
    is not unique, and the result is not defined.

    Args:
        a: (B, *shape), none of them 0.
        b: likewise.
        weights: (num,) in [0, 1], 0 for a and 1 for b.

    Returns:
        (B, num, *shape).
    """
    w = weights[None]  # beside (B, 1)
    u, v = a / expand(norm(a), a), b / expand(norm(b), b)
    # By sum and difference: an arc cosine loses small angles to rounding (Kahan 2006).
    angle = 2.0 * jnp.arctan2(norm(u - v), norm(u + v))[:, None]

    def share(w: Array) -> Array:  # sin(w angle) / sin(angle), which is w where the angle is 0
        return w * jnp.sinc(w * angle / jnp.pi) / jnp.sinc(angle / jnp.pi)

    size = (1.0 - w) * norm(a)[:, None] + w * norm(b)[:, None]
    mixed = expand(size * share(1.0 - w), a) * u[:, None]
    return mixed + expand(size * share(w), b) * v[:, None]
