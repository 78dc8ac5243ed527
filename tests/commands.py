"""Commands as a user types them, and the tiny model that they are about.

`command` runs one in the tests' process: Python and JAX have begun, and what an earlier command
compiled is there. `process` and `begin` start a new one, for signals and for what a process takes
only once.
"""

import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import jax
import pytest

from score_sde.cli import main

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
DIGITS = f"--config={CONFIGS / 'vp_digits.py'}"
SMALL = (
    "--config.model.width=8",
    "--config.model.multipliers=(1,)",
    "--config.model.attention_resolutions=(8,)",
    "--config.model.num_blocks=1",
    "--config.training.batch_size=16",
    "--config.training.log_every=2",
    "--config.training.checkpoint_every=2",
)
FEW = ("--config.sampling.num_steps=2", "--config.sampling.num_samples=3")

# What a tiny run of each kind is trained with (fixture `tiny_run`): large steps and fast averages,
# so that a few of them change what the network says. All kinds except `unet` have a network that
# compiles in a moment; a U-Net of any size takes some 5 s for each sampler.
FAST = (
    *SMALL,
    "--config.training.num_steps=4",
    "--config.training.warmup_steps=0",
    "--config.training.ema_rate=0.5",
    "--config.training.sample_every=0",
)
TINY = (*FAST, "--config.model.name=tests.tiny:Tiny")
KINDS = {
    "unet": FAST,
    "digits": (*TINY, "--config.training.sample_every=4"),
    "ve": (*TINY, "--config.sde.name=ve"),
    "classes": (
        *TINY,
        "--config.model.class_conditional",
        "--config.training.label_dropout=0.2",
    ),
    "discrete": (
        *TINY,
        "--config.model.num_levels=100",
        "--config.model.parameterization=epsilon",
        "--config.model.embedding=positional",
        "--config.model.condition=time",
        "--config.training.loss=paper",
    ),
}

Done = subprocess.CompletedProcess[str]


@contextmanager
def as_users_have_it() -> Iterator[None]:
    """JAX without the strict settings of the tests (conftest.py)."""
    strict = {
        name: getattr(jax.config, name)
        for name in ("jax_numpy_rank_promotion", "jax_numpy_dtype_promotion")
    }
    jax.config.update("jax_numpy_rank_promotion", "allow")
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    try:
        yield
    finally:
        for name, value in strict.items():
            jax.config.update(name, value)


def command(*arguments: str | Path, cwd: Path, **environment: str) -> Done:
    """Run a command line in a folder, in this process; output as text."""
    argv, out, err = [*map(str, arguments)], io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        as_users_have_it(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patch.chdir(cwd)
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            status = main(argv)
        except SystemExit as ended:
            status = int(ended.code or 0)
    return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())


def begin(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start main.py in a process of its own."""
    return subprocess.Popen(
        [sys.executable, ROOT / "main.py", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def process(*arguments: str | Path, cwd: Path, **environment: str) -> Done:
    """Run main.py in a process of its own."""
    running = begin(*arguments, cwd=cwd, **environment)
    out, err = running.communicate(timeout=240)
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


def succeed(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command and return what it prints; a failure fails the test with what it said."""
    done = command(*arguments, cwd=cwd, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(*arguments: str | Path, cwd: Path) -> str:
    """Run a command, which must print one line, exit with 2 and leave the folder as it was."""

    def files() -> list[Path]:
        # Python keeps a preset's bytecode beside it, if the environment lets it.
        return sorted(path for path in cwd.rglob("*") if "__pycache__" not in path.parts)

    before = files()
    done = command(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.endswith("\n") and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    assert files() == before
    return done.stderr.rstrip("\n")


@contextmanager
def small_files(size):
    """A limit on a file's bytes, which stands for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    # Python would keep the bytecode of a module that is imported here, cut off, without a word.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def unwritable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder one that may not be written to, as far as `os.access` says."""
    access = os.access

    def without_it(path: Path, mode: int) -> bool:
        return access(path, mode) and not (mode & os.W_OK and folder in (path, *path.parents))

    monkeypatch.setattr(os, "access", without_it)
