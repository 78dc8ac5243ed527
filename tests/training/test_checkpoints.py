"""Checkpoints: exact, framework-neutral, and robust against what kills and disks leave behind."""

import dataclasses
import json
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_sde.errors import UserError
from score_sde.training import checkpoints
from score_sde.training.checkpoints import Checkpoints, listing, restore_ema
from score_sde.training.mesh import data_mesh
from score_sde.training.optimizers import optimizer
from score_sde.training.state import create
from tests.training.tiny_run import TinyRun


@pytest.fixture(scope="module")
def run():
    return TinyRun()


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """Checkpoints of the steps 1, 2 and 3 (of which two are kept), and the states 2 and 3."""
    directory = tmp_path_factory.mktemp("written")
    state, states, batches = run.state(), [], run.batches(0)
    with Checkpoints(directory) as checkpoints:
        for n in range(3):
            state, _ = run.step(state, next(batches), jax.random.key(0))
            checkpoints.save(state, n + 1)  # in the background, while the next step donates it
            states.append(jax.tree.map(np.array, state))
    return directory, states[1:]


@pytest.fixture
def directory(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "checkpoints")


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_states_return_bit_for_bit(run, written, directory):
    assert sorted(path.name for path in directory.iterdir()) == ["2", "3"]
    target = run.state()
    restored = Checkpoints(directory).restore(target)
    assert_same(restored, written[1][1])
    for leaf, like in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == like.sharding and leaf.committed == like.committed
    step, ema = restore_ema(directory, jax.eval_shape(lambda: target.ema))
    assert step == 3
    assert_same(ema, written[1][1].ema)


def test_a_run_is_read_beside_its_training(run, directory, monkeypatch):
    """Which saves two more, and so removes what was the newest, just when the reading begins."""
    state, read = run.state(), checkpoints._read

    def save_then_read(*arguments):
        monkeypatch.undo()
        with Checkpoints(directory) as training:
            for step in (4, 5):
                training.save(state, step)
        return read(*arguments)

    monkeypatch.setattr(checkpoints, "_read", save_then_read)
    _, ema = restore_ema(directory, jax.eval_shape(lambda: state.ema))
    assert_same(ema, state.ema)  # of the first state, which the earlier ones are not of


def test_which_checkpoints_stay(run, tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_every=2) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(run.state(), step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5"]


def test_one_step_of_several(run, written, directory):
    step, ema = restore_ema(directory, run.state().ema, step=2)
    assert step == 2
    assert_same(ema, written[1][0].ema)
    with pytest.raises(UserError, match=r"^step = 1: not in .*; allowed are 2, 3$"):
        restore_ema(directory, run.state().ema, step=1)
    shutil.rmtree(directory / "2" / "default")
    with pytest.raises(UserError, match=r"/2: cannot be read \(.*\); allowed are 3$"):
        restore_ema(directory, run.state().ema, step=2)  # and not another one
    empty(directory / "3")
    with pytest.raises(UserError, match=r"/2: cannot be read \(.*\); allowed are none, as the o"):
        restore_ema(directory, run.state().ema, step=2)


def test_the_listing_has_steps_dates_and_losses(directory):
    lines = ('{"step": 2, "loss": 0.25}', "{", '{"step": "3"}', '{"step": 4, "loss": 0.125}')
    (directory.parent / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    path = directory / "2" / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit_timestamp_nsecs": 10**18}))
    second, third = listing(directory.parent)
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(10**9))
    assert second.split() == ["2", *date.split(), "loss", "0.25"]
    assert third.split()[0] == "3" and third.endswith("loss 0.125")  # of the mean over 3 and 4


def test_weights_that_are_not_finite_are_refused(run, tmp_path):
    state = run.state()
    broken = dataclasses.replace(state, ema={**state.ema, "in": jnp.nan * state.ema["in"]})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(broken, 1)
    with pytest.raises(UserError, match="the averaged weights of step 0 are not finite"):
        restore_ema(tmp_path, state.ema)  # the state's own step


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_told_in_a_line(run, written, directory):
    """A limit on a file's size stands for it. The checkpoints that are whole stay."""
    limits, state = resource.getrlimit(resource.RLIMIT_FSIZE), run.state()
    said = r"cannot be written \(File too large\); .* from step 3"
    try:
        with pytest.raises(UserError, match=said) as error, Checkpoints(directory) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
            checkpoints.save(state, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert restore_ema(directory, state.ema)[0] == 3


def test_the_names_are_plain(directory):
    names = json.loads((directory / "3/default/_METADATA").read_text())["tree_metadata"]
    plain = {"/".join(key["key"] for key in leaf["key_metadata"]) for leaf in names.values()}
    assert {"step", "params/in", "ema/in", "opt_state/1/mu/in", "opt_state/1/count"} <= plain


def test_no_checkpoint(run, tmp_path):
    assert Checkpoints(tmp_path / "none").restore(run.state()) is None
    with pytest.raises(UserError, match="no checkpoint"):
        restore_ema(tmp_path / "none", run.state().ema)


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


def without_metadata(path):
    (path / "default/_METADATA").unlink()


def cut_short(path):
    largest = max(path.rglob("d/*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def half_a_manifest(path):
    manifest = path / "default/manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:40])


# Orbax leaves the reads that fail beside the first one to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [empty, without_metadata, half_a_manifest])
def test_a_broken_checkpoint_gives_way_to_the_one_before(damage, run, written, directory, caplog):
    damage(directory / "3")
    step, ema = restore_ema(directory, run.state().ema)
    assert step == 2
    assert_same(ema, written[1][0].ema)
    assert (directory / "3").exists()  # reading changes nothing
    with Checkpoints(directory) as checkpoints:
        restored = checkpoints.restore(run.state())
        assert_same(restored, written[1][0])
        assert "unreadable checkpoint" in caplog.text
        checkpoints.save(restored, 3)  # the run comes to step 3 again
    assert sorted(path.name for path in directory.iterdir()) == ["2", "3", "3.unreadable"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_array_file_cut_short(tmp_path, caplog):
    # Large arrays have files of their own, whose errors Orbax wraps in another class.
    adam = optimizer(optax.constant_schedule(1e-3))
    state = create({"w": jax.random.normal(jax.random.key(0), (400, 400))}, adam, data_mesh())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 1)
        checkpoints.save(state, 2)
    cut_short(tmp_path / "2")
    assert_same(Checkpoints(tmp_path).restore(state), state)
    assert "unreadable checkpoint" in caplog.text


def test_nothing_readable_is_told_in_a_line(run, directory):
    empty(directory / "2")
    empty(directory / "3")
    with pytest.raises(UserError, match=r"none of its checkpoints \(3, 2\) can be read") as error:
        Checkpoints(directory).restore(run.state())
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in directory.iterdir()) == ["2", "3"]


def test_an_unfinished_save_is_no_checkpoint(run, written, directory):
    (directory / "4.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(directory) as checkpoints:
        restored = checkpoints.restore(run.state())
        assert_same(restored, written[1][1])
        checkpoints.save(restored, 4)
    assert restore_ema(directory, run.state().ema)[0] == 3  # the state's own step
    assert sorted(path.name for path in directory.iterdir()) == ["3", "4"]


@pytest.mark.parametrize(
    "ema, told",
    [
        ({"in": (9, 8), "labels": (10, 8), "out": (8, 9)},
         r"ema/in is float32\[9, 16\] there, float32\[9, 8\] here; .*ema/out is"),
        ({"in": (9, 16), "labels": (10, 16)}, r"ema/out is float32\[16, 9\] there, absent here"),
        ({"in": (9, 16), "labels": (10, 16), "out": (16, 9), "more": (1,)},
         r"ema/more is absent there, float32\[1\] here"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_model(ema, told, directory):
    wanted = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in ema.items()}
    with pytest.raises(UserError, match=told) as error:
        restore_ema(directory, wanted)
    assert "\n" not in str(error.value)


def test_a_step_that_is_there_is_not_saved_again(run, directory):
    with Checkpoints(directory) as checkpoints:
        state = checkpoints.restore(run.state())
        with pytest.raises(RuntimeError, match="step 3 was not saved, the newest there is 3"):
            checkpoints.save(state, 3)
