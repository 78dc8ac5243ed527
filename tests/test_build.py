"""From a config to objects: what the loss does with the config's words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import build, objectives, presets
from score_sde.config import changed, default
from score_sde.data import DatasetInfo, describe
from score_sde.errors import UserError
from score_sde.run import info_of
from score_sde.validation import validate

SMALL = {"model.multipliers": (1, 2), "model.attention_resolutions": (4,)}
VE = {"sde.name": "ve", "model.parameterization": "score", "model.centered": False}
DISCRETE = {"model.num_levels": 50}
KINDS = {"vp": {}, "ve": VE, "vp discrete": DISCRETE, "ve discrete": VE | DISCRETE}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_config(kind):
    """Mean or half the sum, and what a network in training is told: 999 t or an integer level."""
    config = changed(default(), SMALL | KINDS[kind])
    validate(config)
    batch = {
        "x": jnp.full((16, 8, 8, 1), 8, jnp.uint8),
        "condition": {"labels": jnp.zeros(16, jnp.int32)},
    }
    told = []

    def apply(params, x, noise, condition, *, dropout_key, reverse_only):
        assert reverse_only and condition == {} and dropout_key is not None
        told.append(np.asarray(noise))
        return params * x

    losses = [
        objectives.loss(changed(config, {"training.reduce_mean": mean}), apply, describe("digits"))(
            0.1, None, batch, jax.random.key(0)
        )
        for mean in (True, False)
    ]
    assert losses[0].shape == (16,) and np.isfinite(losses[0]).all()
    np.testing.assert_allclose(losses[1], 32.0 * losses[0], rtol=1e-5)  # half of 64 dimensions
    whole = np.all(told[0] == np.round(told[0]))
    assert whole == kind.endswith("discrete")
    assert told[0].min() >= 0 and told[0].max() <= (49 if whole else 999)
    assert len(set(told[0])) == 16


def test_labels_are_dropped_in_training():
    """A tenth of 4000 labels within four standard deviations, 19; the others stay."""
    config = {"model.class_conditional": True, "training.label_dropout": 0.1}
    config, number, seen = changed(default(), SMALL | config), 4000, []
    labels = jnp.arange(number, dtype=jnp.int32) % 10
    batch = {"x": jnp.zeros((number, 8, 8, 1), jnp.uint8), "condition": {"labels": labels}}

    def apply(params, x, noise, condition, **options):
        seen.append(np.asarray(condition["labels"]))
        return x

    objectives.loss(config, apply, describe("digits"))(None, None, batch, jax.random.key(0))
    dropped = seen[0] == -1
    assert abs(dropped.sum() - 400) < 4 * 19
    np.testing.assert_array_equal(seen[0][~dropped], labels[~dropped])
    np.testing.assert_array_equal(batch["condition"]["labels"], labels)


def test_half_of_the_images_are_mirrored_left_to_right():
    """What the network sees is of the image or of its mirror image, to the bit; half of 400 within
    four standard deviations, 40."""
    config, seen = changed(default(), SMALL), []
    images = np.random.default_rng(0).integers(0, 17, (400, 8, 8, 1), np.uint8)

    def apply(params, x, noise, condition, **options):
        seen.append(np.asarray(x))
        return x

    for flip, x in ((True, images), (False, images), (False, images[:, :, ::-1])):
        loss = objectives.loss(changed(config, {"data.flip": flip}), apply, describe("digits"))
        loss(None, None, {"x": jnp.asarray(x), "condition": {}}, jax.random.key(0))
    flipped, straight, mirrored = seen
    turned = (flipped == mirrored).all(axis=(1, 2, 3))
    assert abs(turned.sum() - 200) < 40
    np.testing.assert_array_equal(flipped[~turned], straight[~turned])


def test_the_data_of_a_converted_run_can_be_named_afterwards():
    """By a set of images that the network can be given."""
    kept = describe("images", image_size=8, channels=1)
    config = changed(default(), {"data.name": "digits"})
    assert info_of(config, kept) == describe("digits")
    assert info_of(changed(config, {"data.name": "images"}), kept) == kept
    assert info_of(config, None) == describe("digits")
    for other in ({"channels": 3}, {"image_size": 16}, {"num_classes": 7}):
        sizes = {"image_size": 8, "channels": 1, "num_classes": 0} | other
        with pytest.raises(UserError, match=r"data.name = 'digits': allowed are sets of images"):
            info_of(config, describe("images", **sizes))


def test_the_most_steps_of_a_solve_are_those_of_the_config():
    """No result shows them: `ProbabilityFlow` leaves them out of what samples depend on."""
    config = changed(default(), {"sampling.method": "ode", "sampling.max_steps": 7})
    assert build.sampler(config).max_steps == build.probability_flow(config).max_steps == 7


def test_the_flow_that_encodes_and_decodes_never_denoises():
    config = changed(default(), {"sampling.method": "ode", "sampling.denoise": True})
    assert build.sampler(config).denoise and not build.probability_flow(config).denoise


def test_the_divergence_is_exact_for_short_vectors():
    """As docs/vectors.md says, also by the preset that a user's own table begins with."""
    vectors, images = presets.load("vp_moons"), presets.load("vp_digits")
    for columns, kind in ((2, "exact"), (16, "exact"), (17, "rademacher")):
        info = DatasetInfo("mine", (columns,), None, 0, {"train": 10})
        assert build.divergence(vectors, info) == kind, columns
        chosen = changed(vectors, {"likelihood.divergence": "gaussian"})
        assert build.divergence(chosen, info) == "gaussian"
    assert build.divergence(images, describe("digits")) == "rademacher"
