"""Many images in batches, each spread over all devices, and what becomes of them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from score_sde.likelihood import ImageLikelihood
from score_sde.samplers.base import Start
from score_sde.score import Model
from score_sde.sde import SDE
from score_sde.training.mesh import along_data, placed


class Images(NamedTuple):
    """n drawn images, as numpy arrays.

    Attributes:
        images: uint8 (n, H, W, C), with the data set's own levels (0 ... 16 for the digits).
        nfe: evaluations of the score for each image, int32 (n,).
        labels: the classes they were drawn for, int32 (n,); None without classes.
        trajectory: states from noise to image as pixels, uint8 (states, n, H, W, C), on request.
    """

    images: np.ndarray
    nfe: np.ndarray
    labels: np.ndarray | None = None
    trajectory: np.ndarray | None = None


class Interpolation(NamedTuple):
    """What lies between n pairs of images, as numpy arrays.

    Attributes:
        images: uint8 (n, num + 2, H, W, C); the first and last of each row are the pair itself,
            there and back.
        latents: of the pairs, float32 (n, 2, H, W, C).
        nfe: evaluations of the score for each image, int32: (n, num + 4), the pair's encoding
            first, then its row's decoding.
        rms: root mean square of what there and back changes in each image of a pair, in the model's
            units, float32 (n, 2).
    """

    images: np.ndarray
    latents: np.ndarray
    nfe: np.ndarray
    rms: np.ndarray


def joined(parts: Sequence[ImageLikelihood]) -> ImageLikelihood:
    """The likelihoods of parts of the images as one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def leading(values: ImageLikelihood, number: int) -> ImageLikelihood:
    """The likelihoods of the first images."""
    return jax.tree.map(lambda array: array[:number], values)


def shared(number: int, mesh: Mesh) -> int:
    """The least multiple of the number of devices that is not below the number of images."""
    return -(-number // mesh.size) * mesh.size


def noise_on_devices(
    key: Array, sde: SDE, shape: tuple[int, ...], mesh: Mesh, first: int = 0
) -> Array:
    """The noise that a sampler starts from, (B, *shape), spread over all devices.

    A sampler started from it works on all of them. B is a multiple of their number.
    """
    return on_devices(Start(key, sde, None, first).states(shape)[1], mesh)


def on_devices(batch: ArrayLike, mesh: Mesh) -> Array:
    """The batch, a multiple of the devices, a part on each."""
    return placed(jnp.asarray(batch), along_data(mesh))


def of_classes(score: Model, labels: np.ndarray | None, mesh: Mesh) -> Model:
    """The score of images of these classes."""
    return score if labels is None else score.given({"labels": on_devices(labels, mesh)})


def padded(array: np.ndarray, length: int) -> np.ndarray:
    """A last batch filled up, so that nothing is compiled for its length."""
    return np.concatenate([array, np.repeat(array[-1:], length - len(array), axis=0)])


def concatenated(arrays: list[np.ndarray | None], axis: int = 0) -> np.ndarray | None:
    """What the parts have of an array, as one; None where they have none."""
    present = [array for array in arrays if array is not None]
    return np.concatenate(present, axis=axis) if present else None
