"""A trained run, from its workdir."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from score_sde import build, networks, workdirs
from score_sde.batches import (
    Images,
    Interpolation,
    concatenated,
    joined,
    leading,
    noise_on_devices,
    of_classes,
    on_devices,
    padded,
    shared,
)
from score_sde.config import validate
from score_sde.errors import UserError
from score_sde.images import image_keys
from score_sde.integrate import SolveError
from score_sde.likelihood import ImageLikelihood, image_log_likelihood
from score_sde.samplers.ode import slerp
from score_sde.sde import SDE
from score_sde.training import checkpoints
from score_sde.training.mesh import data_mesh, replicated


@dataclass(frozen=True)
class Run:
    """What a workdir holds, ready for use.

    Attributes:
        config: the config, as saved.
        step: the training step of the checkpoint.
        sde: the process.
        score: the score of the averaged weights, (x (B, H, W, C), t (B,)) -> (B, H, W, C), x in the
            model's range. A class-conditional model's takes `labels=`, int32 (B,), too. That of a
            network trained on discrete levels takes them as the config's sampler does
            (`score_sde.score`).
        smooth_score: `score`, but for such a network the one that the likelihood takes, smooth in
            t.
    """

    config: ConfigDict
    step: int
    sde: SDE
    score: Partial = field(repr=False)  # its parameters would flood a notebook
    smooth_score: Partial = field(repr=False)

    def sample(
        self, key: Array, n: int, *, labels: ArrayLike | None = None, trajectory: bool | int = False
    ) -> Images:
        """Draw n images with the config's sampler; arguments as `sample_batches`."""
        parts = list(self.sample_batches(key, n, labels=labels, trajectory=trajectory))
        return Images(
            images=np.concatenate([part.images for part in parts]),
            nfe=np.concatenate([part.nfe for part in parts]),
            labels=concatenated([part.labels for part in parts]),
            trajectory=concatenated([part.trajectory for part in parts], axis=1),
        )

    def sample_batches(
        self,
        key: Array,
        n: int,
        *,
        labels: ArrayLike | None = None,
        trajectory: bool | int = False,
        first: int = 0,
    ) -> Iterator[Images]:
        """Draw n images, `sampling.batch_size` at a time. An image depends on its index and the
        key, not on its batch (but for `sampling.faithful` Langevin steps, and a probability flow
        with `sampling.step_control = "batch"`).

        Args:
            key: a jax key.
            n: how many.
            labels: for a class-conditional model, int32 (n,); by default the classes in turn.
            trajectory: also the states on the way from noise to image: all, or so many at most.
            first: index of the first image to draw, where some of the n are drawn already.
        """
        if n < 1:
            raise ValueError(f"n = {n}: allowed are integers of at least 1")
        sampler, pixels = build.sampler(self.config), build.pixel_range(self.config)
        classes = self._classes(n, labels)
        batch = self.batch(n)
        shape = (batch, *build.image_shape(self.config))
        for index in range(first, n, batch):
            count = min(batch, n - index)
            part = None if classes is None else padded(classes[index : index + batch], batch)
            noise = noise_on_devices(key, self.sde, shape, index)
            with _told_as("sampling"):
                samples = sampler.sample(
                    key,
                    self.sde,
                    of_classes(self.score, part),
                    noise,
                    trajectory=trajectory,
                    first=index,
                )
            finite = np.isfinite(np.asarray(samples.x)[:count]).all(axis=(1, 2, 3))
            if not finite.all():
                raise UserError(
                    f"config.sampling: {count - finite.sum()} of {count} samples are not finite "
                    f"with {sampler}; allowed are more or smaller steps"
                )
            path = samples.trajectory
            yield Images(
                images=np.asarray(pixels.to_uint8(samples.x))[:count],
                nfe=np.asarray(samples.nfe)[:count],
                labels=None if part is None else part[:count],
                trajectory=None if path is None else np.asarray(pixels.to_uint8(path))[:, :count],
            )

    def batch(self, n: int) -> int:
        """How many of n images are worked on at a time: equal parts of `sampling.batch_size` at
        most, but for a multiple of the number of devices."""
        parts = -(-n // self.config.sampling.batch_size)
        return shared(-(-n // parts))

    def encode(
        self, key: Array, images: np.ndarray, *, labels: ArrayLike | None = None
    ) -> np.ndarray:
        """Return the latents of images by the probability flow, float32 (n, H, W, C).

        `sampling.solver`, `rtol`, `atol`, `step_control` and `t_min` hold, whatever
        `sampling.method`. A model that was trained on dequantized pixels
        (`training.dequantize`) gets such, others the pixels as they are.

        Args:
            key: a jax key, for dequantization.
            images: uint8 (n, H, W, C), with the data set's own levels.
            labels: their classes, int32 (n,), for a class-conditional model.

        Raises:
            ValueError: other images, or labels where there should be none, or none where there
                should be some.
            UserError: a solve that fails, with the solver's reason.
        """
        images = self._checked(images)
        classes = self._required(len(images), labels)
        return self._flow(self._to_model(key, images), classes, back=False)[0]

    def decode(self, latents: ArrayLike, *, labels: ArrayLike | None = None) -> np.ndarray:
        """Return the images of latents, uint8 (n, H, W, C): the inverse of `encode`, so without the
        denoising of `sample`. Arguments and errors as there."""
        x, shape = np.asarray(latents, np.float32), build.image_shape(self.config)
        if x.shape[1:] != shape or not len(x):
            raise ValueError(f"latents are {x.shape}: allowed are (n, *{shape}), n of at least 1")
        if not np.isfinite(x).all():
            raise ValueError("latents: allowed are finite numbers")
        x, _ = self._flow(x, self._required(len(x), labels), back=True)
        return np.asarray(build.pixel_range(self.config).to_uint8(jnp.asarray(x)))

    def interpolate(
        self,
        key: Array,
        first: np.ndarray,
        second: np.ndarray,
        num: int,
        *,
        labels: ArrayLike | None = None,
    ) -> Interpolation:
        """Decode `num` latents on the great circle between those of each pair (`slerp`).

        Args:
            key: a jax key, for dequantization.
            first: uint8 (n, H, W, C), with the data set's own levels.
            second: likewise.
            num: how many between each pair, at equal angles.
            labels: a class for each pair, int32 (n,), for a class-conditional model.

        Raises: as `encode`.
        """
        parts = self.interpolation_batches(key, first, second, num, labels=labels)
        return Interpolation(*map(np.concatenate, zip(*parts, strict=True)))

    def interpolation_batches(
        self,
        key: Array,
        first: np.ndarray,
        second: np.ndarray,
        num: int,
        *,
        labels: ArrayLike | None = None,
    ) -> Iterator[Interpolation]:
        """As `interpolate`, as many pairs at a time as `sampling.batch_size` has room for."""
        first, second = self._checked(first), self._checked(second)
        if num < 1 or len(first) != len(second):
            raise ValueError(
                f"num = {num} between {len(first)} and {len(second)} images: allowed are integers "
                "of at least 1, and as many first as second images"
            )
        classes = self._required(len(first), labels)
        pairs = np.stack([first, second], axis=1)
        flat = pairs.reshape(-1, *pairs.shape[2:])  # a pair's images are neighbours
        x0 = self._to_model(key, flat).reshape(pairs.shape)
        return self._interpolation_batches(x0, classes, jnp.linspace(0.0, 1.0, num + 2))

    def _interpolation_batches(
        self, x0: np.ndarray, classes: np.ndarray | None, weights: Array
    ) -> Iterator[Interpolation]:
        n, row, pixels = len(x0), len(weights), build.pixel_range(self.config)
        room = max(1, self.config.sampling.batch_size // row)
        size = -(-n // -(-n // room))  # of equal parts
        for begin in range(0, n, size):
            pairs = padded(x0[begin : begin + size], size)
            given = None if classes is None else padded(classes[begin : begin + size], size)
            latents, there = self._flow_of_rows(pairs, given, back=False)
            ends = jnp.asarray(latents)
            between = np.asarray(slerp(ends[:, 0], ends[:, 1], weights))
            x, nfe = self._flow_of_rows(between, given, back=True)
            change = np.square(x[:, [0, -1]] - pairs).mean(axis=(2, 3, 4))
            whole = Interpolation(
                images=np.asarray(pixels.to_uint8(jnp.asarray(x))),
                latents=latents,
                nfe=np.concatenate([there, nfe], axis=1),
                rms=np.sqrt(change),
            )
            yield Interpolation(*(array[: n - begin] for array in whole))

    def _flow_of_rows(
        self, x: np.ndarray, classes: np.ndarray | None, *, back: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `_flow`, for rows of states (n, row, H, W, C) with a class for each row, (n,)."""
        n, row = x.shape[:2]
        each = None if classes is None else np.repeat(classes, row)
        ends, nfe = self._flow(x.reshape(-1, *x.shape[2:]), each, back=back)
        return ends.reshape(x.shape), nfe.reshape(n, row)

    def _flow(
        self, x: np.ndarray, classes: np.ndarray | None, *, back: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take states (n, H, W, C) from t_min to T, or back; also return the evaluations (n,)."""
        flow = build.probability_flow(self.config)
        follow, batch, ends = flow.decode if back else flow.encode, self.batch(len(x)), []
        for first in range(0, len(x), batch):
            part = padded(x[first : first + batch], batch)
            given = None if classes is None else padded(classes[first : first + batch], batch)
            with _told_as("sampling"):
                score = of_classes(self.smooth_score, given)
                ends.append(follow(self.sde, score, on_devices(part)))
        x_end, nfe = (np.concatenate([np.asarray(end[i]) for end in ends]) for i in (0, 1))
        return x_end[: len(x)], nfe[: len(x)]

    def _to_model(self, key: Array, images: np.ndarray) -> np.ndarray:
        pixels, integers = build.pixel_range(self.config), jnp.asarray(images)
        if not pixels.dequantize:
            return np.asarray(pixels.to_model(integers))
        return np.asarray(pixels.uniform(image_keys(key, len(images)), integers).x)

    def log_likelihood(
        self, key: Array, images: np.ndarray, *, labels: ArrayLike | None = None
    ) -> ImageLikelihood:
        """Compute the likelihood of images with the config's settings: bounds of bits/dim, from log
        densities that are exact up to solver and probes.

        Args:
            key: a jax key, for dequantization and the divergence's probes.
            images: uint8 (n, H, W, C), with the data set's own levels.
            labels: their classes, int32 (n,), for a class-conditional model, which gives the
                likelihood of each image given its class.

        Returns:
            numpy arrays.

        Raises:
            ValueError: other images, or labels where there should be none, or none where there
                should be some.
        """
        return joined(list(self.likelihood_batches(key, images, labels=labels)))

    def likelihood_batches(
        self, key: Array, images: np.ndarray, *, labels: ArrayLike | None = None, first: int = 0
    ) -> Iterator[ImageLikelihood]:
        """As `log_likelihood`, `likelihood.batch_size` images at a time, in order, from the image
        of index `first` on."""
        if self.config.model.class_conditional and labels is None:
            raise ValueError("labels: the likelihoods of this model are those given the class")
        images = self._checked(images)
        return self._likelihood_batches(key, images, self._classes(len(images), labels), first)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        """Given images, which are some of the data set's kind."""
        images, shape = np.asarray(images), build.image_shape(self.config)
        if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
            height, width, channels = shape
            raise ValueError(
                f"images are {images.dtype} {images.shape}: allowed are uint8 "
                f"(n, {height}, {width}, {channels}) with n of at least 1"
            )
        levels = build.pixel_range(self.config).levels
        if images.max() >= levels:
            raise ValueError(f"images reach {images.max()}: allowed are 0 to {levels - 1}")
        return images

    def _likelihood_batches(
        self, key: Array, images: np.ndarray, classes: np.ndarray | None, first: int
    ) -> Iterator[ImageLikelihood]:
        pixels, settings = build.pixel_range(self.config), self.config.likelihood
        batch = shared(min(len(images), settings.batch_size))
        for index in range(first, len(images), batch):
            part = images[index : index + batch]
            given = None if classes is None else padded(classes[index : index + batch], batch)
            with _told_as("likelihood"):
                values = image_log_likelihood(
                    key,
                    self.sde,
                    of_classes(self.smooth_score, given),
                    on_devices(padded(part, batch)),
                    pixels,
                    dequantization=settings.dequantization,
                    num_importance=settings.num_importance,
                    divergence=settings.divergence,
                    num_probes=settings.num_probes,
                    rtol=settings.rtol,
                    atol=settings.atol,
                    t_min=settings.t_min,
                    first=index,
                )
            yield leading(jax.tree.map(np.asarray, values), len(part))

    def _required(self, n: int, labels: ArrayLike | None) -> np.ndarray | None:
        """The classes of n given images or latents, which have no default."""
        if self.config.model.class_conditional and labels is None:
            raise ValueError("labels: the latents of this model are those given the class")
        return self._classes(n, labels)

    def _classes(self, n: int, labels: ArrayLike | None) -> np.ndarray | None:
        if labels is None:
            in_turn = build.classes_in_turn(self.config, n)
            return None if in_turn is None else np.asarray(in_turn)
        if not self.config.model.class_conditional:
            raise ValueError("labels for a model without classes")
        classes, number = np.asarray(labels), build.dataset(self.config).num_classes
        if classes.shape != (n,) or not np.isin(classes, np.arange(number)).all():
            raise ValueError(f"labels: allowed are {n} integers from 0 to {number - 1}")
        return classes.astype(np.int32)


def load(workdir: str | Path, config: ConfigDict | None = None) -> Run:
    """Load a run from its workdir: the newest whole checkpoint, with the averaged weights.

    Args:
        workdir: the directory that `--mode train` filled.
        config: instead of the saved config; for other sampling or likelihood settings.

    Raises:
        UserError: where there is no config or no checkpoint.
    """
    workdir = Path(workdir)
    config = workdirs.load(workdir) if config is None else config
    validate(config)
    apply, params = networks.abstract(build.network(config))
    step, ema = checkpoints.restore_ema(workdir / "checkpoints", params, replicated(data_mesh()))
    score = Partial(build.score(config, apply, levels=build.sampler(config).levels), ema)
    smooth_score = Partial(build.score(config, apply), ema)
    return Run(config, step, build.sde(config), score, smooth_score)


@contextmanager
def _told_as(section: str) -> Iterator[None]:
    """Turn a solve's failure into an error of the section whose tolerances it could not meet."""
    try:
        yield
    except SolveError as error:
        raise UserError(
            f"config.{section}.rtol, config.{section}.atol: {error}; allowed are larger ones"
        ) from error
