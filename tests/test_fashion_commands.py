"""The preset of Fashion-MNIST on the images of Debian's package, by the commands of a user."""

import json

import numpy as np
import pytest

from score_sde.data import load
from score_sde.data.fashion_mnist import DEBIAN_FOLDER
from tests.commands import ROOT, succeed

pytestmark = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)


def test_the_packages_images(tmp_path):
    read = load("fashion_mnist", "train", str(tmp_path))
    assert read.x.shape == (60_000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(read.condition["labels"]), [6000] * 10)
    # Known of the set, to the four digits that users of it normalise by.
    assert round(read.x.mean() / 255, 4) == 0.286
    assert round(read.x.std() / 255, 4) == 0.353


@pytest.mark.slow
def test_train_sample_and_evaluate(tmp_path):
    few = ("--config.model.width=8", "--config.model.multipliers=(1, 2, 2)")
    preset = f"--config={ROOT / 'configs' / 'vp_fashion_mnist.py'}"
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    out = succeed(
        preset, "--mode=train", *few, "--config.training.num_steps=3", cwd=tmp_path, **cache
    )
    assert "data: 60000 images of fashion_mnist" in out
    numbers = (
        "--workdir=runs/vp_fashion_mnist",
        "--config.eval.num_samples=20",
        "--config.eval.num_reference=200",
    )
    succeed("--mode=evaluate", "--config.eval.features=classifier", *numbers, cwd=tmp_path, **cache)
    found = json.loads((tmp_path / "runs" / "vp_fashion_mnist" / "evaluation.json").read_text())
    assert found["classifier"]["held_out_accuracy"] > 0.7  # 0.78 on a CPU; chance is 0.1
    assert "Frechet distance-20 (classifier features)" in found["figures"]
