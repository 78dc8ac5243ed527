"""Sampling of consistency models in one or a few steps."""

from dataclasses import dataclass, field

from jax import Array

from score_sde.samplers.grids import GridSampler
from score_sde.samplers.stepped import Context
from score_sde.sde import SDE


@dataclass(frozen=True)
class Consistency(GridSampler):
    """Song et al. 2023, Consistency Models, arXiv:2303.01469, algorithm 1: the data are denoised at
    once, then noised anew to the next time, and so on. A step is one evaluation. The samples are
    the denoised data of the last step. They are data without noise here, as in Geng et al. 2024, so
    all of the next time's noise is added to them.

    It is for models that were trained so (`consistency.loss`). Those of other models are blurred: a
    step returns their posterior mean.

    Attributes:
        num_steps and the others: as of every ``GridSampler``; `denoise` has no effect.
    """

    num_steps: int = 2
    grid: str = field(default="karras", kw_only=True)
    denoised_only = True

    @property
    def without_effect(self) -> set[str]:
        return {*super().without_effect, "denoise"}

    def tables(self, sde: SDE, times: Array) -> tuple[Array, Array]:
        return sde.alpha(times).at[-1].set(1.0), sde.sigma(times).at[-1].set(0.0)

    def step(self, x: Array, memory: None, i: Array, c: Context) -> tuple[Array, None]:
        alpha, sigma = c.tables
        return alpha[i + 1] * c.denoised(x, i) + sigma[i + 1] * c.noise(x, i), None

    def end(self, x: Array, memory: None, c: Context) -> Array:
        return x
