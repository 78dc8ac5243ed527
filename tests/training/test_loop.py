"""The loop: one trace, resumption bit for bit after kills and signals, what it writes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from score_sde.data.streamed import Raw, Stamp, Streamed
from score_sde.errors import UserError
from score_sde.training.checkpoints import restore_ema
from score_sde.training.feed import streaming
from tests.training.tiny_run import EXAMPLES, IMAGES, TinyRun

ROOT = Path(__file__).parents[2]


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run, workdir, sampled = TinyRun(), tmp_path_factory.mktemp("unbroken"), []
    state = run.train(workdir, [(5, lambda step, state: sampled.append(step))])
    return run, workdir, sampled, state


def test_what_a_run_leaves(unbroken):
    run, workdir, sampled, state = unbroken
    assert run.traces == 1
    assert int(state.step) == 12
    assert sampled == [5, 10, 12]
    assert [line["step"] for line in lines(workdir)] == [2, 4, 6, 8, 10, 12]
    for line in lines(workdir):
        scalars = {"step", "loss", "grad_norm", "learning_rate", "images_per_second"}
        assert set(line) == scalars
        assert all(np.isfinite(value) for value in line.values())
    step, ema = restore_ema(workdir / "checkpoints", state.ema)
    assert step == 12
    assert_same(ema, state.ema)
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = events.EventAccumulator(str(workdir / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == scalars - {"step"}
    assert [event.step for event in board.Scalars("loss")] == [2, 4, 6, 8, 10, 12]
    told = [line["loss"] for line in lines(workdir)]
    # TensorBoard keeps float32 of what JSON has as float64.
    np.testing.assert_allclose([e.value for e in board.Scalars("loss")], told, rtol=6e-8)


def test_a_run_in_parts_is_the_run(unbroken, tmp_path, capfd):
    run, workdir, _, whole = unbroken
    traces = run.traces
    interrupt_at, handler = 7, signal.getsignal(signal.SIGINT)

    def interrupt(step, state):
        if step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    # Stopped while the samples of step 7 are made, so it ends after step 8.
    state = run.train(tmp_path, [(1, interrupt)])
    assert int(state.step) == interrupt_at + 1
    assert "training stopped by SIGINT after step 8 of 12" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    # As after a kill: lines beyond the checkpoint, the last one cut short.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 1.0}\n{"step": 12, "lo')
    state = run.train(tmp_path)
    assert_same(state, whole)
    assert run.traces == traces  # fresh, restored and resumed states share one trace
    timeless = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines(place)]
        for place in (tmp_path, workdir)
    ]
    assert timeless[0] == timeless[1]
    # A run that is complete is only read.
    assert_same(run.train(tmp_path, [(1, interrupt)]), whole)


def start(workdir, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.tiny_run", str(workdir), *map(str, arguments)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def steps_on_disk(workdir):
    return [p for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]


def wait_for_checkpoint(workdir, process):
    deadline = time.monotonic() + 120
    while not steps_on_disk(workdir):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.thorough
def test_killed_runs_end_as_the_unbroken_one(tmp_path):
    num_steps = 200
    killed = start(tmp_path, num_steps)
    wait_for_checkpoint(tmp_path, killed)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    stopped = start(tmp_path, num_steps)
    newest = max(int(path.name) for path in steps_on_disk(tmp_path))
    while max(int(path.name) for path in steps_on_disk(tmp_path)) == newest:
        assert stopped.poll() is None, stopped.stderr.read()
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    told = stopped.communicate()[1]
    assert stopped.returncode == 0, told
    assert "training stopped by SIGTERM after step" in told
    run = TinyRun(num_steps)
    step, _ = restore_ema(tmp_path / "checkpoints", run.state().ema)
    assert f"after step {step} of {num_steps}" in told
    assert newest < step < num_steps
    resumed = run.train(tmp_path)
    assert_same(resumed, run.train(tmp_path / "unbroken", checkpoint_every=num_steps))
    assert run.traces == 1
    written = [line["step"] for line in lines(tmp_path)]
    assert written == sorted(set(written)) and written[-1] == num_steps


@pytest.mark.thorough
def test_a_killed_stream_ends_as_the_unbroken_run(tmp_path):
    """The workers of a killed training end, too."""
    killed = start(tmp_path, 40, 2)
    wait_for_checkpoint(tmp_path, killed)
    threads = Path(f"/proc/{killed.pid}/task").glob("*/children")
    workers = [each for started in threads for each in started.read_text().split()]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    run = TinyRun(40, workers=0)
    assert_same(run.train(tmp_path), TinyRun(40).train(tmp_path / "in memory"))
    assert len(workers) >= 2  # and one of multiprocessing itself
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{each}").exists() for each in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.thorough
def test_what_was_trained_before_a_batch_that_cannot_be_read_is_kept(tmp_path):
    images = tmp_path / "images"
    images.write_bytes(IMAGES.tobytes())
    reader = Raw(images, "images", Stamp.of(images.stat()), 0, IMAGES.shape[1:], IMAGES.dtype)
    x = Streamed(reader, np.arange(23), IMAGES.shape[1:], IMAGES.dtype)
    run = TinyRun()
    run.batches = streaming(
        {"x": x, "condition": EXAMPLES["condition"]},
        **{"batch_size": 8, "seed": 5, "mesh": run.mesh, "workers": 0},
    )

    def lose(step, state):
        if step == 3:
            images.rename(tmp_path / "elsewhere")

    broken = [(3, lose)]
    # Steps 4 and later: some batches have been read ahead.
    with pytest.raises(UserError, match=r"^images: cannot be read any more \(No such file"):
        run.train(tmp_path / "run", broken, num_steps=1000, checkpoint_every=1000)
    (kept,) = steps_on_disk(tmp_path / "run")
    assert int(kept.name) >= 3 and lines(tmp_path / "run")[-1]["step"] == int(kept.name)
    (tmp_path / "elsewhere").rename(images)
    state = run.train(tmp_path / "run", num_steps=40)
    assert_same(state, TinyRun().train(tmp_path / "in memory", num_steps=40))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    run = TinyRun(learning_rate=1e38)
    # The rate is 0 at the first update and 3e37 at the second: the third loss overflows.
    with pytest.raises(FloatingPointError, match=r"step 3 of 12 is not finite \(.*loss (inf|nan)"):
        run.train(tmp_path, checkpoint_every=1, log_every=10)
    assert restore_ema(tmp_path / "checkpoints", run.state().ema)[0] == 2
