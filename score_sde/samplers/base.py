"""What all samplers share: their one method, their loop, their noise and where they start.

Every sample has its own key, folded from the caller's key and the sample's index. So samples do not
depend on how many are drawn at a time. The score is always evaluated on the whole batch.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.score import as_pytree, denoise
from score_sde.sde import SDE, ScoreFn
from score_sde.spaces import item_keys

ALL = sys.maxsize  # states of a trajectory
PARTS = 50  # of a loop that reports its progress, at most
PROJECTION = 2**32 - 1  # folded into the keys of projections, beyond every step's number

Project = Callable[[Array, Array, Array], Array]
"""What is done to the states after each step: (x (B, *shape), t (B,), keys (B,)) -> (B, *shape)."""


class Samples(NamedTuple):
    """What a sampler returns.

    Attributes:
        x: (B, *shape) at t_min, or denoised where the sampler's settings say so.
        nfe: evaluations of the score for each sample, all counted: (B,) int32.
        trajectory: states from the one at T to the one at t_min, (states, B, *shape); None unless
            requested.
    """

    x: Array
    nfe: Array
    trajectory: Array | None = None


class Start(NamedTuple):
    """Where samples start: a key, the process, states at T if given, and the first one's index."""

    key: Array
    sde: SDE
    x_init: Array | None
    first: Array | int

    def states(self, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Each sample's key (B,), and the states at T (B, *shape): given, or drawn from the
        prior."""
        keys = item_keys(self.key, shape[0], self.first)
        if self.x_init is not None:
            return keys, self.x_init
        noise = normal(keys, 0, shape[1:])
        return keys, self.sde.prior_std().astype(noise.dtype) * noise


class Sampler(ABC):
    """A frozen dataclass of settings. Its fields are the keys of the section `sampling` that it
    reads.

    Attributes:
        t_min: the last time; None is the process's own.
        denoised_only: it needs the denoised data alone of the model. So it starts where alpha(T) =
            0, too.
    """

    t_min: float | None
    denoised_only: ClassVar[bool] = False

    @property
    def coupled(self) -> bool:
        """Whether the samples of a batch depend on one another."""
        return False

    @property
    def without_effect(self) -> set[str]:
        """Its own settings that have no effect, given the others."""
        return set()

    @property
    def levels(self) -> str:
        """Which level a network of discrete levels gets at a time (`score.Model`)."""
        return "matched"

    def check(self, sde: SDE) -> None:
        """Raise ValueError, naming the setting, if one does not fit the process. Compute
        nothing."""
        del sde  # most fit all

    def sample(
        self,
        key: Array,
        sde: SDE,
        score: ScoreFn,
        x_init: Array | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        trajectory: bool | int = False,
        first: int = 0,
        project: Project | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Samples:
        """Draw samples.

        Args:
            key: a jax key.
            sde: the process.
            score: the score function, (x (B, *shape), t (B,)) -> (B, *shape).
            x_init: states at T, (B, *shape); drawn from the prior by default.
            shape: (B, *shape), if x_init is not given.
            trajectory: also return the states on the way. True is all of them (50 of the adaptive
                flow); a number of at least 2 is so many at most, evenly chosen.
            first: index of the first sample, for samples that are drawn in parts.
            project: applied after each step, at the time reached. The adaptive flow refuses it.
            progress: called at times with the share of the steps done, up to 1. The adaptive flow
                never calls it.

        Raises:
            ValueError: neither x_init nor shape, or both and they differ; a trajectory of one
                state; a process or score with which the sampler cannot start; ``project`` with the
                adaptive flow.
            RuntimeError: with the reason, if an adaptive solve did not succeed. Within a jitted
                function nothing is raised: the samples of such a solve are nan.
        """
        self.check_start(sde, score)
        shape = batch_shape(x_init, shape)
        keep = ALL if trajectory is True else int(trajectory)
        if keep < 0 or keep == 1:
            raise ValueError(f"trajectory = {trajectory!r}: allowed are True, integers from 2 on")
        start = Start(key, sde, x_init, first)
        project = None if project is None else as_pytree(project)
        return self._draw(start, shape, as_pytree(score), project, keep, progress)

    @abstractmethod
    def _draw(
        self,
        start: Start,
        shape: tuple[int, ...],
        score: Any,
        project: Any,
        keep: int,
        progress: Callable[[float], None] | None,
    ) -> Samples:
        """Draw from a checked start. Score and projection are pytrees. ``keep`` is the largest
        number of states in the trajectory."""

    def last_time(self, sde: SDE) -> float:
        """The time at which samples are taken."""
        return sde.t_min if self.t_min is None else self.t_min

    def check_start(self, sde: SDE, score: ScoreFn) -> None:
        """Raise ValueError if the sampler cannot start at T; within a jitted function do
        nothing."""
        if not self.denoised_only:
            sde.check()
        elif not sde.keeps_data() and not hasattr(score, "denoised"):
            raise ValueError(
                f"{type(sde).__name__}: alpha(T) = 0, where the score alone does not give the "
                "denoised data; allowed are scores with a method denoised(x, t)"
            )


class Context(NamedTuple):
    """What the steps of a stepped sampler work with.

    Attributes:
        sde: the process.
        score: the score function.
        times: of the grid, falling, (steps + 1,).
        tables: of all times, as ``SteppedSampler.tables`` computes them.
        keys: one for each sample, (B,).
    """

    sde: SDE
    score: ScoreFn
    times: Array
    tables: Any
    keys: Array

    def t(self, i: Array | int) -> Array:
        """The grid's i-th time for each sample, (B,)."""
        return jnp.full(len(self.keys), self.times[i])

    def denoised(self, x: Array, i: Array | int) -> Array:
        """E[x0 | x] at the grid's i-th time."""
        return denoise(self.sde, self.score, x, self.t(i))

    def noise(self, x: Array, index: Array | int) -> Array:
        """Standard normal noise like x (B, *shape); each index has its own."""
        return normal(self.keys, 1 + index, x.shape[1:], x.dtype)


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

    def end(self, x: Array, memory: Any, c: Context) -> Array:
        """The samples, from the states at the last time."""
        return c.denoised(x, len(c.times) - 1) if self.denoise else x

    def _draw(
        self,
        start: Start,
        shape: tuple[int, ...],
        score: Any,
        project: Any,
        keep: int,
        progress: Callable[[float], None] | None,
    ) -> Samples:
        if progress is None:
            return _whole(start, score, project, self, shape, keep)
        state, keys = _begin(start, self, shape, keep)
        sde, num = start.sde, len(jax.eval_shape(self.times, start.sde)) - 1
        part = -(-num // PARTS)
        for begin in range(0, num, part):
            stop = min(begin + part, num)
            state = _steps(state, keys, sde, score, project, begin, stop, self, keep)
            jax.block_until_ready(state.nfe)
            progress(stop / num)
        return _end(state, keys, sde, score, self)

    def _context(self, keys: Array, sde: SDE, score: ScoreFn) -> tuple[Context, list[None]]:
        """The context, and a list that grows with each evaluation of its score."""
        calls: list[None] = []
        times = self.times(sde)
        return Context(sde, _Counted(score, calls), times, self.tables(sde, times), keys), calls

    def _step(
        self, state: _State, i: Array, context: Context, calls: list[None], project: Any, keep: int
    ) -> _State:
        """One step, with its projection, its evaluations and its place in the trajectory."""
        calls.clear()
        x, memory = self.step(state.x, state.memory, i, context)
        if project is not None:
            fold = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, PROJECTION), i))
            x = project(x, context.t(i + 1), fold(context.keys))
        path = state.path
        if path is not None:
            places = jnp.asarray(_places(len(context.times) - 1, keep))
            path = path.at[places[i]].set(x, mode="drop")
        return _State(x, memory, state.nfe + len(calls), path)

    def _started(self, x: Array, times: Array, keep: int) -> _State:
        path = None
        if keep:
            # Room for the chosen states alone: all steps of large images would fill the memory.
            states = min(keep, len(times))
            path = jnp.zeros((states, *x.shape), x.dtype).at[0].set(x)
        return _State(x, self.memory(x), jnp.zeros((), jnp.int32), path)

    def _ended(self, state: _State, context: Context, calls: list[None]) -> Samples:
        calls.clear()
        end = self.end(state.x, state.memory, context)
        nfe = jnp.full(len(end), state.nfe + len(calls), jnp.int32)
        return Samples(end, nfe, state.path)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _whole(
    start: Start,
    score: Any,
    project: Any,
    sampler: SteppedSampler,
    shape: tuple[int, ...],
    keep: int,
) -> Samples:
    """The whole loop as one program."""
    keys, x = start.states(shape)
    context, calls = sampler._context(keys, start.sde, score)

    def body(state: _State, i: Array) -> tuple[_State, None]:
        return sampler._step(state, i, context, calls, project, keep), None

    state = sampler._started(x, context.times, keep)
    state, _ = jax.lax.scan(body, state, jnp.arange(len(context.times) - 1))
    return sampler._ended(state, context, calls)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _begin(
    start: Start, sampler: SteppedSampler, shape: tuple[int, ...], keep: int
) -> tuple[_State, Array]:
    keys, x = start.states(shape)
    return sampler._started(x, sampler.times(start.sde), keep), keys


@partial(jax.jit, static_argnums=(7, 8))
def _steps(
    state: _State,
    keys: Array,
    sde: SDE,
    score: Any,
    project: Any,
    begin: Array,
    stop: Array,
    sampler: SteppedSampler,
    keep: int,
) -> _State:
    """The steps begin ... stop - 1. Both are arguments, so that one program runs all parts."""
    context, calls = sampler._context(keys, sde, score)

    def body(i: Array, state: _State) -> _State:
        return sampler._step(state, i, context, calls, project, keep)

    return jax.lax.fori_loop(begin, stop, body, state)


@partial(jax.jit, static_argnums=4)
def _end(state: _State, keys: Array, sde: SDE, score: Any, sampler: SteppedSampler) -> Samples:
    return sampler._ended(state, *sampler._context(keys, sde, score))


class _Counted:
    """A score that counts its evaluations."""

    def __init__(self, score: ScoreFn, calls: list[None]) -> None:
        self._score, self._calls = score, calls
        if hasattr(score, "denoised"):
            self.denoised = self._denoised

    def __call__(self, x: Array, t: Array) -> Array:
        self._calls.append(None)
        return self._score(x, t)

    def _denoised(self, x: Array, t: Array) -> Array:
        self._calls.append(None)
        return self._score.denoised(x, t)  # type: ignore[attr-defined]  # it was asked for


def _places(num: int, keep: int) -> np.ndarray:
    """Where the trajectory keeps the state after each of ``num`` steps; out of range: nowhere."""
    if keep > num:
        return np.arange(1, num + 1)
    chosen = np.rint(np.linspace(0, num, keep)).astype(int)[1:] - 1
    places = np.full(num, keep)
    places[chosen] = np.arange(1, len(chosen) + 1)
    return places


def normal(keys: Array, step: Array | int, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """Standard normal noise (B, *shape) of one step, from each sample's key."""

    def draw(key: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, step), shape, dtype)

    return jax.vmap(draw)(keys)


def batch_shape(x_init: Array | None, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of the batch, from the one of the two that the caller gave.

    Raises:
        ValueError: if neither is given, or both and they differ.
    """
    if x_init is None:
        if shape is None:
            raise ValueError("give x_init or shape=(B, *shape)")
        return tuple(shape)
    if shape is not None and tuple(x_init.shape) != tuple(shape):
        raise ValueError(f"x_init has shape {x_init.shape}, but shape = {tuple(shape)}")
    return tuple(x_init.shape)


def require_positive(**settings: float) -> None:
    """Raise ValueError, naming the setting, for one that is not above 0."""
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name} = {value!r}: allowed are numbers above 0")


def require_fraction(**settings: float) -> None:
    """Raise ValueError, naming the setting, for one that is not between 0 and 1."""
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} = {value!r}: allowed are numbers from 0 to 1")
