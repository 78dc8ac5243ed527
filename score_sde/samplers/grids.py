"""Grids: the times between T and t_min that a sampler with a fixed number of steps takes.

The times of a process are its noise levels nu = sigma / alpha = exp(-log_snr / 2), which rise in t.
The process's inverse log-SNR turns a grid of noise levels into times.

    uniform    t_i = T + i/N (t_min - T), or what a process has in its place (`edm`)
    paper      the original code's: N times from T to t_min, so N - 1 steps, and the last of its N
               evaluations is the denoising at t_min
    quadratic  VP's noise levels (beta from 0.1 to 20) at its times uniform in sqrt(t): t_i =
               (sqrt(t_0) + i/N (sqrt(t_N) - sqrt(t_0)))^2 (Zhang and Chen 2022, arXiv:2204.13902)
    log_snr    uniform in log-SNR (Lu et al. 2022, DPM-Solver, arXiv:2206.00927, section 3.3)
    karras     uniform in nu^(1/rho) (Karras et al. 2022, arXiv:2206.00364, eq. 5)
    angle      uniform in arctan((nu / c)^(1/r)), c = 1/2, r = 3/2
    leading    of a chain of N levels every (N // n)th, from the level 0 of the least noise upwards,
               or from the level steps_offset
    trailing   of a chain every (N / n)th, from the level of the most noise downwards
    linspace   of a chain n levels from end to end

`angle` is the angle of the cosine schedule (Nichol and Dhariwal 2021, arXiv:2102.09672, where c
and r are 1), shifted and stretched. Its steps in log-SNR are long in nearly pure noise and in
nearly clean images, and short about c, where the image is decided. The other grids spend steps
where the denoised image hardly changes. Under sub-VP, whose sigma falls to 1e-4, they do so most. c
and r were compared on mixtures and on digits (benchmarks/README.md).

The last three are the spacings of diffusers' schedulers (Lin et al. 2024,
arXiv:2305.08891, table 2). As with `paper`, num_steps = n is the number of times, and the last
evaluation is the denoising. `leading` does not begin at T.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.discrete import discretization
from score_sde.errors import besides, require
from score_sde.samplers.base import require_positive
from score_sde.samplers.stepped import SteppedSampler
from score_sde.sde import SDE, VPSDE

SPACINGS = ("leading", "trailing", "linspace")
GRIDS = ("uniform", "paper", "quadratic", "log_snr", "karras", "angle", *SPACINGS)
FROM_DATA = ("quadratic", "log_snr", "karras")  # grids that begin at a finite log-SNR
COUNTED = ("paper", *SPACINGS)  # grids of num_steps times
ANGLE_CENTRE, ANGLE_STRETCH = 0.5, 1.5


@dataclass(frozen=True)
class GridSampler(SteppedSampler):
    """A sampler that takes the steps of a grid.

    Attributes:
        num_steps: steps; for the grids of ``COUNTED``, times.
        denoise, t_min: as of every ``SteppedSampler``.
        grid: the times, one of ``GRIDS``.
        rho: of the grid `karras`.
        steps_offset: of the grid `leading`: the level of the last time.
        num_levels: of the chain that a network was trained on. The times are then levels of the
            chain. 0 without a chain.
    """

    grid: str = field(default="angle", kw_only=True)
    rho: float = field(default=7.0, kw_only=True)
    steps_offset: int = field(default=0, kw_only=True)
    num_levels: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.grid in GRIDS, "grid", self.grid, ", ".join(GRIDS))
        require_positive(rho=self.rho)
        allowed, levels = f"integers of at least 2 with grid = {self.grid!r}", self.num_levels
        counted = self.grid in COUNTED
        require(self.num_steps > 1 or not counted, "num_steps", self.num_steps, allowed)
        most = levels if counted else levels - 1
        allowed = f"1 to {most} with num_levels = {levels}, as each time is a level"
        require(not levels or self.num_steps <= most, "num_steps", self.num_steps, allowed)
        others = besides(GRIDS, *SPACINGS)
        ok = bool(levels) or self.grid not in SPACINGS
        require(ok, "grid", self.grid, f"{others} for a network without levels (num_levels = 0)")
        if self.grid == "leading":
            most, offset = levels // self.num_steps - 1, self.steps_offset
            allowed = f"0 to {most} with num_levels = {levels}, num_steps = {self.num_steps}"
            require(0 <= offset <= most, "steps_offset", offset, allowed)

    def check_start(self, sde: SDE, score: Any) -> None:
        super().check_start(sde, score)
        ok = self.grid not in FROM_DATA or sde.keeps_data()
        without = FROM_DATA if self.num_levels else (*FROM_DATA, *SPACINGS)
        require(ok, "grid", self.grid, f"{besides(GRIDS, *without)} where alpha(T) = 0")

    @property
    def without_effect(self) -> set[str]:
        others = {"karras": "rho", "leading": "steps_offset"}
        without = {name for grid, name in others.items() if grid != self.grid}
        return super().without_effect | without | ({"t_min"} if self.grid in SPACINGS else set())

    def times(self, sde: SDE) -> Array:
        """The times from T to t_min, (steps + 1,)."""
        t_min, of_grid = self.last_time(sde), (self.rho, self.num_levels, self.steps_offset)
        return times(self.grid, sde, self.num_steps, t_min, *of_grid)


def times(
    grid: str,
    sde: SDE,
    num_steps: int,
    t_min: float,
    rho: float = 7.0,
    num_levels: int = 0,
    steps_offset: int = 0,
) -> Array:
    """The times of a grid from T to t_min, falling: (num_steps + 1,), or (num_steps,) for the grids
    of ``COUNTED``.

    Args:
        grid: one of ``GRIDS``.
        sde: the process.
        num_steps: steps; for the grids of ``COUNTED``, times.
        t_min: the last time.
        rho: of `karras`: the larger, the more steps at low noise.
        num_levels: 0, or the number of levels of the chain that a network was trained on. Then each
            time is moved to a level, and no two times to the same.
        steps_offset: of `leading`: the level of the last time.
    """
    if grid in SPACINGS:
        noisier = _spaced(grid, num_steps, num_levels) - steps_offset
        return sde.inverse_log_snr(_chain(sde, num_levels)[noisier])
    if grid == "uniform":
        times = sde.time_steps(sde.T, t_min, num_steps + 1)
    elif grid == "paper":
        times = sde.time_steps(sde.T, t_min, num_steps)
    else:
        ends = sde.log_snr(jnp.asarray([sde.T, t_min]))
        if grid == "log_snr":
            levels = jnp.linspace(ends[0], ends[1], num_steps + 1)
        elif grid == "quadratic":
            vp = VPSDE()
            roots = jnp.sqrt(vp.inverse_log_snr(ends))
            levels = vp.log_snr(jnp.square(jnp.linspace(roots[0], roots[1], num_steps + 1)))
        elif grid == "karras":
            roots = jnp.exp(-0.5 * ends / rho)  # nu^(1 / rho)
            levels = -2.0 * rho * jnp.log(jnp.linspace(roots[0], roots[1], num_steps + 1))
        else:
            shift = 2.0 * jnp.log(ANGLE_CENTRE)
            angles = jnp.arctan(jnp.exp(-0.5 * (ends + shift) / ANGLE_STRETCH))
            roots = jnp.tan(jnp.linspace(angles[0], angles[1], num_steps + 1))
            levels = -2.0 * ANGLE_STRETCH * jnp.log(roots) - shift
        times = jnp.clip(sde.inverse_log_snr(levels), t_min, sde.T)
        times = times.at[0].set(sde.T).at[-1].set(t_min)  # where the inverse has rounded
    return _at_levels(sde, times, num_levels) if num_levels else times


def _spaced(grid: str, num: int, num_levels: int) -> np.ndarray:
    """Of ``num`` evenly spaced levels of a chain, how many levels have more noise, rising."""
    if grid == "trailing":
        return num_levels - np.rint(num_levels - np.arange(num) * num_levels / num).astype(int)
    if grid == "linspace":
        levels = np.rint(np.linspace(0, num_levels - 1, num))  # counted as DDPM's
        return num_levels - 1 - levels[::-1].astype(int)
    return num_levels - 1 - np.arange(num)[::-1] * (num_levels // num)


def _at_levels(sde: SDE, times: Array, num_levels: int) -> Array:
    """The times of the nearest levels, all of them different."""
    levels = _chain(sde, num_levels)
    index, steps = _nearest(levels, sde.log_snr(times)), jnp.arange(len(times))
    # Each at least one level further than the one before, and all of them within the chain.
    index = jax.lax.cummax(index - steps) + steps
    index = jnp.minimum(index, num_levels - len(times) + steps)
    return sde.inverse_log_snr(levels[index])


def nearest_levels(sde: SDE, log_snr: Array, num_levels: int) -> Array:
    """The log-SNRs of the chain's levels that lie nearest to the given ones, (n,)."""
    levels = _chain(sde, num_levels)
    return levels[_nearest(levels, log_snr)]


def _chain(sde: SDE, num_levels: int) -> Array:
    """The log-SNRs of the chain's levels, rising, (num_levels,)."""
    return jnp.sort(discretization(sde).chain(num_levels).log_snr())


def _nearest(levels: Array, log_snr: Array) -> Array:
    return jnp.argmin(jnp.abs(log_snr[:, None] - levels[None]), axis=1)
