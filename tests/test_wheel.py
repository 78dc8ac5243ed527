"""`pip install` of the wheel, and then the command from anywhere, without a checkout."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from score_sde import cli, presets
from tests.commands import ROOT


def test_the_installed_command_is_this_packages():
    [command] = entry_points(group="console_scripts", name="score-sde")
    assert command.load() is cli.end_with_main


@pytest.mark.thorough  # a quarter of a minute
def test_an_installed_wheel_trains_from_an_empty_folder(tmp_path):
    pytest.importorskip("hatchling")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()

    def python(*arguments: str | Path, cwd: Path = empty) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(site)},  # wins over an editable one
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    [wheel] = tmp_path.glob("*.whl")
    python("-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)

    # subvp_digits begins with another preset.
    code = "from score_sde import presets as p; p.load('subvp_digits'); print(p.FOLDER, *p.names())"
    assert python("-c", code).split() == [str(site / "score_sde" / "configs"), *presets.names()]
    command = site / "bin" / "score-sde"
    assert python(command, "--help") == python("-m", "score_sde", "--help")
    few = ("--config.training.num_steps=1", "--config.training.sample_every=0")
    python(command, "--mode=train", "--config=vp_moons", *few)  # a network that compiles soon
    assert (empty / "runs" / "vp_moons" / "checkpoints" / "1").is_dir()
