"""The probability-flow ODE from noise to data (Song et al. 2021, eq. 13, section 4.3)."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from score_sde.integrate import integrate
from score_sde.samplers.base import Sampler, Samples, require_positive
from score_sde.score import as_pytree, denoise, full_precision, of_one_sample
from score_sde.sde import SDE, ScoreFn


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """Adaptive solve of the probability flow, a step size for each sample, at ``highest`` matrix
    precision.

    Attributes:
        rtol: relative tolerance of a step's error.
        atol: absolute tolerance of a step's error.
        denoise: return the denoised end state (Tweedie's formula, one evaluation more).
        t_min: the last time; None is the process's own.
        num_frames: states in a trajectory, from T to t_min.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    denoise: bool = True
    t_min: float | None = None
    num_frames: int = 50

    def __post_init__(self) -> None:
        require_positive(rtol=self.rtol, atol=self.atol, num_frames=self.num_frames)

    def run(
        self, keys: Array, sde: SDE, score: ScoreFn, x: Array, trajectory: bool
    ) -> tuple[Samples, Any]:
        t_min = self.last_time(sde)
        given, conditions = of_one_sample(as_pytree(score))

        def field(t: Array, x: Array, conditions: dict[str, Any]) -> Array:
            return sde.probability_flow(given(conditions))(x[None], t[None])[0]

        with full_precision():
            solution = integrate(
                field,
                x,
                conditions,
                start=sde.T,
                end=t_min,
                rtol=self.rtol,
                atol=self.atol,
                times=jnp.linspace(sde.T, t_min, self.num_frames) if trajectory else None,
            )
            end = solution.y
            if self.denoise:
                end = denoise(sde, score, end, jnp.full(len(x), t_min))
        path = None if solution.path is None else jnp.swapaxes(solution.path, 0, 1)
        return Samples(end, solution.nfe + int(self.denoise), path), solution.result
