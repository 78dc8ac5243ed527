"""What was made by others stays: beside a training, in a run that is only read, in a folder that is
used already. tests/test_locks.py has the locks."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from score_sde import learn, workdirs
from score_sde.best import _is_best
from score_sde.errors import UserError
from score_sde.evaluation import classifier
from score_sde.locks import writing
from score_sde.modes import sample
from score_sde.modes.sides import named
from score_sde.training.checkpoints import steps
from tests.commands import DIGITS, FEW, KINDS, command, refused, succeed, unwritable
from tests.evaluation.recorded import packed_weights

SETTINGS = (
    "--config.eval.features=classifier",
    "--config.eval.num_samples=24",
    "--config.eval.num_reference=30",
)


@pytest.fixture(scope="module")
def store(tiny_run, tmp_path_factory):
    """A run, which nothing changes."""
    return tiny_run("digits", tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def evaluated(store):
    """The run with an evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "STEPS", 1)
        succeed("--mode=evaluate", *SETTINGS, *FEW, cwd=store.parents[1])
    return store


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


# --- Beside a training ----------------------------------------------------------------------------


@pytest.fixture
def trained_on(evaluated, tmp_path, monkeypatch):
    """A copy of the run, whose checkpoints a training removes when the first samples are drawn."""
    workdir, draw = shutil.copytree(evaluated, tmp_path / "runs" / "vp_digits"), sample.draw

    def then_train(*arguments):
        draw(*arguments)
        for step in steps(workdir / "checkpoints"):
            shutil.rmtree(workdir / "checkpoints" / f"{step}")

    monkeypatch.setattr(sample, "draw", then_train)
    return workdir


@pytest.mark.thorough
def test_an_evaluation_ends_with_the_checkpoint_that_it_began_with(trained_on, tmp_path):
    likelihood = ("--config.eval.likelihood", "--config.likelihood.num_images=2")
    loose = ("--config.likelihood.rtol=0.1", "--config.likelihood.atol=0.1")
    succeed("--mode=evaluate", *SETTINGS, *likelihood, *loose, *FEW, cwd=tmp_path)
    found = json.loads((trained_on / "evaluation.json").read_text())
    parts = ("samples", "loss_by_level", "likelihood")
    assert [found[part]["step"] for part in parts] == [4, 4, 4]


@pytest.mark.thorough
def test_a_sweep_ends_with_the_checkpoints_that_it_began_with(trained_on, tmp_path):
    sweep = "--config.eval.sweep=sampling.num_steps=2,3;step=2,4"
    succeed("--mode=evaluate", *SETTINGS, sweep, cwd=tmp_path)
    assert len(json.loads((trained_on / "sweep.json").read_text())) == 4


def test_samples_that_change_while_they_are_read_are_told(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    (tmp_path / "folder").mkdir()
    for number in range(24):
        Image.fromarray(images[number, ..., 0]).save(tmp_path / "folder" / f"{number}.png")
    sides = [named(tmp_path / name).images for name in ("a.npz", "folder")]
    for side in sides:
        assert sum(map(len, side)) == 24
    np.savez(tmp_path / "a.npz", images=images[:23])
    (tmp_path / "folder" / "0.png").unlink()
    for side in sides:
        with pytest.raises(UserError, match="another command has changed it since it was read"):
            list(side)


# --- A run that is only read ----------------------------------------------------------------------


@pytest.fixture
def read_only(store, monkeypatch):
    """The run as one that cannot be written to, held by a training."""
    unwritable(store, monkeypatch)
    with writing(store, "checkpoints"):
        before = stamps(store)
        yield store
        assert stamps(store) == before


def test_a_run_that_is_only_read_takes_no_results_and_is_drawn_from(read_only, tmp_path):
    at = ("--workdir", read_only)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    restore = ("--mode=restore", *at, "--input=a.png", "--task=inpaint", *FEW)
    for mode in (("--mode=evaluate", *at), restore, ("--mode=report", *at)):
        said = refused(*mode, cwd=tmp_path)
        assert said.endswith("is not a directory one may write to; --output FOLDER takes another")
    succeed("--mode=sample", *at, "--output=out", *FEW, cwd=tmp_path)
    succeed("--mode=report", *at, "--output=out", cwd=tmp_path)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"samples.npz", "samples.png", "report.html"}


@pytest.mark.thorough
@pytest.mark.usefixtures("evaluated")
def test_a_run_that_is_only_read_is_evaluated_restored_and_reported(read_only, tmp_path):
    at = ("--workdir", read_only)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    restore = ("--mode=restore", *at, "--input=a.png", "--task=inpaint", *FEW)
    told = succeed("--mode=evaluate", *at, "--output=out", *SETTINGS, *FEW, cwd=tmp_path)
    assert "held-out" not in told  # the run's own classifier
    succeed(*restore, "--output=out", "--config.restore.num_draws=1", cwd=tmp_path)
    succeed("--mode=report", *at, "--output=out", cwd=tmp_path)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    others = {"features", "nearest.png", "restored", "samples.npz", "samples.png"}
    files = ("evaluation.json", "report.html", "restored.json", "restored.npz", "restored.png")
    assert found == {*files, *others}


@pytest.mark.thorough
@pytest.mark.usefixtures("evaluated")
def test_another_classifier_goes_to_the_output_and_keeps_the_one_there(
    read_only, tmp_path, monkeypatch
):
    monkeypatch.setattr(classifier, "STEPS", 1)
    evaluate = ("--mode=evaluate", "--workdir", read_only, "--output=out", *SETTINGS, *FEW)
    for number in (1, 2):  # two changes of how it is trained
        monkeypatch.setattr(classifier, "RECIPE", {"number": number})
        told = succeed(*evaluate, cwd=tmp_path)
        is_kept = "out/classifier.npz: of other images or settings; it is now classifier.old.npz"
        assert "held-out images" in told and (is_kept in told) == (number == 2)
    old, new = (
        classifier.read(tmp_path / "out" / f"classifier{old}.npz", {"number": number})
        for old, number in ((".old", 1), ("", 2))
    )
    assert old and new


# --- A folder that is used ------------------------------------------------------------------------


def test_a_best_checkpoint_without_its_record_is_kept_aside(tmp_path, capsys):
    (tmp_path / "best" / "6").mkdir(parents=True)
    assert not _is_best(tmp_path, {"name": "FID"}, 4, 1.0)  # made again after a kill
    assert _is_best(tmp_path, {"name": "FID"}, 6, 1.0) and steps(tmp_path / "best") == [6]
    assert _is_best(tmp_path, {"name": "FID"}, 8, 1.0) and steps(tmp_path / "best.old") == [6]
    assert "best: without best.json; it is now best.old" in capsys.readouterr().out


def test_scores_by_another_reference_are_no_rivals(tmp_path):
    record = {"step": 2, "value": 1.0, "name": "FID"}
    (tmp_path / "best.json").write_text(json.dumps(record))  # as earlier versions wrote it
    assert not _is_best(tmp_path, {"name": "FID", "reference": "a"}, 4, 2.0)
    (tmp_path / "best.json").write_text(json.dumps({**record, "reference": "a"}))
    assert not _is_best(tmp_path, {"name": "FID", "reference": "a"}, 4, 2.0)
    assert _is_best(tmp_path, {"name": "FID", "reference": "b"}, 4, 2.0)
    assert json.loads((tmp_path / "best.old.json").read_text())["reference"] == "a"


def test_a_new_training_keeps_what_it_finds(tmp_path):
    """The log of somebody, and what an earlier one left whose checkpoints were deleted."""
    workdir = tmp_path / "run"
    for name in ("best/6", "samples"):
        (workdir / name).mkdir(parents=True)
    for name in ("best.json", "metrics.jsonl", "samples/step_000002.png"):
        (workdir / name).write_text('{"step": 1, "loss": 1.0}\n')
    train = ("--mode=train", DIGITS, "--workdir=run", *KINDS["digits"])
    told = succeed(*train, cwd=tmp_path)
    for name in ("best", "best.json", "metrics.jsonl", "samples"):
        stem, dot, suffix = name.partition(".")
        assert f"run/{name}: of no checkpoint here; it is now {stem}.old{dot}{suffix}" in told
    assert (workdir / "metrics.old.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'
    assert steps(workdir / "best.old") == [6] and not (workdir / "best").exists()
    assert [path.name for path in (workdir / "samples").iterdir()] == ["step_000004.png"]
    log = (workdir / "metrics.jsonl").read_bytes()
    assert "it is now" not in succeed(*train, cwd=tmp_path)  # which has its own
    assert (workdir / "metrics.jsonl").read_bytes() == log


def test_a_users_own_files_are_not_replaced_by_a_look_or_a_page(store, tmp_path):
    for name in ("data.png", "report.html"):
        (tmp_path / name).write_text("my own")
    told = succeed("--mode=data", DIGITS, cwd=tmp_path)
    assert "data.png: another one was there; it is now data.old.png" in told
    assert "it is now" not in succeed("--mode=data", DIGITS, cwd=tmp_path)  # the same again
    told = succeed("--mode=report", "--workdir", store, "--output=.", cwd=tmp_path)
    assert "report.html: no page of ours; it is now report.old.html" in told
    told = succeed("--mode=report", "--workdir", store, "--output=.", cwd=tmp_path)
    assert "it is now" not in told
    for name in ("data.old.png", "report.old.html"):
        assert (tmp_path / name).read_text() == "my own"


@pytest.mark.parametrize("mode", ["export", "convert"])
def test_what_was_interrupted_while_it_wrote_begins_again(store, tmp_path, monkeypatch, mode):
    succeed("--mode=export", "--workdir", store, "--target=source", cwd=tmp_path)
    typed = {
        "export": ("--mode=export", "--workdir", store, "--target=new"),
        "convert": ("--mode=convert", "--source=source", "--workdir=new"),
    }[mode]
    save = workdirs.save

    def interrupted(*arguments):
        if mode == "export":  # the weights follow
            save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workdirs, "save", interrupted)
        assert command(*typed, cwd=tmp_path).returncode == 130
    left = {path.name for path in (tmp_path / "new").iterdir()}
    assert left == {"unfinished", "config.json" if mode == "export" else "checkpoints"}
    results = {"export": "weights", "convert": "checkpoints"}[mode]
    with writing(tmp_path / "new", results):  # by another that goes on
        assert f"its {results} are being written by process {os.getpid()} " in refused(
            *typed, cwd=tmp_path
        )
    succeed(*typed, cwd=tmp_path)
    assert not (tmp_path / "new" / "unfinished").exists()
    assert "not empty" in refused(*typed, cwd=tmp_path)
    (tmp_path / "new" / "config.json").unlink()  # nobody's leftovers
    assert "not empty; allowed are new or empty" in refused(*typed, cwd=tmp_path)


@pytest.mark.slow  # the Inception network, compiled for half a minute
def test_two_folders_of_as_many_images_have_their_own_statistics(data_dir, tmp_path):
    """Nor are figures lost by data that have gone, beside a reference from elsewhere."""
    weights = tmp_path / "inception.safetensors"
    save_file({k: np.ascontiguousarray(a) for k, a in packed_weights(data_dir).items()}, weights)
    draw = np.random.default_rng(0)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for number in range(24):
            image = Image.fromarray(draw.integers(0, 256, (8, 8), np.uint8))
            image.save(tmp_path / folder / f"{number}.png")
    names = {"inception_weights": weights, "num_samples": 20, "batch_size": 10}
    settings = [f"--config.eval.{name}={value}" for name, value in names.items()]
    own = ("--config.data.name=folder", "--config.data.image_size=8")
    look = ("--mode=data", DIGITS, *own, *settings, "--config.eval.statistics=s.npz")
    for folder in "aab":
        told = succeed(*look, f"--config.data.dir={folder}", cwd=tmp_path)
        assert ("s.npz: of another set; it is now s.old.npz" in told) == (folder == "b")
    small = ("--config.training.batch_size=8", "--workdir=run")
    train = ("--mode=train", DIGITS, *KINDS["digits"], *own, "--config.data.dir=a", *small)
    succeed(*train, cwd=tmp_path)
    shutil.rmtree(tmp_path / "a")
    given = ("--mode=evaluate", "--workdir=run", "--reference=s.npz", *settings, *FEW)
    told = succeed(*given, cwd=tmp_path)
    assert "note: without the loss by level: " in told and '"FID-20": ' in told
    assert "loss_by_level" not in json.loads((tmp_path / "run" / "evaluation.json").read_text())


def test_nothing_is_moved_where_a_training_goes_on(store, tmp_path):
    workdir = shutil.copytree(store, tmp_path / "run")
    (workdir / "best.json").write_text("{}")
    learn._keep_earlier(workdir)
    assert (workdir / "best.json").exists() and (workdir / "metrics.jsonl").exists()
