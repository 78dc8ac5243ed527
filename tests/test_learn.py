"""Training from Python: as by the command, in memory, on arrays of one's own, and interrupted."""

import json
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

import score_sde
from score_sde import UserError
from score_sde.config import changed
from score_sde.data import Arrays, digits
from score_sde.locks import writing
from tests.commands import DIGITS, TINY, command, succeed

SMALL = {
    "training.batch_size": 16,
    "training.num_steps": 4,
    "training.warmup_steps": 0,
    "training.ema_rate": 0.5,
    "training.log_every": 2,
    "training.checkpoint_every": 2,
    "training.sample_every": 0,
}
IMAGES = changed(
    score_sde.presets.load("vp_digits"),
    {
        "model.name": "tests.tiny:Tiny",
        "model.width": 8,
        "model.multipliers": (1,),
        "model.attention_resolutions": (8,),
        "model.num_blocks": 1,
        **SMALL,
    },
)
VECTORS = changed(
    score_sde.presets.load("vp_moons"), {"model.width": 16, "model.depth": 1, **SMALL}
)
DRAW = np.random.default_rng(0)
ROWS, GIVEN = DRAW.normal(3.0, 2.0, (40, 3)), DRAW.normal(-1.0, 5.0, (40, 1))


def assert_same(left, right):
    assert (left.step, left.info) == (right.step, right.info)
    jax.tree.map(np.testing.assert_array_equal, left.score, right.score)
    timeless = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in run.metrics]
        for run in (left, right)
    ]
    assert timeless[0] == timeless[1]


@pytest.fixture(scope="module")
def unbroken():
    return score_sde.train(IMAGES)


@pytest.mark.thorough
def test_in_memory_it_is_the_run_of_the_command(unbroken, tmp_path):
    succeed("--mode=train", DIGITS, *TINY, "--workdir", tmp_path, cwd=tmp_path)
    loaded = score_sde.load(tmp_path)
    assert_same(unbroken, loaded)
    assert [line["step"] for line in unbroken.metrics] == [2, 4]
    key = jax.random.key(0)
    np.testing.assert_array_equal(unbroken.sample(key, 2).x, loaded.sample(key, 2).x)


@pytest.mark.thorough
def test_a_resumed_run_is_the_unbroken_one(unbroken, tmp_path):
    half = {"training.num_steps": 2, "training.schedule_steps": 4}
    first = score_sde.train(changed(IMAGES, half), tmp_path)
    assert first.step == 2
    run = score_sde.train(changed(IMAGES, {"training.sample_every": 4}), tmp_path)
    assert_same(run, unbroken)
    assert_same(score_sde.load(tmp_path), unbroken)
    assert (tmp_path / "samples" / "step_000004.png").exists()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert lines == list(run.metrics)


@pytest.fixture
def interrupted():
    """Function that trains without end, and interrupts the loop as soon as it has begun."""

    def train(*arguments, **options):
        before = signal.getsignal(signal.SIGINT)

        def interrupt():
            while signal.getsignal(signal.SIGINT) is before:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        config = changed(IMAGES, {"training.num_steps": 10**9})
        run = score_sde.train(config, *arguments, **options)
        thread.join()
        assert signal.getsignal(signal.SIGINT) is before
        assert 0 < run.step < 10**9
        return run

    return train


def test_an_interruption_returns_the_run_so_far(interrupted, capfd):
    run = interrupted()
    said = capfd.readouterr().err.splitlines()[-1]
    stopped = f"training stopped by SIGINT after step {run.step} of 1000000000"
    assert said == f"{stopped}, the run so far is returned"
    assert run.metrics[-1]["step"] == run.step
    assert run.sample(jax.random.key(0), 2).x.shape == (2, 8, 8, 1)


def test_an_interruption_saves_and_the_next_call_goes_on(interrupted, tmp_path, capfd):
    run = interrupted(tmp_path)
    assert "saved; the same command goes on from there" in capfd.readouterr().err
    assert_same(score_sde.load(tmp_path), run)
    config = changed(IMAGES, {"training.num_steps": run.step + 1})
    assert score_sde.train(config, tmp_path).step == run.step + 1


def test_a_workdir_is_held_and_not_mixed_up(tmp_path):
    few = changed(IMAGES, {"training.num_steps": 1})
    with writing(tmp_path, "checkpoints"), pytest.raises(UserError, match="are being written by"):
        score_sde.train(few, tmp_path)
    score_sde.train(few, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for config, text in (
        (changed(few, {"model.dropout": 0.5}), "config.model.dropout = 0.5"),
        (changed(few, {"data.name": "fashion_mnist"}), "config.data"),
    ):
        with pytest.raises(UserError, match=text):
            score_sde.train(config, tmp_path)
    with pytest.raises(UserError, match="the data are not those"):
        score_sde.train(few, tmp_path, data=digits.load("train").x, levels=17)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "model.safetensors").touch()
    with pytest.raises(UserError, match="an export"):
        score_sde.train(few, tmp_path / "new")


@pytest.mark.thorough
def test_vectors_of_ones_own_with_a_condition():
    run = score_sde.train(VECTORS, data=ROWS, vector=GIVEN)
    info = run.info
    assert (info.shape, info.columns, info.condition) == ((3,), ("0", "1", "2"), ("condition 0",))
    np.testing.assert_allclose(info.mean, ROWS.mean(0), rtol=1e-6)  # of float32
    np.testing.assert_allclose(info.condition_std, GIVEN.std(0), rtol=1e-6)
    given = info.standardised(GIVEN[:3])
    drawn = run.sample(jax.random.key(0), 3, vector=given)
    assert drawn.x.shape == (3, 3) and drawn.x.dtype == np.float32
    found = run.log_likelihood(jax.random.key(1), ROWS[:3], vector=given)
    assert np.isfinite(found.log_weight).all() and found.bits_per_dim is None


@pytest.mark.thorough
def test_vectors_of_ones_own_in_a_workdir(tmp_path):
    run = score_sde.train(VECTORS, data=ROWS, vector=GIVEN)
    info, given = run.info, run.info.standardised(GIVEN[:3])
    found = run.log_likelihood(jax.random.key(1), ROWS[:3], vector=given)
    data = Arrays(ROWS, {"vector": GIVEN})
    config = changed(VECTORS, {"data.name": "digits"})  # which the network cannot be given
    assert_same(score_sde.train(config, tmp_path / "own", data=data), run)
    assert_same(score_sde.load(tmp_path / "own"), run)
    few = ("--config.sampling.num_samples=2", "--config.sampling.condition=(0.5,)")
    said = succeed("--mode=sample", "--workdir=own", *few, cwd=tmp_path)
    assert "picture: " in said
    done = command("--mode=likelihood", "--workdir=own", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "config.data.name = 'arrays'" in done.stderr and "data=" in done.stderr
    # The same columns in a file are scored by the constants that the network was trained with.
    columns = [*info.columns, *info.condition]
    rows = np.concatenate([ROWS, GIVEN], axis=1)
    np.savez(tmp_path / "file.npz", x=rows + 1.0, x_test=rows[:3], columns=columns)
    file = ("--config.data.name=npz", "--config.data.dir=file.npz")
    succeed("--mode=likelihood", "--workdir=own", *file, cwd=tmp_path)
    with np.load(tmp_path / "own" / "likelihood.npz") as saved:
        np.testing.assert_array_equal(saved["log_weight"], found.log_weight)
    with pytest.raises(UserError, match="the data are not those"):
        score_sde.train(VECTORS, tmp_path / "own", data=ROWS + 1.0, vector=GIVEN)


@pytest.mark.thorough
def test_images_of_ones_own_with_classes():
    known = digits.load("train")
    config = changed(IMAGES, {"model.class_conditional": True})
    x, labels = known.x[:40], known.condition["labels"][:40].astype(np.int64)
    run = score_sde.train(config, data=x, labels=labels, levels=17)
    assert (run.info.levels, run.info.num_classes) == (17, 10)
    assert run.sample(jax.random.key(0), 3).labels.tolist() == [0, 1, 2]
    assert run.space.check(x).shape == (40, 8, 8, 1)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"data": ROWS[:, 0]}, r"data is float64 \(40,\): allowed are numbers \(N, D\) and uint8"),
        ({"data": np.zeros((4, 8, 8, 1))}, r"data is float64 \(4, 8, 8, 1\)"),
        ({"data": np.zeros((4, 8, 6, 2), np.uint8)}, r"\(N, H, W, C\)"),
        ({"data": np.zeros((4, 8, 0, 1), np.uint8)}, r"\(N, H, W, C\)"),
        ({"data": np.array([["a", "b"]])}, "data is <U1"),
        ({"data": ROWS[:0]}, "at least one item"),
        ({"data": ROWS, "labels": np.zeros(3, int)}, r"labels are int64 \(3,\)"),
        ({"data": ROWS, "labels": np.full(40, 0.5)}, "labels are float64"),
        ({"data": ROWS, "vector": GIVEN[:3]}, r"vector is float64 \(3, 1\)"),
        ({"data": np.zeros((4, 8, 8, 1), np.uint8), "vector": GIVEN[:4]}, "beside data of vectors"),
        ({"data": np.zeros((4, 8, 8, 1), np.uint8), "levels": 1}, "levels = 1"),
        ({"labels": np.zeros(3, int)}, "`data`, which is missing"),
    ],
)
def test_other_arrays_are_refused(given, text):
    with pytest.raises(ValueError, match=text):
        score_sde.train(VECTORS, **given)


@pytest.mark.parametrize(
    ("config", "given", "text"),
    [
        (VECTORS, {"data": np.full((40, 3), np.nan)}, "nan in row 0, column 0"),
        (VECTORS, {"data": np.ones((40, 2))}, "column 0 of arrays is constant"),
        (VECTORS, {"data": ROWS[:5]}, r"batch_size = 16: allowed are 1 to 5"),
        (VECTORS, {"data": np.zeros((40, 8, 8, 1), np.uint8)}, r"config\.model\.name"),
        (changed(IMAGES, {"training.learning_rate": 1e38}), {}, "not finite.*smaller"),
        (changed(IMAGES, {"data.name": "arrays"}), {}, r"train\(config, data=\.\.\.\)"),
    ],
)
def test_settings_and_data_that_do_not_go_together_are_refused(config, given, text):
    with pytest.raises(UserError, match=text):
        score_sde.train(config, **given)


def test_a_run_takes_other_settings_of_sampling(unbroken, tmp_path):
    other = unbroken.changed({"sampling.method": "ddim", "sampling.num_steps": 2})
    assert unbroken.config.sampling.method != "ddim"  # which is as it was
    jax.tree.map(np.testing.assert_array_equal, other.score.params, unbroken.score.params)
    assert other.sample(jax.random.key(0), 3).nfe.tolist() == [3, 3, 3]  # and the denoising
    for values, text in (
        ({"sampling.steps": 3}, r"config\.sampling\.steps = 3: no such key; closest are"),
        ({"training.num_steps": 8}, "allowed are those of sampling and likelihood"),
        ({"sampling.num_steps": 0}, r"config\.sampling\.num_steps = 0: allowed are"),
    ):
        with pytest.raises(UserError, match=text):
            unbroken.changed(values)
