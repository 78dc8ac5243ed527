"""Commands as a user types them, and the tiny model that they are about."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
DIGITS = f"--config={CONFIGS / 'vp_digits.py'}"
SMALL = (
    "--config.model.width=8",
    "--config.model.num_blocks=1",
    "--config.training.batch_size=16",
    "--config.training.log_every=2",
    "--config.training.checkpoint_every=2",
)
FEW = ("--config.sampling.num_steps=2", "--config.sampling.num_samples=3")


def command(
    *arguments: str | Path, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run main.py with these arguments in a folder; output as text."""
    return subprocess.run(
        [sys.executable, ROOT / "main.py", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


def succeed(*arguments: str | Path, cwd: Path) -> str:
    """Run main.py and return what it prints; a failure fails the test with what it said."""
    done = command(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(*arguments: str | Path, cwd: Path) -> str:
    """Run main.py, which must print one line, exit with 2 and leave the folder as it was."""
    before = sorted(cwd.rglob("*"))
    done = command(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.endswith("\n") and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    assert sorted(cwd.rglob("*")) == before
    return done.stderr.rstrip("\n")
