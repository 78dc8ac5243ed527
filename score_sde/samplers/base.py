"""What all samplers share: their one method, their noise and where they start.

Every sample has its own key, folded from the caller's key and the sample's index. So samples do not
depend on how many are drawn at a time. The score is always evaluated on the whole batch.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.display import as_pictures, form, mean, shown
from score_sde.errors import require
from score_sde.functions import as_pytree, check_arguments, divides_by_alpha
from score_sde.score import OF_PURE_NOISE
from score_sde.sde import SDE, ScoreFn
from score_sde.spaces import item_keys

ALL = sys.maxsize  # states of a trajectory

Progress = Callable[[float], None]
"""It is called with the share of the steps that are done."""
Project = Callable[[Array, Array, Array], Array]
"""What is done to the states after each step: (x (B, *shape), t (B,), keys (B,)) -> (B, *shape)."""


@shown
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

    def _facts(self) -> dict[str, str]:
        return {"x": form(self.x), "NFE": mean(self.nfe), "trajectory": form(self.trajectory)}

    def _pictures(self) -> tuple[Any, int] | None:
        return as_pictures(self.x)


class Start(NamedTuple):
    """What a sampler starts from: a key, the process, the score, the projection or None, the states
    at T or None, and the index of the first sample."""

    key: Array
    sde: SDE
    score: Any
    project: Any
    x_init: Array | None
    first: Array | int

    def states(self, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Each sample's key (B,), and the states at T (B, *shape): given, or drawn from the
        prior."""
        keys = item_keys(self.key, shape[0], self.first)
        if self.x_init is not None:
            return keys, self.x_init
        return keys, from_prior(self.key, self.sde, shape, self.first)


def from_prior(
    key: Array, sde: SDE, shape: tuple[int, ...], first: Array | int = 0, dtype: Any = float
) -> Array:
    """The states at T (B, *shape) from which samplers start by default."""
    noise = normal(item_keys(key, shape[0], first), 0, shape[1:], dtype)
    return sde.prior_std().astype(noise.dtype) * noise


class Sampler(ABC):
    """A frozen dataclass of settings. Its fields are the keys of the section `sampling` that it
    reads.

    Attributes:
        t_min: the last time; None is the process's own.
        denoised_only: it asks the score only for the denoised data, so it can also start where
            alpha(T) = 0.
    """

    t_min: float | None
    denoised_only: ClassVar[bool] = False

    @property
    def coupled(self) -> bool:
        """Whether the samples of a batch depend on one another."""
        return False

    @property
    def reads_variance(self) -> bool:
        """Whether it needs variances of reverse steps that the model has learned."""
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
        end: Any = sde.T
        if self.t_min is not None and not isinstance(end, jax.core.Tracer):
            ok = 0 < self.t_min < end
            require(ok, "t_min", self.t_min, f"times above 0 and below T = {end:g}")

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
        progress: Progress | None = None,
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
                state; a setting that does not fit the process; a process or score with which the
                sampler cannot start; ``project`` with the adaptive flow; a score or projection of
                other arguments, such as one in place of the other.
            RuntimeError: with the reason, if an adaptive solve did not succeed. Within a jitted
                function nothing is raised: the samples of such a solve are nan.
        """
        self.check(sde)
        check_arguments("score", score, "x, t")
        if project is not None:
            check_arguments("project", project, "x, t, keys")
        self.check_start(sde, score)
        found = shape if x_init is None else x_init.shape
        if found is None:
            raise ValueError("shape = None: allowed is (B, *shape), or states as x_init")
        same = shape is None or tuple(shape) == tuple(found)
        require(same, "shape", shape, f"x_init's shape {tuple(found)}")
        keep = ALL if trajectory is True else int(trajectory)
        ok = keep >= 0 and keep != 1
        require(ok, "trajectory", trajectory, "True, integers from 2 on")
        projection = None if project is None else as_pytree(project)
        start = Start(key, sde, as_pytree(score), projection, x_init, first)
        return self._draw(start, tuple(found), keep, progress)

    @abstractmethod
    def _draw(
        self, start: Start, shape: tuple[int, ...], keep: int, progress: Progress | None
    ) -> Samples:
        """Draw from a checked start, whose score and projection are pytrees. ``keep`` is the
        largest number of states in the trajectory."""

    def last_time(self, sde: SDE) -> float:
        """The time at which samples are taken."""
        return sde.t_min if self.t_min is None else self.t_min

    def check_start(self, sde: SDE, score: Any) -> None:
        """Raise ValueError if the sampler cannot start at T with a score, of which its methods
        count; within a jitted function do nothing."""
        if not self.denoised_only:
            sde.check()
            return
        # The levels of a chain end before alpha is 0.
        divides = divides_by_alpha(score) and not getattr(score, "num_levels", 0)
        if (divides or not hasattr(score, "denoised")) and not sde.keeps_data():
            raise ValueError(
                f"{type(sde).__name__}: alpha(T) = 0, where the score alone does not give the "
                "denoised data; allowed are scores with a method denoised(x, t) that does not "
                f"divide by alpha, such as models with parameterization {', '.join(OF_PURE_NOISE)}"
            )


def normal(keys: Array, step: Array | int, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """Standard normal noise (B, *shape) of one step, from each sample's key."""

    def draw(key: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, step), shape, dtype)

    return jax.vmap(draw)(keys)


def norm(x: Array) -> Array:
    """The norm of each sample, (B,)."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=range(1, x.ndim)))


def require_positive(**settings: Any) -> None:
    """Raise ValueError, naming the setting, for one that is not above 0, where it is known before
    compilation."""
    for name, value in settings.items():
        known = not isinstance(value, jax.core.Tracer)
        require(not known or bool(value > 0), name, value, "numbers above 0")


def require_fraction(**settings: float) -> None:
    """Raise ValueError, naming the setting, for one that is not between 0 and 1."""
    for name, value in settings.items():
        require(0 <= value <= 1, name, value, "numbers from 0 to 1")
