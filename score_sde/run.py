"""A trained run, from its workdir."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from score_sde import build, networks, workdirs
from score_sde.config import dataset, validate
from score_sde.errors import UserError
from score_sde.integrate import SolveError
from score_sde.likelihood import ImageLikelihood, image_log_likelihood
from score_sde.samplers.base import image_keys, start
from score_sde.sde import SDE
from score_sde.training import checkpoints
from score_sde.training.mesh import along_data, data_mesh, replicated


class Images(NamedTuple):
    """n drawn images, as numpy arrays.

    Attributes:
        images: uint8 (n, H, W, C), with the data set's own levels (0 ... 16 for the digits).
        nfe: evaluations of the score for each image, int32 (n,).
        labels: the classes they were drawn for, int32 (n,); None without classes.
        trajectory: states from noise to image as pixels, uint8 (times, n, H, W, C), on request.
    """

    images: np.ndarray
    nfe: np.ndarray
    labels: np.ndarray | None = None
    trajectory: np.ndarray | None = None


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
        self, key: Array, n: int, *, labels: ArrayLike | None = None, trajectory: bool = False
    ) -> Images:
        """Draw n images with the config's sampler; arguments as `sample_batches`."""
        parts = list(self.sample_batches(key, n, labels=labels, trajectory=trajectory))
        return Images(
            images=np.concatenate([part.images for part in parts]),
            nfe=np.concatenate([part.nfe for part in parts]),
            labels=_concatenate([part.labels for part in parts]),
            trajectory=_concatenate([part.trajectory for part in parts], axis=1),
        )

    def sample_batches(
        self, key: Array, n: int, *, labels: ArrayLike | None = None, trajectory: bool = False
    ) -> Iterator[Images]:
        """Draw n images, `sampling.batch_size` at a time. An image depends on its index and the
        key, not on its batch (but for `sampling.faithful` Langevin steps).

        Args:
            key: a jax key.
            n: how many.
            labels: for a class-conditional model, int32 (n,); by default the classes in turn.
            trajectory: also the states on the way from noise to image.
        """
        if n < 1:
            raise ValueError(f"n = {n}: allowed are integers of at least 1")
        sampler, pixels = build.sampler(self.config), build.pixel_range(self.config)
        classes = self._classes(n, labels)
        batch = shared(min(n, self.config.sampling.batch_size))
        shape = (batch, *build.image_shape(self.config))
        for first in range(0, n, batch):
            count = min(batch, n - first)
            part = None if classes is None else _padded(classes[first : first + batch], batch)
            noise = noise_on_devices(key, self.sde, shape, first)
            with _told_as("sampling"):
                samples = sampler.sample(
                    key,
                    self.sde,
                    _given(self.score, part),
                    noise,
                    trajectory=trajectory,
                    first=first,
                )
            finite = np.isfinite(np.asarray(samples.x)).all(axis=(1, 2, 3))
            if not finite.all():
                raise UserError(
                    f"config.sampling: {batch - finite.sum()} of {batch} samples are not finite "
                    f"with {sampler}; allowed are more or smaller steps"
                )
            path = samples.trajectory
            yield Images(
                images=np.asarray(pixels.to_uint8(samples.x))[:count],
                nfe=np.asarray(samples.nfe)[:count],
                labels=None if part is None else part[:count],
                trajectory=None if path is None else np.asarray(pixels.to_uint8(path))[:, :count],
            )

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
        return self._likelihood_batches(key, images, self._classes(len(images), labels), first)

    def _likelihood_batches(
        self, key: Array, images: np.ndarray, classes: np.ndarray | None, first: int
    ) -> Iterator[ImageLikelihood]:
        pixels, settings = build.pixel_range(self.config), self.config.likelihood
        batch = shared(min(len(images), settings.batch_size))
        for index in range(first, len(images), batch):
            part = images[index : index + batch]
            given = None if classes is None else _padded(classes[index : index + batch], batch)
            with _told_as("likelihood"):
                values = image_log_likelihood(
                    key,
                    self.sde,
                    _given(self.smooth_score, given),
                    jax.device_put(_padded(part, batch), along_data(data_mesh())),
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

    def _classes(self, n: int, labels: ArrayLike | None) -> np.ndarray | None:
        if labels is None:
            in_turn = build.classes_in_turn(self.config, n)
            return None if in_turn is None else np.asarray(in_turn)
        if not self.config.model.class_conditional:
            raise ValueError("labels for a model without classes")
        classes, number = np.asarray(labels), dataset(self.config).num_classes
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
    score = Partial(build.score(config, apply, levels=build.sampler_levels(config)), ema)
    smooth_score = Partial(build.score(config, apply), ema)
    return Run(config, step, build.sde(config), score, smooth_score)


def joined(parts: Sequence[ImageLikelihood]) -> ImageLikelihood:
    """The likelihoods of parts of the images as one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def leading(values: ImageLikelihood, number: int) -> ImageLikelihood:
    """The likelihoods of the first images."""
    return jax.tree.map(lambda array: array[:number], values)


def shared(number: int) -> int:
    """The least multiple of the number of devices that is not below the number of images."""
    devices = data_mesh().size
    return -(-number // devices) * devices


def noise_on_devices(key: Array, sde: SDE, shape: tuple[int, ...], first: int = 0) -> Array:
    """The noise that a sampler starts from, (B, *shape), spread over all devices.

    A sampler started from it works on all of them. B is a multiple of their number.
    """
    noise = start(image_keys(key, shape[0], first), sde, None, shape)
    return jax.device_put(noise, along_data(data_mesh()))


@contextmanager
def _told_as(section: str) -> Iterator[None]:
    """Turn a solve's failure into an error of the section whose tolerances it could not meet."""
    try:
        yield
    except SolveError as error:
        raise UserError(
            f"config.{section}.rtol, config.{section}.atol: {error}; allowed are larger ones"
        ) from error


def _given(score: Partial, labels: np.ndarray | None) -> Partial:
    """The score of images of these classes."""
    if labels is None:
        return score
    # Not Partial(score, ...): JAX would take the parameters for constants. By keyword: a label
    # belongs to one image.
    spread = jax.device_put(jnp.asarray(labels), along_data(data_mesh()))
    return Partial(score.func, *score.args, labels=spread)


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    # The last batch is filled up, so that nothing is compiled for its length.
    return np.concatenate([array, np.repeat(array[-1:], length - len(array), axis=0)])


def _concatenate(arrays: list[np.ndarray | None], axis: int = 0) -> np.ndarray | None:
    present = [array for array in arrays if array is not None]
    return np.concatenate(present, axis=axis) if present else None
