"""Non-leaking augmentation (Karras et al. 2022, arXiv:2206.00364, appendix F.2 and table 6).

Each image is flipped, scaled, rotated, stretched and moved at random, and the network is given the
parameters of what was done. Zeros mean that nothing was done. So a network that is given zeros, or
nothing, draws images as they are, although most that it saw were changed.

The operations are one geometric transformation, by which the image is resampled once. These things
differ from the paper. It resamples a filtered image of twice the size; here values between pixels
are linear. It gives a stretch's direction by its cos and sin, which are the same for a stretch and
for its inverse; here they are those of twice the angle, which tell the two apart. The network adds
the parameters to its embedding, not to the features from which that is made. The published code
stretches half of the images along an axis; here, as in table 6, every direction is random.
"""

from collections.abc import Collection
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.operations import OPERATIONS

PARAMETERS = 9  # of a transformation, as a network is given them
SCALE, STRETCH, MOVE = 0.2, 0.2, 0.125  # standard deviations: octaves, octaves, shares of a side

_product = partial(jnp.einsum, "bij,bjk->bik", precision="highest")


def augmented(
    key: Array, x: Array, probability: float, operations: Collection[str] = OPERATIONS
) -> tuple[Array, Array]:
    """Images that are changed, each in its own way.

    Args:
        key: a jax key.
        x: images (B, H, W, C), float32 or float64.
        probability: of each operation on an image. Only `flip_x` mirrors half of them whatever the
            probability is, as was published.
        operations: names of `OPERATIONS`; the others are never made.

    Returns:
        Images like x, beyond whose borders their mirror image lies, and what the network is given,
        (B, 9), of the dtype of x: two flips (1 or 0), the scale, cos - 1 and sin of the angle, the
        stretch times cos and sin of twice its direction's angle, and two moves. All sizes are in
        standard deviations.
    """
    values = drawn(key, len(x), probability, operations, x.dtype)
    return transformed(x, values), parameters(values)


def transformed(x: Array, values: dict[str, Array]) -> Array:
    """The images (B, H, W, C) changed by the values of `drawn`."""
    return jax.vmap(_resampled)(x, *transformation(values))


def parameters(values: dict[str, Array]) -> Array:
    """What the network is given of the values of `drawn`, (B, 9)."""
    angle, stretch, twice = values["angle"], values["stretch"], 2.0 * values["along"]
    given = [
        values["flip_x"],
        values["flip_y"],
        values["scale"],
        jnp.cos(angle) - 1.0,
        jnp.sin(angle),
        stretch * jnp.cos(twice),
        stretch * jnp.sin(twice),
        values["move_x"],
        values["move_y"],
    ]
    return jnp.stack(given, axis=1)


def drawn(
    key: Array, num: int, probability: float, operations: Collection[str], dtype: jnp.dtype
) -> dict[str, Array]:
    """The random values of each image, (num,); 0 for an operation that is not made."""
    keys = jax.random.split(key, 4)
    made = jax.random.bernoulli(keys[0], jnp.float32(probability), (len(OPERATIONS), num))
    made = made.at[0].set(True) & np.isin(OPERATIONS, list(operations))[:, None]
    flip_x, flip_y, scale, rotate, stretch, move = made.astype(dtype)
    flips = jax.random.bernoulli(keys[1], shape=(2, num)).astype(dtype)
    angles = jax.random.uniform(keys[2], (2, num), dtype, -jnp.pi, jnp.pi)
    normal = jax.random.normal(keys[3], (4, num), dtype)
    return {
        "flip_x": flip_x * flips[0],
        "flip_y": flip_y * flips[1],
        "scale": scale * normal[0],
        "angle": rotate * angles[0],
        "along": stretch * angles[1],
        "stretch": stretch * normal[1],
        "move_x": move * normal[2],
        "move_y": move * normal[3],
    }


def transformation(values: dict[str, Array]) -> tuple[Array, Array]:
    """Where a pixel comes from: matrices (B, 2, 2), which are applied to its place less the move,
    and the moves (B, 2), in shares of a side. Places are (x, y) from the centre, y downwards.

    The operations are made in the order of their names, so the matrices undo the last one first.
    """
    flip = _diagonal(1.0 - 2.0 * values["flip_x"], 1.0 - 2.0 * values["flip_y"])
    size = jnp.exp2(-SCALE * values["scale"])
    length = jnp.exp2(-STRETCH * values["stretch"])
    along = _rotation(values["along"])
    inverse = _product(flip, _diagonal(size, size))
    unstretch = _product(along, _diagonal(length, 1.0 / length))
    for undo in (_rotation(-values["angle"]), unstretch, jnp.swapaxes(along, 1, 2)):
        inverse = _product(inverse, undo)
    return inverse, MOVE * jnp.stack([values["move_x"], values["move_y"]], axis=1)


def _diagonal(x: Array, y: Array) -> Array:
    none = jnp.zeros_like(x)
    return jnp.stack([jnp.stack([x, none], 1), jnp.stack([none, y], 1)], 1)


def _rotation(angle: Array) -> Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], 1), jnp.stack([sin, cos], 1)], 1)


def _resampled(image: Array, inverse: Array, move: Array) -> Array:
    """An image (H, W, C) whose pixels come from other places of it, mirrored at its borders."""
    height, width = image.shape[:2]
    x = jnp.arange(width, dtype=image.dtype) - 0.5 * (width - 1)
    y = jnp.arange(height, dtype=image.dtype) - 0.5 * (height - 1)
    places = jnp.stack(jnp.meshgrid(x - width * move[0], y - height * move[1]))  # (2, H, W)
    found = jnp.einsum("ij,jhw->ihw", inverse, places, precision="highest")
    rows, columns = found[1] + 0.5 * (height - 1), found[0] + 0.5 * (width - 1)

    def channel(values: Array) -> Array:
        return jax.scipy.ndimage.map_coordinates(values, [rows, columns], 1, mode="mirror")

    return jax.vmap(channel, in_axes=2, out_axes=2)(image)
