"""Geometric changes of images, and what the network is told of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import build
from score_sde.augmentation import PARAMETERS, _resampled, augmented, transformation
from score_sde.config import changed, default
from score_sde.data import describe
from score_sde.networks import UNet, init

NAMES = ("flip_x", "flip_y", "scale", "rotate", "along", "stretch", "move_x", "move_y")


def changed_by(image, **values):
    """An image (H, W, 1) by given values; the others are 0."""
    all_of = {name: jnp.full(1, values.get(name, 0.0), jnp.float32) for name in NAMES}
    inverse, move = transformation(all_of)
    return np.asarray(_resampled(jnp.asarray(image, jnp.float32), inverse[0], move[0]))


IMAGE = np.random.default_rng(0).normal(size=(8, 8, 1)).astype(np.float32)


def test_operations_that_keep_the_pixels():
    np.testing.assert_array_equal(changed_by(IMAGE), IMAGE)
    np.testing.assert_array_equal(changed_by(IMAGE, flip_x=1.0), IMAGE[:, ::-1])
    np.testing.assert_array_equal(changed_by(IMAGE, flip_y=1.0), IMAGE[::-1])
    right = changed_by(IMAGE, move_x=2.0)  # two eighths of its width
    np.testing.assert_allclose(right[:, 2:], IMAGE[:, :-2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(right[:, :2], IMAGE[:, 2:0:-1], rtol=1e-5, atol=1e-6)  # mirrored
    turned = changed_by(IMAGE, rotate=np.pi / 2)  # (x, y) -> (-y, x), y downwards
    np.testing.assert_allclose(turned, np.rot90(IMAGE, -1), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"scale": 5.0}, lambda x, y: (x / 2, y / 2)),  # one octave
        ({"stretch": 5.0}, lambda x, y: (x / 2, 2 * y)),
        ({"stretch": 5.0, "along": np.pi / 2}, lambda x, y: (2 * x, y / 2)),
        ({"flip_x": 1.0, "scale": 5.0, "move_x": 1.0}, lambda x, y: (-(x - 1) / 2, y / 2)),
        (
            {"rotate": np.pi / 6, "scale": 5.0},
            lambda x, y: (
                (x * np.cos(np.pi / 6) + y * np.sin(np.pi / 6)) / 2,
                (y * np.cos(np.pi / 6) - x * np.sin(np.pi / 6)) / 2,
            ),
        ),
    ],
)
def test_a_slope_is_moved_exactly(values, place):
    """Between pixels values are linear, so those of a slope come out exactly, within the image."""
    x, y = np.meshgrid(np.arange(8) - 3.5, np.arange(8) - 3.5)
    found = changed_by((2.0 * x - 3.0 * y)[..., None], **values)[..., 0]
    from_x, from_y = place(x, y)
    inside = (np.abs(from_x) <= 3.5) & (np.abs(from_y) <= 3.5)
    assert inside.sum() >= 24
    np.testing.assert_allclose(found[inside], (2.0 * from_x - 3.0 * from_y)[inside], atol=1e-4)


def test_what_is_not_done_is_zero_and_leaves_the_image():
    x = jnp.asarray(np.stack([IMAGE] * 400))
    same, given = augmented(jax.random.key(0), x, 0.0)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(given, np.zeros((400, PARAMETERS)))
    found, given = jax.jit(partial(augmented, probability=0.25))(jax.random.key(1), x)
    given = np.asarray(given)
    done = given[:, [2, 4, 6, 7]] != 0.0  # scaled, turned, stretched, moved
    # A quarter of 400 within four standard deviations, 35.
    assert np.all(np.abs(done.sum(0) - 100) < 35)
    assert abs((given[:, 0] != 0).sum() - 50) < 27  # and half of them are flipped
    none = (given == 0.0).all(axis=1)
    np.testing.assert_array_equal(np.asarray(found)[none], np.asarray(x)[none])
    assert np.isfinite(found).all() and np.abs(found).max() <= np.abs(IMAGE).max() + 1e-5


def test_the_network_is_told_in_training_and_zeros_are_nothing():
    config = {"model.multipliers": (1,), "model.attention_resolutions": (), "model.width": 8}
    config = changed(default(), config | {"data.augment": 0.5, "model.num_blocks": 1})
    info, seen = describe("digits"), []

    def apply(params, x, noise, condition, **options):
        seen.append((x, condition))
        return x

    batch = {"x": jnp.full((16, 8, 8, 1), 3, jnp.uint8), "condition": {}}
    build.loss(config, apply, info)(None, None, batch, jax.random.key(0))
    assert seen[0][1]["augmentation"].shape == (16, PARAMETERS)
    make = build.network(config, info)
    spec = make.args[0]
    assert spec.augmentation == PARAMETERS and build.network(config, info, logits=3).args[0].logits
    apply, params = init(partial(UNet, spec), jax.random.key(0))
    x, noise = jnp.ones((2, 8, 8, 1)), jnp.ones(2)
    plain = apply(params, x, noise)
    zeros = apply(params, x, noise, {"augmentation": jnp.zeros((2, PARAMETERS))})
    np.testing.assert_allclose(zeros, plain, rtol=1e-6)
