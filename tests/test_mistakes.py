"""Mistakes in every mode, and of the environment, with the line that each gives. tests/test_cli.py
has those of the command line alone, and each mode's tests have more."""

import os

import pytest

from score_sde import cli
from tests import test_cli
from tests.commands import CONFIGS, DIGITS, command

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


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    """A folder with a run, and with files that serve for nothing."""
    folder = tmp_path_factory.mktemp("mistakes")
    tiny_run("digits", folder)
    (folder / "text").write_text("text")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize(
    ("arguments", "said", "environment"), MISTAKES.values(), ids=MISTAKES.keys()
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_lost(folder, arguments, said, environment):
    if "XDG_CACHE_HOME" in environment:
        environment = {"XDG_CACHE_HOME": str(folder / environment["XDG_CACHE_HOME"])}
    before = {path: path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()}
    done = command(*arguments, cwd=folder, **environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ") and said in line
    after = {path: path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()}
    assert after == before


def test_every_mode_stands_in_the_tables():
    tables = [row[0] for row in (*MISTAKES.values(), *test_cli.MISTAKES.values())]
    modes = {each.removeprefix("--mode=") for typed in tables for each in map(str, typed)}
    assert modes >= cli.MODES.keys() and len(tables) >= 40
    assert sum(bool(row[2]) for row in MISTAKES.values()) >= 2  # of the environment
