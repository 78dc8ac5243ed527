"""What all samplers share: their one method, their result, their noise and where they start.

Every image has a key of its own, folded from the caller's key and the image's index, so the images
do not depend on how many are drawn at a time.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from score_sde.integrate import check
from score_sde.score import as_pytree
from score_sde.sde import SDE, ScoreFn


class Samples(NamedTuple):
    """What a sampler returns.

    Attributes:
        x: (B, *shape) at t_min, or denoised where the sampler's settings say so.
        nfe: evaluations of the score for each sample, all counted: (B,) int32.
        trajectory: states from the first to the last, (times, B, *shape); None unless requested.
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

    @abstractmethod
    def run(
        self, keys: Array, sde: SDE, score: ScoreFn, x: Array, trajectory: bool
    ) -> tuple[Samples, Any]:
        """Take x (B, *shape) from T to t_min, within a jitted function.

        Args:
            keys: one for each image, (B,).
            sde: the process.
            score: the score function.
            x: states at T.
            trajectory: also return the states on the way.

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
        trajectory: bool = False,
        first: int = 0,
    ) -> Samples:
        """Draw samples.

        Args:
            key: a jax key.
            sde: the process.
            score: the score function, (x (B, *shape), t (B,)) -> (B, *shape).
            x_init: states at T, (B, *shape); drawn from the prior by default.
            shape: (B, *shape), where x_init is not given.
            trajectory: also return the states on the way.
            first: index of the first sample, for samples that are drawn in parts.

        Raises:
            ValueError: neither x_init nor shape, or both and they differ.
            RuntimeError: with the solver's reason, if an adaptive solve did not succeed.
        """
        sde.check()
        shape = batch_shape(x_init, shape)
        samples, verdict = _run(key, sde, as_pytree(score), x_init, first, self, shape, trajectory)
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
    trajectory: bool,
) -> tuple[Samples, Any]:
    keys = image_keys(key, shape[0], first)
    return sampler.run(keys, sde, score, start(keys, sde, x_init, shape), trajectory)


def image_keys(key: Array, num: int, first: int | Array = 0) -> Array:
    """A key for each of the images first ... first + num - 1, (num,)."""
    return jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(num))


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
