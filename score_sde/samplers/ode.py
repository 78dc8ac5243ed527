"""The probability-flow ODE from noise to data (Song et al. 2021, eq. 13, section 4.3)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from score_sde.integrate import check, integrate
from score_sde.samplers.base import Samples, batch_shape, image_keys, require_positive, start
from score_sde.score import as_pytree, denoise, full_precision, of_one_sample
from score_sde.sde import SDE, ScoreFn


@dataclass(frozen=True)
class ProbabilityFlow:
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

    def sample(
        self,
        key: Array,
        sde: SDE,
        score: ScoreFn,
        x_init: Array | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        trajectory: bool = False,
        first: int = 0,
    ) -> Samples:
        """Draw samples; arguments as ``PredictorCorrector.sample``.

        Raises:
            RuntimeError: with the solver's reason, if a solve did not succeed.
        """
        sde.check()
        shape = batch_shape(x_init, shape)
        samples, result = _sample(
            key, sde, as_pytree(score), x_init, first, self, shape, trajectory
        )
        check(result)
        return samples


@partial(jax.jit, static_argnums=(5, 6, 7))
def _sample(
    key: Array,
    sde: SDE,
    score: Partial,
    x_init: Array | None,
    first: Array,
    sampler: ProbabilityFlow,
    shape: tuple[int, ...],
    trajectory: bool,
) -> tuple[Samples, Any]:
    t_min = sde.t_min if sampler.t_min is None else sampler.t_min
    given, conditions = of_one_sample(score)

    def field(t: Array, x: Array, conditions: dict[str, Any]) -> Array:
        return sde.probability_flow(given(conditions))(x[None], t[None])[0]

    with full_precision():
        solution = integrate(
            field,
            start(image_keys(key, shape[0], first), sde, x_init, shape),
            conditions,
            start=sde.T,
            end=t_min,
            rtol=sampler.rtol,
            atol=sampler.atol,
            times=jnp.linspace(sde.T, t_min, sampler.num_frames) if trajectory else None,
        )
        x = solution.y
        if sampler.denoise:
            x = denoise(sde, score, x, jnp.full(shape[0], t_min))
    path = None if solution.path is None else jnp.swapaxes(solution.path, 0, 1)
    return Samples(x, solution.nfe + int(sampler.denoise), path), solution.result
