"""What all samplers share: their one method, their result, their noise and where they start.

Every image has a key of its own, folded from the caller's key and the image's index, so the images
do not depend on how many are drawn at a time.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from score_sde.images import image_keys
from score_sde.integrate import check
from score_sde.score import as_pytree
from score_sde.sde import SDE, ScoreFn

ALL = sys.maxsize  # states of a trajectory


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


class Sampler(ABC):
    """A sampler is a frozen dataclass of its settings; what it adds is ``run``.

    Attributes:
        t_min: the last time; None is the process's own.
    """

    t_min: float | None

    @property
    def coupled(self) -> bool:
        """Whether the samples of a batch depend on one another."""
        return False

    @property
    def without_effect(self) -> set[str]:
        """The settings that do nothing beside the others' values."""
        return set()

    @property
    def levels(self) -> str:
        """How a score of discrete levels takes a time, as for `score.network_score`."""
        return "matched"

    def check(self, sde: SDE) -> None:
        """Raise ValueError, naming the setting, for one that does not go with the process; compute
        nothing."""
        del sde

    @abstractmethod
    def run(
        self, keys: Array, sde: SDE, score: ScoreFn, x: Array, keep: int
    ) -> tuple[Samples, Any]:
        """Take x (B, *shape) from T to t_min, within a jitted function.

        Args:
            keys: one for each image, (B,).
            sde: the process.
            score: the score function.
            x: states at T.
            keep: states of the trajectory at most; 0 without one.

        Returns:
            the samples, and a solver's verdict on each (``diffrax.RESULTS``) or None.
        """

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
    ) -> Samples:
        """Draw samples.

        Args:
            key: a jax key.
            sde: the process.
            score: the score function, (x (B, *shape), t (B,)) -> (B, *shape).
            x_init: states at T, (B, *shape); drawn from the prior by default.
            shape: (B, *shape), where x_init is not given.
            trajectory: also return the states on the way: all of them, or a number of at least 2
                for so many at most, evenly chosen (the adaptive flow's are all so, 50 unless said).
            first: index of the first sample, for samples that are drawn in parts.

        Raises:
            ValueError: neither x_init nor shape, or both and they differ; a trajectory of one
                state.
            RuntimeError: with the solver's reason, if an adaptive solve did not succeed. Within a
                jitted function nothing is raised: the samples of such a solve are not numbers.
        """
        sde.check()
        shape = batch_shape(x_init, shape)
        keep = ALL if trajectory is True else int(trajectory)
        if keep < 0 or keep == 1:
            raise ValueError(f"trajectory = {trajectory!r}: allowed are True, integers from 2 on")
        samples, verdict = _run(key, sde, as_pytree(score), x_init, first, self, shape, keep)
        if verdict is not None:
            check(verdict)
        return samples

    def last_time(self, sde: SDE) -> float:
        """The time at which samples are taken."""
        return sde.t_min if self.t_min is None else self.t_min


@partial(jax.jit, static_argnums=(5, 6, 7))
def _run(
    key: Array,
    sde: SDE,
    score: Partial,
    x_init: Array | None,
    first: Array,
    sampler: Sampler,
    shape: tuple[int, ...],
    keep: int,
) -> tuple[Samples, Any]:
    keys = image_keys(key, shape[0], first)
    return sampler.run(keys, sde, score, start(keys, sde, x_init, shape), keep)


class SteppedSampler(Sampler):
    """A sampler whose steps are counted beforehand; what it adds is ``solve``."""

    def run(
        self, keys: Array, sde: SDE, score: ScoreFn, x: Array, keep: int
    ) -> tuple[Samples, None]:
        def noise(index: Array) -> Array:
            return normal(keys, 1 + index, x.shape[1:])

        return self.solve(sde, score, x, noise, keep), None

    @abstractmethod
    def solve(
        self,
        sde: SDE,
        score: ScoreFn,
        x: Array,
        noise: Callable[[Array], Array],
        keep: int = 0,
    ) -> Samples:
        """As ``run``, with the noises (B, *shape) in order of use from their index."""


def scan(
    step: Callable[[Any, Array], tuple[Any, Array]], carry: Any, num: int, keep: int
) -> tuple[Any, Array | None]:
    """`lax.scan` of step(carry, i) -> (carry, state) over i below num: the last carry, and the
    states after the steps that a trajectory of ``keep`` states has beside its first one."""
    steps = jnp.arange(num)
    if not keep:
        return jax.lax.scan(lambda carry, i: (step(carry, i)[0], None), carry, steps)
    if keep > num:
        return jax.lax.scan(step, carry, steps)
    # Room for the chosen ones alone: all steps of large images would fill the memory.
    chosen = np.rint(np.linspace(0, num, keep)).astype(int)[1:] - 1
    place = np.full(num, keep)  # out of range: dropped
    place[chosen] = np.arange(len(chosen))
    places, state = jnp.asarray(place), jax.eval_shape(step, carry, steps[0])[1]
    path = jnp.zeros((len(chosen), *state.shape), state.dtype)

    def kept(carry: tuple[Any, Array], i: Array) -> tuple[tuple[Any, Array], None]:
        inner, path = carry
        inner, state = step(inner, i)
        return (inner, path.at[places[i]].set(state, mode="drop")), None

    (carry, path), _ = jax.lax.scan(kept, (carry, path), steps)
    return carry, path


def normal(keys: Array, step: Array | int, shape: tuple[int, ...]) -> Array:
    """Standard normal noise (B, *shape) of one step, from each image's key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)


def start(keys: Array, sde: SDE, x_init: Array | None, shape: tuple[int, ...]) -> Array:
    """The state at T, (B, *shape): given, or drawn from the prior."""
    if x_init is not None:
        return x_init
    return sde.prior_std() * normal(keys, 0, shape[1:])


def batch_shape(x_init: Array | None, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of the batch, from whichever of the two the caller gave.

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


def fixed_steps(x: Array, end: Array, path: Array | None, nfe: int) -> Samples:
    """Samples of a sampler whose steps are counted beforehand, from x over the states of path (num,
    B, *shape) to the end."""
    if path is not None:
        path = jnp.concatenate([x[None], path])
    return Samples(end, jnp.full(len(x), nfe, jnp.int32), path)
