"""Geometric changes of images, and what the network is given of them."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import score_sde
from score_sde import build, objectives, presets
from score_sde.augmentation import (
    MOVE,
    OPERATIONS,
    PARAMETERS,
    _resampled,
    augmented,
    drawn,
    parameters,
    transformation,
    transformed,
)
from score_sde.config import changed, default
from score_sde.data import describe
from score_sde.discrete import discretization
from score_sde.networks import UNet, init
from tests.commands import DIGITS, succeed

NAMES = ("flip_x", "flip_y", "scale", "angle", "along", "stretch", "move_x", "move_y")
IMAGE = np.random.default_rng(0).normal(size=(8, 8, 1)).astype(np.float32)
HIGH = np.random.default_rng(1).normal(size=(6, 4, 3)).astype(np.float32)


def changed_by(image, **values):
    """An image (H, W, C) by given values; the others are 0."""
    all_of = {name: jnp.full(1, values.get(name, 0.0), jnp.float32) for name in NAMES}
    inverse, move = transformation(all_of)
    return np.asarray(_resampled(jnp.asarray(image, jnp.float32), inverse[0], move[0]))


@pytest.mark.parametrize("image", [IMAGE, HIGH], ids=["square", "high"])
def test_flips_and_moves_by_whole_pixels_are_exact(image):
    height, width = image.shape[:2]
    np.testing.assert_array_equal(changed_by(image), image)
    np.testing.assert_array_equal(changed_by(image, flip_x=1.0), image[:, ::-1])
    np.testing.assert_array_equal(changed_by(image, flip_y=1.0), image[::-1])
    # Two pixels to the right and one down; what comes in is mirrored at the border.
    moved = changed_by(image, move_x=2 / width / MOVE, move_y=1 / height / MOVE)
    rows, columns = [1, *range(height - 1)], [2, 1, *range(width - 2)]
    # A move of 1 / 6 is rounded: the weights of its two pixels by 1e-6, and they differ by up to 6.
    np.testing.assert_allclose(moved, image[rows][:, columns], atol=1e-5)
    if width == height:
        np.testing.assert_array_equal(moved, image[rows][:, columns])


def test_quarter_turns():
    """Clockwise on the screen. cos is -4e-8 at a quarter: places move by 4e-7, values by 2e-6."""
    for quarters in (-1, 1, 2):
        turned = changed_by(IMAGE, angle=quarters * np.pi / 2)
        np.testing.assert_allclose(turned, np.rot90(IMAGE, -quarters), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"scale": 5.0}, lambda x, y: (x / 2, y / 2)),  # one octave
        ({"stretch": 5.0}, lambda x, y: (x / 2, 2 * y)),
        ({"stretch": 5.0, "along": np.pi / 2}, lambda x, y: (2 * x, y / 2)),
        ({"flip_x": 1.0, "scale": 5.0, "move_x": 1.0}, lambda x, y: (-(x - 1) / 2, y / 2)),
        (
            {"angle": np.pi / 6, "scale": 5.0},
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


MOVED = [
    {"angle": 0.7, "stretch": 1.5, "along": 0.4},
    {"angle": -2.1, "stretch": -1.2, "along": -1.1},
    {"flip_x": 1.0, "angle": 0.5},
    {"flip_y": 1.0, "angle": 2.6, "scale": -1.0},
    {"stretch": 2.0, "along": 0.9, "move_x": 1.3, "move_y": -0.6},
    {"angle": 1.2, "move_x": -0.8, "move_y": 0.9},
    {
        **{"flip_x": 1.0, "scale": 1.5, "angle": -0.9, "stretch": 1.0, "along": 2.0},
        **{"move_x": 0.7, "move_y": 1.1},
    },
    dict.fromkeys(NAMES, 0.8) | {"flip_x": 1.0, "flip_y": 1.0},
]


def forward(width, height, v):
    """Where a point (x, y, 1) of the image goes (Karras et al. 2022, table 6): the operations in
    their order, each by its own definition, float64 (3, 3)."""
    cos, sin = np.cos(v["angle"]), np.sin(v["angle"])
    d = np.asarray([np.cos(v["along"]), np.sin(v["along"])])
    wider, narrower = 2.0 ** (0.2 * v["stretch"]), 2.0 ** (-0.2 * v["stretch"])
    steps = [
        np.diag([(-1.0) ** v["flip_x"], (-1.0) ** v["flip_y"]]),
        np.eye(2) * 2.0 ** (0.2 * v["scale"]),
        np.asarray([[cos, -sin], [sin, cos]]),  # from x, to the right, towards y, downwards
        narrower * np.eye(2) + (wider - narrower) * np.outer(d, d),
    ]
    whole = np.eye(3)
    for step in steps:
        whole[:2, :2] = step @ whole[:2, :2]
    whole[:2, 2] = 0.125 * width * v["move_x"], 0.125 * height * v["move_y"]
    return whole


def test_the_operations_are_made_in_the_published_order():
    """On a slope, as above, in an image that is not square."""
    height, width = 12, 16
    x, y = np.meshgrid(np.arange(width) - 7.5, np.arange(height) - 5.5)
    values = {name: jnp.asarray([v.get(name, 0.0) for v in MOVED], "f4") for name in NAMES}
    slopes = jnp.asarray(np.tile((2.0 * x - 3.0 * y)[..., None], (len(MOVED), 1, 1, 1)), "f4")
    found = np.asarray(jax.jit(transformed)(slopes, values))[..., 0]
    for i, each in enumerate(MOVED):
        v = dict.fromkeys(NAMES, 0.0) | each
        points = np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
        from_x, from_y, _ = np.linalg.solve(forward(width, height, v), points)
        inside = (np.abs(from_x) <= 7.5) & (np.abs(from_y) <= 5.5)
        assert inside.sum() >= 60
        wanted = (2.0 * from_x - 3.0 * from_y)[inside]
        # Places of up to 10 in float32, some roundings deep, times a slope of 3.
        np.testing.assert_allclose(found[i].ravel()[inside], wanted, rtol=0, atol=1e-4)


def test_what_is_drawn_has_the_published_laws():
    """The distance of the empirical from the published distribution function: by Dvoretzky,
    Kiefer and Wolfowitz it exceeds 2.5 / sqrt(n) with probability 2 exp(-12.5) = 7e-6."""
    num = 20_000
    draw = partial(drawn, num=num, probability=1.0, operations=OPERATIONS, dtype=jnp.float32)
    values = {
        name: np.asarray(each, "f8") for name, each in jax.jit(draw)(jax.random.key(5)).items()
    }

    def distance(name, cdf):
        return stats.ks_1samp(values[name], cdf, method="asymp").statistic

    for name in ("scale", "stretch", "move_x", "move_y"):
        assert distance(name, stats.norm.cdf) < 2.5 / np.sqrt(num)
    angle = stats.uniform(-np.pi, 2.0 * np.pi).cdf
    for name in ("angle", "along"):
        assert distance(name, angle) < 2.5 / np.sqrt(num)
    for name in ("flip_x", "flip_y"):
        assert set(values[name]) == {0.0, 1.0}
        assert abs(values[name].mean() - 0.5) < 5 * 0.5 / np.sqrt(num)
    # Independent of each other: correlations are normal with a deviation of 1 / sqrt(n).
    correlations = np.corrcoef([values[name] for name in NAMES]) - np.eye(len(NAMES))
    assert np.abs(correlations).max() < 5 / np.sqrt(num)


def test_what_the_network_is_given_of_one_image():
    """An angle of 30 degrees, and a stretch along 15: it is told by twice that angle."""
    one = {"flip_x": 1.0, "flip_y": 0.0, "scale": -0.5, "angle": np.pi / 6, "along": np.pi / 12}
    one |= {"stretch": 2.0, "move_x": 0.25, "move_y": -1.5}
    given = parameters({name: jnp.full(1, value, "f4") for name, value in one.items()})
    root = np.sqrt(3.0)
    wanted = [1.0, 0.0, -0.5, root / 2 - 1.0, 0.5, root, 1.0, 0.25, -1.5]
    np.testing.assert_allclose(given[0], wanted, rtol=0, atol=1e-6)  # roundings of numbers up to 2


def test_what_is_not_done_is_zero_and_leaves_the_image():
    x = jnp.asarray(np.stack([IMAGE] * 400))
    same, given = augmented(jax.random.key(0), x, 0.0, OPERATIONS[1:])
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(given, np.zeros((400, PARAMETERS)))
    found, given = jax.jit(partial(augmented, probability=0.25))(jax.random.key(1), x)
    given = np.asarray(given)
    done = given[:, [2, 4, 6, 7]] != 0.0  # scaled, turned, stretched, moved
    # A quarter of 400 within four standard deviations, 35.
    assert np.all(np.abs(done.sum(0) - 100) < 35)
    assert abs((given[:, 1] != 0).sum() - 50) < 27  # half of a quarter are upside down
    assert abs((given[:, 0] != 0).sum() - 200) < 40  # half are mirrored, whatever the probability
    none = (given == 0.0).all(axis=1)
    assert none.any()
    np.testing.assert_array_equal(np.asarray(found)[none], np.asarray(x)[none])
    assert np.isfinite(found).all() and np.abs(found).max() <= np.abs(IMAGE).max() + 1e-5


def test_only_the_chosen_operations_are_made():
    """The others draw the same as without the choice."""
    own = {"rotate": {"angle"}, "stretch": {"along", "stretch"}, "move": {"move_x", "move_y"}}
    every = drawn(jax.random.key(0), 50, 0.5, OPERATIONS, jnp.dtype("float32"))
    for name in OPERATIONS:
        values = drawn(jax.random.key(0), 50, 0.5, (name,), jnp.dtype("float32"))
        assert {each for each, value in values.items() if value.any()} == own.get(name, {name})
        for each in own.get(name, {name}):
            np.testing.assert_array_equal(values[each], every[each])


def read(given):
    """The values of `drawn` from what the network is given, (B, 9)."""
    flip_x, flip_y, scale, cos, sin, one, other, move_x, move_y = jnp.asarray(given).T
    return {
        **{"flip_x": flip_x, "flip_y": flip_y, "scale": scale, "move_x": move_x, "move_y": move_y},
        "angle": jnp.arctan2(sin, cos + 1.0),
        "along": 0.5 * jnp.arctan2(other, one),
        "stretch": jnp.hypot(one, other),
    }


CLASSES = {"model.class_conditional": True, "training.label_dropout": 0.5}


@pytest.mark.parametrize("more", [{}, CLASSES, {"model.num_levels": 50}], ids=str)
def test_the_network_is_given_what_was_done_to_its_image(more):
    """From what it is given, and the image as it is without, follows the image that it sees."""
    small = {"model.multipliers": (1,), "model.attention_resolutions": ()}
    config, info = changed(default(), small | more), describe("digits")
    images = np.random.default_rng(2).integers(0, 17, (32, 8, 8, 1), np.uint8)
    labels = jnp.arange(32, dtype=jnp.int32) % 10
    batch, seen = {"x": jnp.asarray(images), "condition": {"labels": labels}}, []

    def apply(params, x, noise, condition, **options):
        seen.append((x, noise, dict(condition)))
        return x

    for augment in (0.0, 0.5):
        chosen = changed(config, {"data.augment": augment})
        objectives.loss(chosen, apply, info)(None, None, batch, jax.random.key(0))
    (plain, noise, nothing), (x, same, condition) = seen
    given = condition.pop("augmentation")
    assert given.shape == (32, PARAMETERS) and (np.asarray(given) != 0).any(axis=0).all()
    # All other draws are as without.
    np.testing.assert_array_equal(noise, same)
    assert condition.keys() == nothing.keys() == ({"labels"} if "labels" in nothing else set())
    jax.tree.map(np.testing.assert_array_equal, condition, nothing)
    if more == CLASSES:
        assert 0 < (condition["labels"] == -1).sum() < 32
    # Both have the same noise: what differs are the clean images, times alpha.
    clean = build.space(config, info).to_model(jnp.asarray(images), None)
    moved = jax.vmap(_resampled)(clean, *transformation(read(given)))
    process = build.sde(config)
    if more.get("model.num_levels"):
        alpha = discretization(process).chain(50).alpha[noise.astype(int)].astype(np.float32)
    else:
        alpha = process.alpha(noise / 999.0)
    # Angles read off their cos and sin move a place by 1e-5 at most, and values by twice that.
    difference = alpha[:, None, None, None] * (moved - clean)
    np.testing.assert_allclose(x - plain, difference, atol=5e-5)
    assert np.abs(difference).max() > 0.1


def test_a_classifier_sees_images_as_they_are():
    config = changed(default(), {"data.augment": 0.5, "model.attention_resolutions": (8,)})
    labels = jnp.zeros(16, jnp.int32)
    batch, seen = {"x": jnp.full((16, 8, 8, 1), 3, jnp.uint8), "condition": {"labels": labels}}, []
    batch["x"] = batch["x"].at[:, 0].set(9)

    def apply(params, x, noise, condition, **options):
        assert condition == {}
        seen.append(x)
        return jnp.zeros((16, 10))

    for augment in (0.0, 0.5):
        chosen = changed(config, {"data.augment": augment})
        objectives.classifier_loss(chosen, apply, describe("digits"))(
            None, None, batch, jax.random.key(0)
        )
    np.testing.assert_array_equal(*seen)
    assert build.network(config, describe("digits"), logits=10).args[0].augmentation == 0


def test_zeros_and_nothing_are_the_same_to_a_network():
    config = {"model.multipliers": (1,), "model.attention_resolutions": (), "model.width": 8}
    config = changed(
        default(), config | {"data.augment": 0.5, "model.num_blocks": 1, "model.init_scale": 1.0}
    )
    spec = build.network(config, describe("digits")).args[0]
    assert spec.augmentation == PARAMETERS
    apply, params = init(partial(UNet, spec), jax.random.key(0))
    x, noise = jnp.ones((2, 8, 8, 1)), jnp.ones(2)
    plain = apply(params, x, noise)
    zeros, ones = (
        apply(params, x, noise, {"augmentation": jnp.full((2, PARAMETERS), value)})
        for value in (0.0, 1.0)
    )
    np.testing.assert_array_equal(zeros, plain)
    assert np.abs(ones - plain).max() > 1e-3


@pytest.mark.parametrize("name", ["edm_digits", "edm_fashion_mnist", "edm_cifar10"])
def test_the_presets_of_edm_augment_as_suits_their_images(name):
    """Digits are neither mirrored nor turned; nothing is mirrored without being said."""
    config = presets.load(name)
    assert config.data.augment == 0.12 and not config.data.flip
    kept = {
        "edm_digits": {"scale", "stretch", "move"},
        "edm_fashion_mnist": {"flip_x", "scale", "stretch", "move"},
        "edm_cifar10": set(OPERATIONS),
    }
    assert set(config.data.augmentations) == kept[name]


class Flat(nnx.Module):
    """A residual MLP over all pixels of a grey image of 4 x 4, which compiles in a moment."""

    rank = 3

    @dataclass(frozen=True)
    class Spec:
        augmentation: int = 0

    def __init__(self, spec, *, rngs):
        sizes = (16 + 1 + spec.augmentation, 128, 128, 16)
        self.layers = nnx.List([nnx.Linear(n, m, rngs=rngs) for n, m in pairwise(sizes)])
        self.spec = spec

    def __call__(self, x, noise, condition=None, *, dropout_key=None, reverse_only=False):
        nothing = jnp.zeros((len(x), self.spec.augmentation))
        given = (condition or {}).get("augmentation", nothing)
        h = jnp.concatenate([x.reshape(-1, 16), 0.1 * noise[:, None], given], axis=1)
        h = jax.nn.silu(self.layers[0](h))
        return self.layers[2](h + jax.nn.silu(self.layers[1](h))).reshape(x.shape)


@pytest.mark.slow  # a training
def test_rotations_do_not_leak(tmp_path):
    """Slopes that rise to the right, half of them turned in training: drawn ones rise to the right,
    and downwards where the network is given a quarter turn."""
    draw, across = np.random.default_rng(3), np.arange(4) - 1.5
    rise, noise = draw.uniform(20, 30, (512, 1, 1, 1)), draw.normal(0, 5, (512, 4, 4, 1))
    images = np.round(128 + rise * across[:, None] + noise).astype(np.uint8)
    np.savez(tmp_path / "slopes.npz", x=images)
    data = ("--config.data.name=npz", f"--config.data.dir={tmp_path / 'slopes.npz'}")
    augment = ("--config.data.augment=0.5", "--config.data.augmentations=('rotate',)")
    train = ("--config.training.num_steps=1000", "--config.training.batch_size=64")
    rarely = ("--config.training.checkpoint_every=1000", "--config.training.sample_every=0")
    network = "--config.model.name=tests.test_augmentation:Flat"
    here = (f"--workdir={tmp_path / 'run'}", network, *data, *augment, *train, *rarely)
    succeed("--mode=train", DIGITS, *here, cwd=tmp_path)
    run = score_sde.load(tmp_path / "run")

    def angles(score):
        """In degrees, of the drawn slopes."""
        noise = jax.random.normal(jax.random.key(0), (100, 4, 4, 1))
        sampler = build.sampler(run.config)
        x = np.asarray(sampler.sample(jax.random.key(1), run.sde, score, noise).x)[..., 0]
        right, down = x.sum(axis=1) @ across, x.sum(axis=2) @ across
        return np.degrees(np.arctan2(down, right))

    quarter = np.tile(np.asarray([0, 0, 0, -1, 1, 0, 0, 0, 0], np.float32), (100, 1))
    upright = angles(run.score)
    turned = angles(run.score.given({"augmentation": jnp.asarray(quarter)})) - 90.0
    # Of images drawn as they were trained on, half and a sixth of the others: .58.
    for found in (upright, turned):
        assert (np.abs(found) < 30).mean() > 0.9
