"""Mistakes in every mode, and troubles of the environment, with the line that each gives.

Others stand elsewhere, as they need something that these rows do not have:

- tests/test_cli.py: the command line alone, before JAX is imported;
- tests/test_environment.py: variables that a process takes once, a disk that is full at a file of a
  training, a cache, too little memory;
- tests/training/test_checkpoints.py: a disk that is full in the middle of a checkpoint;
- tests/test_locks.py: two commands, and a run that cannot be written to;
- tests/test_buckets.py: buckets, whose servers need the extra test-remote;
- test_mistakes of each mode's tests: that mode's settings.
"""

import os
import shutil

import pytest
from PIL import Image

from score_sde import cli
from score_sde.evaluation import classifier
from tests import test_cli
from tests.commands import CONFIGS, DIGITS, FEW, KINDS, command, small_files, succeed
from tests.test_locks import INTERPOLATE, LIKELIHOOD  # compiled once for both

NOWHERE = {"https_proxy": "http://127.0.0.1:9"}  # no download
# Arguments, a part of the line, and the environment.
MISTAKES = {
    "a classifier beside no run": (
        ["--mode=train_classifier", "--workdir=none"],
        "--workdir = 'none': no config.json there",
        {},
    ),
    "training to fewer steps than were made": (
        ["--mode=train", "--workdir=runs/vp_digits", "--config.training.num_steps=2"],
        "config.training.num_steps = 2: allowed are at least 4, which runs/vp_digits has reached",
        {},
    ),
    "another network for a run": (
        ["--mode=train", DIGITS],
        "config.model.name = 'unet' ('tests.tiny:Tiny' in runs/vp_digits)",
        {},
    ),
    "a set that cannot be downloaded": (
        ["--mode=train", f"--config={CONFIGS / 'vp_cifar10.py'}", "--config.data.dir=empty"],
        "cifar10",
        NOWHERE,
    ),
    "a workdir in a file": (
        ["--mode=train", DIGITS, "--workdir=text"],
        "--workdir = 'text': not a directory",
        {},
    ),
    "a workdir in a pipe": (
        ["--mode=train", DIGITS, "--workdir=pipe"],
        "--workdir = 'pipe': a pipe or device; allowed are files and folders",
        {},
    ),
    "no samples": (
        ["--mode=sample", "--config.sampling.num_samples=0"],
        "config.sampling.num_samples = 0: allowed are integers of at least 1",
        {},
    ),
    "classes of a model without": (
        ["--mode=sample", "--config.sampling.labels=3"],
        "config.sampling.labels = (3,): allowed are",
        {},
    ),
    "samples of a step that is not there": (
        ["--mode=sample", "--step=3"],
        "step = 3: not in ",
        {},
    ),
    "samples of the network's width": (
        ["--mode=sample", "--config.model.width=16"],
        "config.model.width = 16 (8 in runs/vp_digits): --mode sample may change ",
        {},
    ),
    "an output in a file": (
        ["--mode=sample", "--output=text"],
        "--output = 'text': text is not a directory one may write to",
        {},
    ),
    "likelihoods of more images than there are": (
        ["--mode=likelihood", "--config.likelihood.num_images=100000"],
        "config.likelihood.num_images = 100000: allowed are",
        {},
    ),
    "interpolation by a sampler": (
        ["--mode=interpolate", "--config.sampling.method=unipc"],
        "config.sampling.method = 'unipc': allowed are ode with --mode interpolate",
        {},
    ),
    "more pairs than there are": (
        ["--mode=interpolate", "--config.sampling.num_pairs=100000"],
        "config.sampling.num_pairs = 100000: allowed are 1 to ",
        {},
    ),
    "nothing to restore": (
        ["--mode=restore", "--task=inpaint", "--input=empty"],
        "--input = 'empty': no images there",
        {},
    ),
    "a text to restore": (
        ["--mode=restore", "--task=inpaint", "--input=text"],
        "text: no image (",
        {},
    ),
    "a pipe to restore": (
        ["--mode=restore", "--task=inpaint", "--input=pipe"],
        "--input = 'pipe': a pipe or device",
        {},
    ),
    "a mask that is none": (
        ["--mode=restore", "--task=inpaint", "--input=text", "--mask=~no.such.user/m.png"],
        "--mask = '~no.such.user/m.png': no home folder of ~no.such.user",
        {},
    ),
    "samples that are not there": (
        ["--mode=evaluate", "--samples=none.npz"],
        "none.npz: no such file or folder",
        {},
    ),
    "a pipe of samples": (
        ["--mode=evaluate", "--samples=pipe"],
        "--samples = 'pipe': a pipe or device",
        {},
    ),
    "evaluation without weights": (
        ["--mode=evaluate"],
        "make inception",
        {"XDG_CACHE_HOME": "empty"},
    ),
    "a sweep over a network": (
        ["--mode=evaluate", "--config.eval.sweep=model.width=8,16"],
        "config.eval.sweep = 'model.width=8,16': allowed are KEY=VALUE",
        {},
    ),
    "a report of nothing": (
        ["--mode=report", "--workdir=none"],
        "--workdir = 'none': no config.json there",
        {},
    ),
    "a report beside nothing": (
        ["--mode=report", "--against=none"],
        "--against = 'none': no config.json there",
        {},
    ),
    "a run to be converted": (
        ["--mode=convert", "--source=runs/vp_digits"],
        "--source = 'runs/vp_digits': a run; --mode export makes of it what convert reads",
        {},
    ),
    "a conversion into a run": (
        ["--mode=convert", "--source=text", DIGITS, "--workdir=runs/vp_digits"],
        "--workdir = 'runs/vp_digits': not empty; allowed are new or empty directories",
        {},
    ),
    "a text to be converted": (
        ["--mode=convert", "--source=text", DIGITS, "--workdir=new"],
        "--source text: ",
        {},
    ),
    "an export into a run": (
        ["--mode=export", "--target=runs/vp_digits"],
        "--target = 'runs/vp_digits': not empty; allowed are new or empty directories",
        {},
    ),
    "a look at nothing": (
        ["--mode=data", DIGITS, "--config.data.name=folder", "--config.data.dir=none"],
        "config.data.dir = 'none': allowed is the path of a folder of images",
        {},
    ),
    "a look at nothing in the home": (
        ["--mode=data", DIGITS, "--config.data.name=folder", "--config.data.dir=~no.such.user/x"],
        "config.data.dir = '~no.such.user/x': no home folder of ~no.such.user",
        {},
    ),
    "the config of nothing": (
        ["--mode=config", "--workdir=none"],
        "--workdir = 'none': no config.json there",
        {},
    ),
}


# Each mode that writes, on a disk that takes this many bytes of a file: arguments, a part of the
# line.
EVALUATE = ["--config.eval.features=classifier", "--config.eval.num_reference=30"]
FULL = "cannot be written (File too large)"
FULL_DISK = {
    "train": ([DIGITS, "--workdir=full", *KINDS["digits"]], f"full/config.json: {FULL}"),
    "train_classifier": (
        [DIGITS, "--workdir=full", *KINDS["digits"]],
        f"full/classifier/config.json: {FULL}",
    ),
    "sample": (["--output=full", *FEW], f"full/samples.npz: {FULL}"),
    "likelihood": (
        ["--output=full", *LIKELIHOOD],
        f"full/likelihood.npz: {FULL}",
    ),
    "interpolate": (
        ["--output=full", *INTERPOLATE],
        f"full/interpolation.npz: {FULL}",
    ),
    "restore": (
        [
            "--output=full",
            "--input=images",
            "--task=inpaint",
            FEW[0],
            "--config.restore.num_draws=2",
        ],
        f"full/restored.npz: {FULL}",
    ),
    "evaluate": (["--output=full", *EVALUATE], f"full/classifier.npz: {FULL}"),
    "report": (["--output=full"], f"full/report.html: {FULL}"),
    "convert": (
        ["--source=exported", "--workdir=full"],
        "full/checkpoints: cannot be written (File too large); none is whole",
    ),
    "data": ([DIGITS, "--output=full"], f"full/data.png: {FULL}"),
    "export": (["--target=full"], f"full/config.json: {FULL}"),
}
ALIKE = ("sample", "interpolate", "restore")  # they write as likelihood does
BYTES = 200  # a lock's file has some 60

# A part of a run is not as it was written: what takes its place, arguments, a part of the line.
CONFIG, NEWEST = "config.json", "checkpoints/4/default/manifest.ocdbt"
DAMAGE = {
    "a config that is cut short": (
        {CONFIG: b'{"version": '},
        ["--mode=sample"],
        "config.json: not a config written by a run (no JSON: Expecting value: line 1",
    ),
    "a config of a newer version": (
        {CONFIG: b'{"config": {"training": {"magic": 1}}}'},
        ["--mode=likelihood"],
        "config.json: config.training.magic = 1: no such key",
    ),
    "a config that is no text": (
        {CONFIG: b"\x80"},
        ["--mode=report"],
        "config.json: not a config written by a run (no JSON: not text",
    ),
    "a config with text for a number": (
        {CONFIG: b'{"config": {"seed": "many"}}'},
        ["--mode=restore", "--input=images", "--task=inpaint"],
        "config.json: seed = many: allowed are integers",
    ),
    "the step asked for": (
        {NEWEST: b""},
        ["--mode=sample", "--step=4"],
        "checkpoints/4: cannot be read (",
    ),
    "every checkpoint": (
        {NEWEST: b"", NEWEST.replace("4", "2"): b""},
        ["--mode=export", "--target=new"],
        "checkpoints: none of its checkpoints (4, 2) can be read (",
    ),
    "checkpoints without a config": (
        {CONFIG: None},
        ["--mode=train", DIGITS],
        "': has checkpoints, but no config.json",
    ),
}


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    """A folder with a run, and with files that serve for nothing."""
    folder = tmp_path_factory.mktemp("mistakes")
    tiny_run("digits", folder)
    succeed("--mode=export", "--target=exported", cwd=folder)
    (folder / "images").mkdir()
    Image.new("L", (8, 8)).save(folder / "images" / "a.png")
    (folder / "text").write_text("text")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    return folder


def files(folder):
    return {path: path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()}


def trouble(folder, *arguments, **environment):
    """The line of a command that must not change what was there, and leaves no part of a file."""
    before = files(folder)
    done = command(*arguments, cwd=folder, **environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    after = files(folder)
    assert after.items() >= before.items()
    assert not [path for path in after if path.suffix in (".partial", ".lock")]
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line, after.keys() - before.keys()


@pytest.mark.parametrize(
    ("arguments", "said", "environment"), MISTAKES.values(), ids=MISTAKES.keys()
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_lost(folder, arguments, said, environment):
    if "XDG_CACHE_HOME" in environment:
        environment = {"XDG_CACHE_HOME": str(folder / environment["XDG_CACHE_HOME"])}
    line, new = trouble(folder, *arguments, **environment)
    assert said in line and not new


@pytest.mark.parametrize(
    ("mode", "row"),
    [
        pytest.param(*item, marks=pytest.mark.thorough if item[0] in ALIKE else ())
        for item in FULL_DISK.items()
    ],
    ids=FULL_DISK.keys(),
)
def test_a_full_disk_is_told_in_one_line(folder, monkeypatch, mode, row):
    arguments, said = row
    monkeypatch.setattr(classifier, "STEPS", 1)
    shutil.rmtree(folder / "full", ignore_errors=True)
    with small_files(BYTES):
        line, _ = trouble(folder, f"--mode={mode}", *arguments)
    assert said in line


@pytest.mark.parametrize(("files", "arguments", "said"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_told_in_one_line(folder, tmp_path, files, arguments, said):
    workdir = folder / tmp_path.name
    shutil.copytree(folder / "runs" / "vp_digits", workdir)
    for name, content in files.items():
        (workdir / name).unlink()
        if content is not None:
            (workdir / name).write_bytes(content)
    line, new = trouble(folder, f"--workdir={workdir}", *arguments)
    assert said in line and not new


def test_every_mode_stands_in_the_tables():
    tables = [row[0] for row in (*MISTAKES.values(), *test_cli.MISTAKES.values())]
    modes = {each.removeprefix("--mode=") for typed in tables for each in map(str, typed)}
    assert modes >= cli.MODES.keys() and len(tables) >= 40
    assert FULL_DISK.keys() == cli.MODES.keys() - {"config"}  # which writes nothing
