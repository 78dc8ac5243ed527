"""`training.evaluate_every`: scores in the logs, and the best checkpoint, which resuming keeps."""

import json

import numpy as np
import pytest

import score_sde
from score_sde import presets
from score_sde.best import _is_best, _sampling
from score_sde.config import changed
from score_sde.modes.sweep import settings_of
from score_sde.training.checkpoints import best_record, listing, steps
from score_sde.training.logs import logged
from tests.commands import DIGITS, FEW, TINY, command, refused, succeed

NAME = "Frechet distance-24 (classifier features)"
SCORED = (
    *TINY,
    "--config.training.evaluate_every=2",
    "--config.training.keep=1",
    "--config.training.learning_rate=0.3",  # so large that the score goes up and down
    "--config.eval.features=classifier",
    "--config.eval.training_samples=24",
    "--config.eval.num_reference=30",
    "--config.sampling.num_steps=2",
)


pytestmark = pytest.mark.usefixtures("hurried")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A training of 8 steps, and the scores in its log."""
    workdir = tmp_path_factory.mktemp("scored") / "run"
    train = ("--mode=train", DIGITS, "--workdir", workdir, *SCORED)
    succeed(*train, "--config.training.num_steps=8", cwd=workdir.parent)
    return workdir, scores(workdir)


def scores(workdir):
    return {line["step"]: line[NAME] for _, line in logged(workdir) if NAME in line}


@pytest.mark.thorough
def test_the_least_score_keeps_its_checkpoint(scored):
    workdir, found = scored
    assert [*found] == [2, 4, 6, 8]
    best = min(found, key=found.get)
    assert best < 8  # not the last, which would be kept without a score
    record = best_record(workdir)
    assert (record["step"], record["value"], record["name"]) == (best, found[best], NAME)
    assert record["features"] == "classifier" and len(record["weights"]) == 64
    assert steps(workdir / "best") == [best] and steps(workdir / "checkpoints") == [8]
    told = succeed("--mode=config", "--workdir", workdir, cwd=workdir.parent)
    assert f"best  step {best}, {NAME} {found[best]:.4g}" in told
    assert "loss" in repr(score_sde.load(workdir))


@pytest.mark.thorough
def test_a_training_in_parts_has_the_same_scores_and_the_same_best(scored, tmp_path):
    workdir, found = scored
    train = ("--mode=train", DIGITS, "--workdir", tmp_path / "run", *SCORED)
    schedule = "--config.training.schedule_steps=8"
    for number in (2, 6, 8):
        succeed(*train, f"--config.training.num_steps={number}", schedule, cwd=tmp_path)
    assert scores(tmp_path / "run") == found
    assert best_record(tmp_path / "run") == best_record(workdir)
    assert steps(tmp_path / "run" / "best") == steps(workdir / "best")


@pytest.mark.thorough
def test_the_best_step_can_be_sampled(scored):
    workdir, found = scored
    best = min(found, key=found.get)
    for out, step in (("best", "best"), ("number", best)):
        at = ("--workdir", workdir, "--output", workdir.parent / out, f"--step={step}", *FEW)
        told = succeed("--mode=sample", *at, cwd=workdir.parent)
        assert f"averaged weights after {best} steps" in told
    ours, theirs = (np.load(workdir.parent / out / "samples.npz") for out in ("best", "number"))
    np.testing.assert_array_equal(ours["images"], theirs["images"])


def test_a_sweep_takes_the_best_step(tmp_path):
    for name in ("best/6", "checkpoints/8"):
        (tmp_path / name).mkdir(parents=True)
    config = changed(presets.load("vp_digits"), {"eval.sweep": "step=best,8"})
    assert [each.step for each in settings_of(config, tmp_path, None)] == [6, 8]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"step": 1e999, "value": 1}', pytest.param(b"[" * 9999, id="deep")],
)
def test_a_damaged_record_is_kept_aside_with_its_checkpoint(content, tmp_path, capsys):
    (tmp_path / "best" / "6").mkdir(parents=True)
    (tmp_path / "best.json").write_bytes(content)
    assert _is_best(tmp_path, {"name": NAME}, 8, 1.0)
    assert "best.json: best.json cannot be read; it is now best.old.json" in capsys.readouterr().out
    assert steps(tmp_path / "best.old") == [6] and not (tmp_path / "best").exists()


def test_the_listing_of_a_damaged_record(tmp_path):
    (tmp_path / "best" / "6").mkdir(parents=True)
    (tmp_path / "best.json").write_text('{"step": 6, "value": 1.0}')
    assert listing(tmp_path) == ["     best  step 6, best.json cannot be read"]


def test_a_record_of_another_score_is_no_rival(tmp_path):
    """As after a change of `eval.training_samples`: the next score is the best of its kind."""
    record = {"step": 2, "value": 1.0, "name": NAME}
    (tmp_path / "best.json").write_text(json.dumps(record))
    assert not _is_best(tmp_path, {"name": NAME}, 4, 1.0)
    assert _is_best(tmp_path, {"name": NAME}, 4, 0.5)
    assert _is_best(tmp_path, {"name": "FID-2k"}, 4, 5.0)
    assert json.loads((tmp_path / "best.old.json").read_text()) == record
    (tmp_path / "best" / "6").mkdir(parents=True)
    assert not _is_best(tmp_path, {"name": NAME}, 4, 0.5)  # made again after a kill


def test_the_batch_size_counts_where_samples_depend_on_it(tmp_path):
    """As with score_sde's corrector, whose steps are as large as the batch's norms say."""
    settings = {"sampling.method": "pc", "sampling.corrector": "langevin"}
    config = changed(presets.load("vp_digits"), settings)
    both = [_sampling(changed(config, {"sampling.faithful": said})) for said in (False, True)]
    assert ["sampling.batch_size" in found for found in both] == [False, True]
    record = {"step": 2, "value": 1.0, "name": NAME}  # of an earlier version
    (tmp_path / "best.json").write_text(json.dumps(record))
    (tmp_path / "best" / "2").mkdir(parents=True)
    assert not _is_best(tmp_path, {"name": NAME, "sampling.batch_size": 64}, 4, 2.0)


def test_mistakes(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    line = refused("--mode=sample", "--workdir", workdir, "--step=best", cwd=tmp_path)
    assert line.startswith("error: --step = 'best': ") and "training.evaluate_every" in line
    moons = ("--mode=train", "--config=vp_moons", "--config.training.evaluate_every=5")
    done = command(*moons, cwd=tmp_path)  # which says the devices first
    said = "error: config.training.evaluate_every = 5: allowed are 0: moons are vectors\n"
    assert (done.returncode, done.stderr) == (2, said)
