"""Samplers whose steps are counted beforehand: the one loop that they share.

The loop owns the grid of times, the noise of each step, the trajectory, what is done to the states
after a step, the last denoising and the count of evaluations. A sampler on it adds its times and
its step, and reads as its paper's algorithm box.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.samplers.base import (
    Progress,
    Sampler,
    Samples,
    Start,
    normal,
    require_positive,
)
from score_sde.score import denoise, evaluations
from score_sde.sde import SDE

PARTS = 50  # of a loop that reports its progress, at most
PROJECTION = 2**32 - 1  # folded into the keys of projections, beyond every step's number


class Context(NamedTuple):
    """What the steps of a stepped sampler work with.

    Attributes:
        sde: the process.
        score: the score function, which counts its evaluations.
        times: of the grid, falling, (steps + 1,).
        tables: of all times, as ``SteppedSampler.tables`` computes them.
        keys: one for each sample, (B,).
        project: what is done to the states after each step, or None.
    """

    sde: SDE
    score: Any
    times: Array
    tables: Any
    keys: Array
    project: Any = None

    def t(self, i: Array | int) -> Array:
        """The grid's i-th time for each sample, (B,)."""
        return jnp.full(len(self.keys), self.times[i])

    def denoised(self, x: Array, i: Array | int) -> Array:
        """E[x0 | x] at the grid's i-th time."""
        return denoise(self.sde, self.score, x, self.t(i))

    def noise(self, x: Array, index: Array | int) -> Array:
        """Standard normal noise like x (B, *shape); each index has its own."""
        return normal(self.keys, 1 + index, x.shape[1:], x.dtype)

    def projected(self, x: Array, t: Array, index: Array | int) -> Array:
        """The states after the projection at t (B,), if there is one; each index has its own
        noise."""
        if self.project is None:
            return x

        def fold(key: Array) -> Array:
            return jax.random.fold_in(jax.random.fold_in(key, PROJECTION), index)

        found: Array = self.project(x, t, jax.vmap(fold)(self.keys))
        return found.astype(x.dtype)


class _State(NamedTuple):
    """A stepped sampler between two steps: the states, the memory of its steps, the evaluations so
    far and the trajectory so far."""

    x: Array
    memory: Any
    nfe: Array
    path: Array | None


@dataclass(frozen=True)
class SteppedSampler(Sampler):
    """A sampler with a fixed number of steps. A subclass adds ``times`` and ``step``.

    Attributes:
        num_steps: steps.
        denoise: return the denoised end state (one evaluation more).
        t_min: the last time; None is the process's own.
    """

    num_steps: int = 100
    denoise: bool = field(default=True, kw_only=True)
    t_min: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_positive(num_steps=self.num_steps)

    @abstractmethod
    def times(self, sde: SDE) -> Array:
        """The times at which the steps begin, and the one at which the last ends."""

    def tables(self, sde: SDE, times: Array) -> Any:
        """Quantities of all times that the steps need, computed once."""
        return None

    def memory(self, x: Array) -> Any:
        """The memory before the first step, for states x at T."""
        return None

    @abstractmethod
    def step(self, x: Array, memory: Any, i: Array, c: Context) -> tuple[Array, Any]:
        """The step from the i-th time to the next: the states reached, and the memory for the next
        step. Every evaluation of ``c.score`` is counted."""

    def after(self, x: Array, i: Array, c: Context) -> Array:
        """The states after the projection that follows the i-th step."""
        return c.projected(x, c.t(i + 1), i)

    def end(self, x: Array, memory: Any, c: Context) -> Array:
        """The samples, from the states at the last time."""
        return c.denoised(x, len(c.times) - 1) if self.denoise else x

    def _draw(
        self, start: Start, shape: tuple[int, ...], keep: int, progress: Progress | None
    ) -> Samples:
        if progress is None:
            return _whole(start, self, shape, keep)
        state, keys = _begin(start, self, shape, keep)
        num = len(jax.eval_shape(self.times, start.sde)) - 1
        part = -(-num // PARTS)
        for begin in range(0, num, part):
            stop = min(begin + part, num)
            state = _steps(state, keys, start, begin, stop, self, keep)
            jax.block_until_ready(state.nfe)
            progress(stop / num)
        return _end(state, keys, start, self)

    def _context(self, keys: Array, start: Start, dtype: Any) -> Context:
        def reals(array: Array) -> Array:
            # Under 64-bit JAX the states may be float32. Then so are these, and the noise.
            real = jnp.issubdtype(array.dtype, jnp.floating)
            return array.astype(jnp.promote_types(dtype, jnp.float32)) if real else array

        times = reals(self.times(start.sde))
        tables = jax.tree.map(reals, self.tables(start.sde, times))
        return Context(start.sde, _Counted(start.score), times, tables, keys, start.project)

    def _step(self, state: _State, i: Array, c: Context, keep: int) -> _State:
        """One step, with its projection, its evaluations and its place in the trajectory."""
        c.score.calls = 0
        new, old = self.step(state.x, state.memory, i, c), (state.x, state.memory)
        # float32 states stay so under a score whose constants are float64.
        x, memory = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), new, old)
        x = self.after(x, i, c)
        path = state.path
        if path is not None:
            places = jnp.asarray(_places(len(c.times) - 1, keep))
            path = path.at[places[i]].set(x, mode="drop")
        return _State(x, memory, state.nfe + c.score.calls, path)

    def _started(self, x: Array, times: Array, keep: int) -> _State:
        path = None
        if keep:
            # Room for the chosen states alone: all steps of large images would fill the memory.
            states = min(keep, len(times))
            path = jnp.zeros((states, *x.shape), x.dtype).at[0].set(x)
        return _State(x, self.memory(x), jnp.zeros((), jnp.int32), path)

    def _ended(self, state: _State, c: Context) -> Samples:
        c.score.calls = 0
        end = self.end(state.x, state.memory, c)
        nfe = jnp.full(len(end), state.nfe + c.score.calls, jnp.int32)
        return Samples(end, nfe, state.path)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _whole(start: Start, sampler: SteppedSampler, shape: tuple[int, ...], keep: int) -> Samples:
    """The whole loop as one program."""
    keys, x = start.states(shape)
    c = sampler._context(keys, start, x.dtype)

    def body(state: _State, i: Array) -> tuple[_State, None]:
        return sampler._step(state, i, c, keep), None

    state = sampler._started(x, c.times, keep)
    state, _ = jax.lax.scan(body, state, jnp.arange(len(c.times) - 1))
    return sampler._ended(state, c)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _begin(
    start: Start, sampler: SteppedSampler, shape: tuple[int, ...], keep: int
) -> tuple[_State, Array]:
    keys, x = start.states(shape)
    return sampler._started(x, sampler.times(start.sde), keep), keys


@partial(jax.jit, static_argnums=(5, 6))
def _steps(
    state: _State,
    keys: Array,
    start: Start,
    begin: Array,
    stop: Array,
    sampler: SteppedSampler,
    keep: int,
) -> _State:
    """The steps begin ... stop - 1. Both are arguments, so that one program runs all parts."""
    c = sampler._context(keys, start, state.x.dtype)

    def body(i: Array, state: _State) -> _State:
        return sampler._step(state, i, c, keep)

    return jax.lax.fori_loop(begin, stop, body, state)


@partial(jax.jit, static_argnums=3)
def _end(state: _State, keys: Array, start: Start, sampler: SteppedSampler) -> Samples:
    return sampler._ended(state, sampler._context(keys, start, state.x.dtype))


METHODS = ("denoised", "score_and_share", "twisted")  # of a score at (x, t)


class _Counted:
    """A score that counts its evaluations, with the methods and attributes that the score has.

    Attributes:
        calls: evaluations so far; traced where they depend on the time. Python counts, so a loop of
            `jax.lax` has to hand on its own (`inverse.repaint` does).
    """

    def __init__(self, score: Any) -> None:
        self._score = score
        self.calls: int | Array = 0

    def __call__(self, x: Array, t: Array) -> Array:
        return self._counted(self._score, x, t)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._score, name)
        return partial(self._counted, found) if name in METHODS else found

    def _counted(self, function: Callable[[Array, Array], Any], x: Array, t: Array) -> Any:
        self.calls = self.calls + evaluations(self._score, t)
        return function(x, t)


def _places(num: int, keep: int) -> np.ndarray:
    """Where the trajectory keeps the state after each of ``num`` steps; out of range: nowhere."""
    if keep > num:
        return np.arange(1, num + 1)
    chosen = np.rint(np.linspace(0, num, keep)).astype(int)[1:] - 1
    places = np.full(num, keep)
    places[chosen] = np.arange(1, len(chosen) + 1)
    return places
