"""Training from a stream by the command line: the model of memory, and files that are gone."""

import re
import time

import jax
import numpy as np
import pytest
from PIL import Image

import score_sde
from tests.commands import DIGITS, TINY, begin, process, succeed

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
        *("--config.model.class_conditional=True", *more),
    )


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
