"""A model with learned reverse variances, by the command line, and a training that goes on."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import score_sde
from score_sde import UserError, objectives
from score_sde.config import changed
from score_sde.training.checkpoints import newest_step
from tests.commands import CONFIGS, FAST, succeed
from tests.test_learn import SMALL

FEW = (
    "--config.model.name=tests.tiny:Tiny",
    "--config.model.num_levels=20",
    "--config.sampling.num_steps=5",
)


@pytest.mark.thorough
def test_training_sampling_and_bounds(tmp_path):
    preset, workdir = f"--config={CONFIGS / 'iddpm_digits.py'}", tmp_path / "run"
    given = ("--workdir", workdir)
    succeed("--mode=train", preset, *FAST, *FEW, *given, cwd=tmp_path)
    succeed("--mode=sample", *given, "--config.sampling.num_samples=3", cwd=tmp_path)
    arrays = np.load(workdir / "samples.npz")
    assert arrays["images"].shape == (3, 8, 8, 1) and arrays["nfe"].tolist() == [5, 5, 5]
    # Every other sampler takes the scores alone.
    other = {"sampling.method": "unipc", "sampling.num_steps": 5}
    images = score_sde.load(workdir).changed(other).sample(jax.random.key(0), 2).images
    assert images.shape == (2, 8, 8, 1)

    of_few = ("--config.likelihood.num_images=5", "--config.likelihood.batch_size=3")
    told = succeed("--mode=likelihood", *given, *of_few, cwd=tmp_path)
    summary = json.loads((workdir / "likelihood.json").read_text())
    assert "discretized Gaussian, 17 levels, variance learned" in told
    assert summary["variance"] == "learned" and len(summary["steps"]) == 19
    terms = sum(summary[name] for name in ("prior", "diffusion", "reconstruction"))
    assert summary["bits_per_dim"] == pytest.approx(terms, rel=1e-5)  # float32 sums


VLB = changed(
    score_sde.presets.load("iddpm_digits:vlb"),
    {"model.name": "tests.tiny:Tiny", "model.num_levels": 2, **SMALL}
    | {"sampling.num_steps": 2, "training.num_steps": 6, "training.checkpoint_every": 3},
)


def stored(workdir):
    """All that the newest checkpoint has."""
    folder = workdir / "checkpoints"
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder / f"{newest_step(folder)}" / "default")


@pytest.mark.thorough
def test_the_history_of_losses_goes_on_with_the_training(tmp_path):
    """Bit for bit. The levels are drawn by it from the third step on: then both have ten losses."""
    score_sde.train(VLB, tmp_path / "whole")
    half = {"training.num_steps": 3, "training.schedule_steps": 6}
    score_sde.train(changed(VLB, half), tmp_path / "parts")
    seen = stored(tmp_path / "parts")["history"]["seen"]
    assert np.sum(seen) == 3 * 16 and np.min(seen) >= 10
    score_sde.train(VLB, tmp_path / "parts")
    whole, parts = (stored(tmp_path / name) for name in ("whole", "parts"))
    assert whole["history"]["losses"].shape == (2, 10) and np.all(whole["history"]["losses"])
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_a_loss_that_does_not_train_the_variances_is_refused():
    config = changed(VLB, {"training.loss": "paper"})
    assert objectives.history(config) is None
    with pytest.raises(UserError, match=r"training\.loss = 'paper': allowed are hybrid, vlb with"):
        score_sde.train(config)
