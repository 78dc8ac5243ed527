"""Non-leaking augmentation (Karras et al. 2022, arXiv:2206.00364, appendix F.2 and table 6).

An image is flipped, scaled, rotated, stretched and moved at random, by one geometric
transformation, and the network is given its parameters. They are 0 where nothing is done. So a
network that is given zeros, or nothing, draws images as they are.

The paper filters images of twice the size; here the values between pixels are linear.
"""

import jax
import jax.numpy as jnp
from jax import Array

PARAMETERS = 9  # of a transformation, as a network is given them
SCALE, STRETCH, MOVE = 0.2, 0.2, 0.125  # in octaves, in octaves, in shares of a side


def augmented(key: Array, x: Array, probability: float) -> tuple[Array, Array]:
    """Images that are transformed, each in its own way.

    Args:
        key: a jax key.
        x: images (B, H, W, C), float.
        probability: of each of the six transformations of an image.

    Returns:
        images like x, and what the network is given, (B, 9).
    """
    values = drawn(key, len(x), probability, x.dtype)
    inverse, move = transformation(values)
    given = [
        *(values["flip_x"], values["flip_y"], values["scale"]),
        *(jnp.cos(values["rotate"]) - 1.0, jnp.sin(values["rotate"])),
        *(
            values["stretch"] * jnp.cos(values["along"]),
            values["stretch"] * jnp.sin(values["along"]),
        ),
        *(values["move_x"], values["move_y"]),
    ]
    return jax.vmap(_resampled)(x, inverse, move), jnp.stack(given, axis=1)


def drawn(key: Array, num: int, probability: float, dtype: jnp.dtype) -> dict[str, Array]:
    """The random values of each transformation, (num,); 0 for one that is not made."""
    keys = jax.random.split(key, 4)
    made = jax.random.bernoulli(keys[0], jnp.float32(probability), (6, num)).astype(dtype)
    flips = jax.random.bernoulli(keys[1], shape=(2, num)).astype(dtype)
    angles = jax.random.uniform(keys[2], (2, num), dtype, -jnp.pi, jnp.pi)
    normal = jax.random.normal(keys[3], (4, num), dtype)
    return {
        "flip_x": made[0] * flips[0],
        "flip_y": made[1] * flips[1],
        "scale": made[2] * normal[0],
        "rotate": made[3] * angles[0],
        "along": made[4] * angles[1],
        "stretch": made[4] * normal[1],
        "move_x": made[5] * normal[2],
        "move_y": made[5] * normal[3],
    }


def transformation(values: dict[str, Array]) -> tuple[Array, Array]:
    """Where a pixel comes from: matrices (B, 2, 2) that are applied to its place less the move, and
    the moves (B, 2), in shares of a side. Places are (x, y) from the centre.

    An image is flipped, scaled, rotated, stretched and moved, in this order; the matrices undo it
    in the other.
    """
    flip = _diagonal(1.0 - 2.0 * values["flip_x"], 1.0 - 2.0 * values["flip_y"])
    size = jnp.exp2(-SCALE * values["scale"])
    length = jnp.exp2(-STRETCH * values["stretch"])
    along = _rotation(values["along"])
    undone = jnp.swapaxes(along, 1, 2)
    inverse = _diagonal(size, size)
    for matrix in (_rotation(-values["rotate"]), along, _diagonal(length, 1.0 / length), undone):
        inverse = jnp.einsum("bij,bjk->bik", inverse, matrix, precision="highest")
    inverse = jnp.einsum("bij,bjk->bik", flip, inverse, precision="highest")
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
