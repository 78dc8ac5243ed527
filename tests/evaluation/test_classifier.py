"""The small classifier whose features stand in for Inception's."""

import numpy as np
import pytest

from score_sde.evaluation import classifier
from tests.commands import as_users_have_it

LABELS = np.arange(128) % 2


def images(rows):
    """Bright below or bright above: two classes."""
    bright = np.where(np.arange(4)[:, None] < 2, 200, 30) * np.ones((4, 4))
    noise = np.random.default_rng(0).integers(0, 25, (len(LABELS), 4, 4))
    found = np.where(LABELS[:, None, None] == 1, bright, bright[::-1]) + noise
    return found[rows][..., None].astype(np.uint8)


@pytest.fixture(scope="module")
def learned():
    about = {"channels": 1, "num_classes": 2, "image_size": (4, 4)}
    with as_users_have_it():  # Adam's powers are of floats and integers
        return classifier.Classifier(classifier.train(images, LABELS, 2), about)


def test_it_tells_the_classes_apart(learned):
    assert classifier.accuracy(learned, images, LABELS) == 1.0


def test_the_features_have_a_mean_square_of_one(learned):
    """So that the kernel of the squared MMD neither vanishes nor overflows."""
    found = np.asarray(learned.features()(images(np.arange(len(LABELS)))))
    # A sum of 8192 float32 squares.
    np.testing.assert_allclose(np.mean(np.square(found)), 1.0, rtol=1e-5)


@pytest.mark.thorough
def test_the_scale_is_of_all_parts_of_large_images(monkeypatch):
    """They are taken a part at a time; here four parts of 37 and less are all of them."""
    monkeypatch.setattr(classifier, "CHUNK_BYTES", 37 * images(np.arange(1)).nbytes)
    with as_users_have_it():
        weights = classifier.train(images, LABELS, 2)
        about = {"channels": 1, "num_classes": 2, "image_size": (4, 4)}
        found = np.asarray(classifier.Classifier(weights, about).features()(images(slice(None))))
    np.testing.assert_allclose(np.mean(np.square(found)), 1.0, rtol=1e-5)
