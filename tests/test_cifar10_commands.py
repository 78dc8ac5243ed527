"""The paper's preset on the official CIFAR-10 batches, by the commands that a user types."""

import subprocess
import sys

import numpy as np
import pytest

from tests.commands import ROOT, succeed

SIZE = ("--config.model.width=16", "--config.model.num_blocks=1")


@pytest.fixture(scope="module")
def official(reference_dir, tmp_path_factory):
    """A cache folder in which the official binary batches lie where a download would put them."""
    script = reference_dir.parent / "data" / "cifar10" / "unpack_cifar10.py"
    if not script.exists():
        pytest.skip("no official CIFAR-10 beside the references")
    cache = tmp_path_factory.mktemp("cache")
    folder = cache / "score_sde" / "cifar10"
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    return cache


@pytest.mark.slow
def test_train_then_sample_with_no_workdir(official, tmp_path):
    """Nothing but the number of steps and the network's size is overridden."""

    def run(*arguments):
        preset = ("--config", "configs/vp_cifar10.py")
        return succeed(*preset, *arguments, cwd=tmp_path, XDG_CACHE_HOME=str(official))

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    out = run("--mode", "train", "--config.training.num_steps=3", *SIZE)
    assert "data: 50000 images of cifar10" in out
    out = run("--mode", "sample", "--config.sampling.num_steps=5")
    assert "64 images, NFE 5" in out
    with np.load(tmp_path / "runs" / "vp_cifar10" / "samples.npz") as samples:
        assert samples["images"].shape == (64, 32, 32, 3)
        assert samples["images"].dtype == np.uint8
        assert len(np.unique(samples["images"])) > 20
