"""Training from a stream by the command line: the model of memory, and files that are gone."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import score_sde
from score_sde.config import changed
from score_sde.data import Streamed, load
from score_sde.modes.files import digest
from tests.commands import DIGITS, ROOT, TINY, begin, process, succeed

NUMBER = 400


@pytest.fixture
def photos(tmp_path):
    """Small images of two classes."""
    draw = np.random.default_rng(0)
    for index in range(NUMBER):
        path = tmp_path / "photos" / ("cat" if index % 3 else "ant") / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def train(workdir, photos, *more):
    return (
        *("--mode=train", DIGITS, f"--workdir={workdir}", *TINY),
        *("--config.data.name=folder", f"--config.data.dir={photos}", "--config.data.flip=True"),
        # What is random in a step follows from the seed and the step's number: also this.
        *("--config.data.augment=0.5", "--config.model.class_conditional=True", *more),
    )


@pytest.mark.thorough
def test_a_stream_trains_the_model_of_memory(photos, tmp_path):
    """Bit by bit, also where a part was trained from a stream and a part from memory."""
    told = succeed(*train("memory", photos), cwd=tmp_path)
    assert "data: 360 images of folder in memory, 0 MiB" in told
    few = ("--config.training.num_steps=3", "--config.training.schedule_steps=4")
    stream = ("--config.data.stream=True", "--config.data.workers=0")
    told = succeed(*train("parts", photos, *few, *stream), cwd=tmp_path)
    assert "data: 360 images of folder streamed by threads, 0 MiB" in told
    succeed(*train("parts", photos, "--config.data.stream=False"), cwd=tmp_path)
    first, second = (score_sde.load(tmp_path / name) for name in ("memory", "parts"))
    assert first.step == second.step == 4
    jax.tree.map(np.testing.assert_array_equal, first.score.params, second.score.params)
    looked = succeed("--mode=data", "--workdir=parts", *stream, cwd=tmp_path)
    assert "data: images 8 x 8 x 3 of folder: 360 train, 40 test" in looked

    # What is computed of a stream is that of memory, and is not computed again.
    solve = [f"--config.{name}={value}" for name, value in COARSE.items()]
    for mode in ("likelihood", "interpolate"):
        for stream in ("True", "False"):
            here = (f"--mode={mode}", "--workdir=memory", f"--config.data.stream={stream}")
            succeed(*here, *solve, cwd=tmp_path)
    assert not list((tmp_path / "memory").glob("*.old.npz"))
    read_as_they_are_needed(tmp_path / "memory", str(photos))


COARSE = {
    **{"likelihood.num_images": 3, "likelihood.divergence": "rademacher"},
    **{"sampling.num_pairs": 1, "sampling.num_between": 1},
    **{
        f"{section}.{tol}": 0.1
        for section in ("likelihood", "sampling")
        for tol in ("rtol", "atol")
    },
}


def read_as_they_are_needed(workdir, photos):
    """The likelihood of a stream reads a batch at a time."""
    x, asked = load("folder", "test", photos, score_sde.load(workdir).info, stream=True), []

    def read(rows):
        asked.append(len(rows))
        return x.x.read(rows)

    config = changed(score_sde.load(workdir).config, {**COARSE, "likelihood.batch_size": 3})
    run = score_sde.load(workdir, config)
    items = dataclasses.replace(x.x, read=read)
    next(run.likelihood_batches(jax.random.key(0), items, x.condition))
    assert asked == [3]


def test_a_digest_of_a_stream_is_that_of_its_array_in_parts():
    x, asked = np.random.default_rng(0).integers(0, 256, (25, 1024, 1024, 1), np.uint8), []

    def read(rows):
        asked.append(len(rows))
        return x[rows]

    stream = Streamed(read, np.arange(25), x.shape[1:], x.dtype)
    assert digest((stream, np.ones(3))) == digest((x, np.ones(3)))
    assert asked == [16, 9]


def group_of(pid):
    """The processes of a group that have not ended, and what they run."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (place / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(group) == pid and state != "Z":
                found[int(place.name)] = (place / "cmdline").read_text()
        except OSError:
            continue  # it has just ended
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("moment", "sent"),
    [
        ("workers begin", signal.SIGINT),
        ("training", signal.SIGINT),
        ("training", signal.SIGTERM),
    ],
)
def test_a_signal_ends_training_and_workers(moment, sent, photos, tmp_path):
    """A terminal sends Ctrl-C to all of them at once, also while the workers still import, and
    `timeout` its own."""
    many = ("--config.training.num_steps=100000", "--config.training.checkpoint_every=100000")
    stream = ("--config.data.stream=True", "--config.data.workers=2")
    running = subprocess.Popen(
        [sys.executable, ROOT / "main.py", *train("run", photos, *stream, *many)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (
        lines.exists() and lines.read_text()
        if moment == "training"
        else any("spawn_main" in command for command in group_of(running.pid).values())
    ):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(running.pid, sent)
    told = running.communicate(timeout=120)[1]
    # 75: the loop had taken over, and has saved what it had done.
    allowed = (75, 130) if moment == "workers begin" else (75,)
    assert running.returncode in allowed and "Traceback" not in told, told
    assert "KeyboardInterrupt" not in told and "leaked" not in told, told
    while group_of(running.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_files_that_are_gone_end_the_training_and_lose_nothing(photos, tmp_path):
    stream = ("--config.data.stream=True", "--config.data.workers=2")
    many = ("--config.training.num_steps=100000", "--config.training.checkpoint_every=100000")
    running = begin(*train("run", photos, *stream, *many), cwd=tmp_path)
    lines = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not lines.exists() or not lines.read_text():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    kept = (photos / "cat").rename(tmp_path / "elsewhere")
    told = running.communicate(timeout=120)[1].splitlines()
    assert running.returncode == 2, told
    line = rf"error: config\.data\.dir: {photos}: cat/\d+\.png: cannot be read any more \(No such "
    assert re.match(line, told[-1]), told
    assert not any("Traceback" in line for line in told)
    reached = score_sde.load(tmp_path / "run").step
    assert reached > 0
    kept.rename(photos / "cat")
    one_more = f"--config.training.num_steps={reached + 1}"
    done = process(*train("run", photos, *stream, one_more), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert score_sde.load(tmp_path / "run").step == reached + 1
