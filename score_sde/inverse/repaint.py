"""RePaint: replacement with resampling (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1).

After a projection the state is taken back to the noise level that it came from, by a forward step,
and the step is made again. So the part that is not measured comes to agree with the measured one.

Noisy measurements are not in the paper. At low levels the projection leaves components of the state
as they are. The state alone then knows what was measured of them. So the forward step leaves them,
too.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.errors import require
from score_sde.samplers.base import Progress, Samples, Start, require_positive
from score_sde.samplers.exponential import DDIM
from score_sde.samplers.stepped import PROJECTION, Context
from score_sde.sde import expand


@dataclass(frozen=True)
class RePaint(DDIM):
    """`sample` with ``project=inverse.replacement(...)``: each step is made ``resamplings`` times.

    Attributes:
        eta: of the steps; 1 is DDPM's ancestral sampling, as in the paper.
        resamplings: how often each step is made, at an evaluation each.
        num_steps and the others: as of `DDIM`.
    """

    eta: float = 1.0
    resamplings: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(resamplings=self.resamplings)

    def _draw(
        self, start: Start, shape: tuple[int, ...], keep: int, progress: Progress | None
    ) -> Samples:
        ok = start.project is not None
        require(ok, "project", None, "projections, such as that of inverse.replacement")
        return super()._draw(start, shape, keep, progress)

    def step(self, x: Array, memory: None, i: Array, c: Context) -> tuple[Array, None]:
        once, s = super().step, c.t(i + 1)
        factor, std = c.sde.transition(s, c.t(i))

        def again(u: Array, states: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            c.score.calls = 0  # those of this turn, which the loop hands on
            own = c._replace(keys=jax.vmap(lambda key: _fold(key, u))(c.keys))
            reached, _ = once(states[0], None, i, own)
            reached = own.projected(reached, s, i)
            z = own.noise(x, len(c.times) + i)  # beyond the steps' own
            back = expand(factor, x) * reached + expand(std, x) * z
            if hasattr(c.project, "held"):
                back = c.project.held(back, states[0], s)
            return back, reached.astype(x.dtype), states[2] + c.score.calls

        begin = x, jnp.zeros_like(x), jnp.int32(0)
        _, reached, c.score.calls = jax.lax.fori_loop(0, self.resamplings, again, begin)
        return reached, None

    def after(self, x: Array, i: Array, c: Context) -> Array:
        return x  # its steps have projected


def _fold(key: Array, u: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(key, PROJECTION - 1), u)
