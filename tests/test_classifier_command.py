"""`--mode train_classifier`, and samples that its gradient guides."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

import score_sde
from tests.commands import DIGITS, FEW, TINY, command, refused, succeed

GUIDED = ("--config.sampling.labels=3,1", "--config.sampling.classifier_scale=2.0")
FOUR = "--config.training.num_steps=4"
TWO = ("--config.training.num_steps=2", "--config.training.schedule_steps=4")


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def test_a_classifier_is_trained(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    folder = workdir / "classifier"
    told = succeed("--mode=train_classifier", "--workdir", workdir, FOUR, cwd=tmp_path)
    assert re.search(r"accuracy on 297 held-out items: [\d.]+% without noise, ", told)
    found = json.loads((folder / "accuracy.json").read_text())
    assert found["step"] == 4 and found["n"] == 297 and len(found["accuracy"]) == 16
    assert found["log_snr"] == sorted(found["log_snr"], reverse=True)
    # It begins with log 10 = 2.3 or a little above, as its logits are small.
    assert 1.0 < lines(folder)[0]["loss"] < 4.0


@pytest.mark.thorough
def test_a_classifier_is_followed(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    succeed("--mode=train_classifier", "--workdir", workdir, FOUR, cwd=tmp_path)
    succeed("--mode=sample", "--workdir", workdir, *FEW, cwd=tmp_path)
    with np.load(workdir / "samples.npz") as plain:
        assert "labels" not in plain and plain["nfe"].tolist() == [3, 3, 3]
        before = plain["images"]
    told = succeed("--mode=sample", "--workdir", workdir, *FEW, *GUIDED, cwd=tmp_path)
    assert "of another labels, classifier_scale, weights; " in told
    with np.load(workdir / "samples.npz") as arrays:
        assert arrays["labels"].tolist() == [3, 1, 3]
        # Two steps and the denoising, each a pass of the model, and one of the classifier and back.
        assert arrays["nfe"].tolist() == [9, 9, 9]
        assert not np.array_equal(arrays["images"], before)
    run = score_sde.load(workdir)
    assert run.classifier is None
    with pytest.raises(score_sde.UserError, match="0 for a run loaded without a classifier"):
        run.changed({"sampling.classifier_scale": 1.0}).sample(jax.random.key(0), 1)


@pytest.mark.thorough
def test_a_classifier_goes_on_where_it_was_stopped(tiny_run, tmp_path):
    """Its numbers are those of an unbroken training. It guides a restoration, too."""
    workdir, mode = tiny_run("digits", tmp_path), "--mode=train_classifier"
    folder, other = workdir / "classifier", tmp_path / "other"
    succeed(mode, "--workdir", workdir, *TWO, cwd=tmp_path)
    assert [line["step"] for line in lines(folder)] == [2]
    succeed(mode, "--workdir", workdir, FOUR, cwd=tmp_path)
    succeed(mode, DIGITS, "--workdir", other, *TINY, FOUR, cwd=tmp_path)
    for each, unbroken in zip(lines(folder), lines(other / "classifier"), strict=True):
        assert each["loss"] == unbroken["loss"] and each["grad_norm"] == unbroken["grad_norm"]
    assert sorted(path.name for path in other.iterdir()) == ["classifier"]
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "a.png")
    restore = ("--mode=restore", "--workdir", workdir, "--input=a.png", "--task=inpaint")
    told = succeed(*restore, *FEW[:1], "--config.restore.num_draws=2", *GUIDED, cwd=tmp_path)
    assert "1 images, 2 draws each, NFE 18\n" in told  # for pigdm all of it back, too


def test_mistakes(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    at = ("--workdir", "runs/vp_digits")
    line = refused("--mode=sample", *at, "--config.sampling.labels=3", cwd=tmp_path)
    assert "config.sampling.labels = (3,): allowed are () with" in line
    line = refused("--mode=sample", *at, *GUIDED, "--config.sampling.labels=10", cwd=tmp_path)
    assert "config.sampling.labels = (10,): allowed are classes from 0 to 9 of digits" in line
    line = refused("--mode=train_classifier", *at, "--config.sde.beta_max=10", cwd=tmp_path)
    assert (
        "config.sde.beta_max = 10.0 (20.0 in runs/vp_digits): --mode train_classifier may" in line
    )
    line = refused("--mode=train_classifier", *at, "--config.model.centered=False", cwd=tmp_path)
    assert "config.model.centered = False: allowed are the run's own" in line
    line = refused("--mode=train_classifier", "--workdir=none", cwd=tmp_path)
    assert "--workdir = 'none': no config.json there" in line

    def last(*arguments):
        done = command(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr.splitlines()[-1]

    sample = ("--mode=sample", *at, *FEW, *GUIDED)
    allowed = "0, as there is no runs/vp_digits/classifier; --mode train_classifier trains one"
    assert last(*sample) == f"error: config.sampling.classifier_scale = 2.0: allowed are {allowed}"
    assert not (workdir / "samples.npz").exists() and not (workdir / "classifier").exists()
    np.savez(tmp_path / "own.npz", x=np.random.default_rng(0).normal(size=(200, 2)))
    own = ("--config=vp_moons", "--config.data.name=npz", "--config.data.dir=own.npz")
    assert "config.data.name = 'npz': allowed are sets with classes" in last(
        "--mode=train_classifier", "--workdir=own", *own
    )
    assert not (tmp_path / "own").exists()
    begin = ("--mode=train_classifier", DIGITS, "--workdir=other", *TINY, FOUR)
    no_logits = "--config.model.name=tests.networks.test_contract:Line"
    assert "config.model.name = 'tests.networks.test_contract:Line': allowed are unet, mlp, " in (
        last(*begin, no_logits)
    )


@pytest.mark.thorough
def test_a_classifier_of_another_process_is_refused(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    begin = ("--mode=train_classifier", DIGITS, "--workdir=other", *TINY, FOUR)
    succeed(*begin, "--config.sde.beta_max=10.0", cwd=tmp_path)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["classifier"]
    (tmp_path / "other" / "classifier").rename(workdir / "classifier")
    done = command("--mode=sample", "--workdir", workdir, *FEW, *GUIDED, cwd=tmp_path)
    said = "a classifier of config.sde.beta_max = 10.0, the run has 20.0"
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1]
