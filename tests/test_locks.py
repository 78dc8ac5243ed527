"""One writer for each kind of results: alone, and by the commands that meet on a workdir."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from score_sde import UserError
from score_sde.locks import writing
from tests.commands import (
    DIGITS,
    FEW,
    KINDS,
    ROOT,
    begin,
    command,
    process,
    refused,
    succeed,
    unwritable,
)

ME = f"process {os.getpid()} on {socket.gethostname()} since 2"


def test_a_second_writer_is_refused_by_the_name_of_the_first(tmp_path):
    folder = tmp_path / "runs" / "new"
    with writing(folder, "samples"):
        before = (folder / "samples.lock").read_text()
        with pytest.raises(UserError, match=f"its samples are being written by {ME}"):
            writing(folder, "samples").__enter__()
        assert (folder / "samples.lock").read_text() == before
        with writing(folder, "likelihoods"):  # another kind
            pass
    assert not list(tmp_path.iterdir())
    with writing(tmp_path, "samples"):
        (tmp_path / "samples.npz").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]


def test_the_lock_dies_with_its_holder(run_python, tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from score_sde.locks import writing
with writing(Path({str(tmp_path)!r}), "samples"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(code, check=False).returncode == -9
    [left] = tmp_path.iterdir()
    assert ME not in left.read_text()
    with writing(tmp_path, "samples"):
        assert left.read_text().startswith(ME) and left.read_text().count("\n") == 1
    assert not left.exists()


def test_two_never_write_at_a_time(tmp_path):
    """Where each that ends removes the file, and the next makes it anew."""
    inside, met, held = [], [], []

    def one():
        while len(held) < 200:
            try:
                with writing(tmp_path, "samples"):
                    inside.append(0)
                    met.append(len(inside))
                    held.append(inside.pop())
            except UserError:
                continue

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(met) == {1}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys, number):
    def without(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    with writing(tmp_path, "samples"):
        pass
    said = f"note: {tmp_path}: this file system has no locks ({os.strerror(number)}); "
    assert capsys.readouterr().err.startswith(said) and not list(tmp_path.iterdir())


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "samples.lock").mkdir()
    with pytest.raises(UserError, match=r"samples\.lock: cannot be written \(Is a directory\)"):
        writing(tmp_path, "samples").__enter__()


# --- Commands -------------------------------------------------------------------------------------

FAST = ("--config.sampling.rtol=0.1", "--config.sampling.atol=0.1", "--config.sampling.solver=heun")
INTERPOLATE = (*FAST, "--config.sampling.num_pairs=1", "--config.sampling.num_between=1")
LIKELIHOOD = ("--config.likelihood.num_images=2", "--config.likelihood.rtol=0.1")
LIKELIHOOD = (*LIKELIHOOD, "--config.likelihood.atol=0.1")


@pytest.fixture(scope="module")
def workdir(tiny_run, tmp_path_factory):
    return tiny_run("digits", tmp_path_factory.mktemp("locks"))


@pytest.mark.parametrize(
    ("mode", "results", "folder"),
    [
        ("sample", "samples", "runs/vp_digits"),
        ("likelihood", "likelihoods", "runs/vp_digits"),
        ("interpolate", "interpolations", "runs/vp_digits"),
        ("restore", "restorations", "runs/vp_digits"),
        ("evaluate", "evaluations", "runs/vp_digits"),
        ("evaluate", "samples", "runs/vp_digits"),
        ("sample", "samples", "out"),
        ("likelihood", "likelihoods", "out"),
        ("interpolate", "interpolations", "out"),
        ("restore", "restorations", "out"),
        ("evaluate", "evaluations", "out"),
        ("export", "weights", "out"),
        ("convert", "checkpoints", "out"),
        ("train", "checkpoints", "runs/vp_digits"),
    ],
)
def test_a_command_is_refused_where_another_writes_the_same(workdir, mode, results, folder):
    cwd = workdir.parents[1]
    at = [] if folder != "out" else ["--output=out"]
    if mode == "train":
        at = [DIGITS, *KINDS["digits"]]
    elif mode == "export":
        at = ["--target=out"]
    elif mode == "restore":
        at += ["--input", ROOT / "main.py", "--task=inpaint"]
    elif mode == "convert":  # before it sees that this is no checkpoint
        at = ["--source", ROOT / "main.py", DIGITS, "--workdir=out"]
    with writing(cwd / folder, results):
        before = {path: path.is_file() and path.stat().st_mtime_ns for path in cwd.rglob("*")}
        done = command(f"--mode={mode}", *at, cwd=cwd)
        after = {path: path.is_file() and path.stat().st_mtime_ns for path in cwd.rglob("*")}
    assert after == before
    assert done.returncode == 2
    line = f"error: {folder}: its {results} are being written by {ME}"
    [said] = [each for each in done.stderr.splitlines() if not each.startswith("note: ")]
    assert said.startswith(line)


@pytest.fixture
def read_only(workdir, monkeypatch):
    unwritable(workdir, monkeypatch)


@pytest.mark.usefixtures("read_only")
def test_a_run_that_is_read_only_is_refused_in_one_line(workdir, tmp_path):
    line = f"error: --workdir = '{workdir}': {workdir} is not a directory one may write to"
    at = ("--workdir", workdir)
    for mode in ("sample", "likelihood", "interpolate"):
        said = refused(f"--mode={mode}", *at, cwd=tmp_path)
        assert said == f"{line}; --output FOLDER takes another"
    assert refused("--mode=train", *at, cwd=tmp_path) == line


@pytest.mark.thorough
@pytest.mark.usefixtures("read_only")
def test_results_are_written_beside_a_training_and_elsewhere(workdir, tmp_path):
    """Nothing is written into the run. It may be read-only."""
    at = ("--workdir", workdir)
    with writing(workdir, "checkpoints"):
        before = {path: path.stat().st_mtime_ns for path in (workdir, *workdir.rglob("*"))}
        for seed in (0, 1):
            seeded = (f"--output=out/{seed}", f"--config.sampling.seed={seed}")
            succeed("--mode=sample", *at, *FEW, *seeded, cwd=tmp_path)
        into = "--output=out/0"
        succeed("--mode=likelihood", *at, *LIKELIHOOD, into, cwd=tmp_path)
        succeed("--mode=interpolate", *at, *INTERPOLATE, into, cwd=tmp_path)
        succeed("--mode=export", *at, "--target=exported", cwd=tmp_path)
        after = {path: path.stat().st_mtime_ns for path in (workdir, *workdir.rglob("*"))}
    assert after == before
    made = {f"{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*") if path.is_file()}
    assert made == {
        *(f"out/{seed}/samples.{suffix}" for seed in (0, 1) for suffix in ("npz", "png")),
        *(f"out/0/likelihood.{suffix}" for suffix in ("npz", "json", "png")),
        *(f"out/0/interpolation.{suffix}" for suffix in ("npz", "png")),
        *(f"exported/{name}" for name in ("model.safetensors", "config.json")),
    }


def test_an_export_and_a_config_of_another_program_are_not_replaced(workdir, tmp_path):
    at = ("--workdir", workdir)
    succeed("--mode=export", *at, "--target=exported", cwd=tmp_path)
    begin = ("--mode=train", DIGITS, *KINDS["digits"])
    said = refused(*begin, "--workdir=exported", cwd=tmp_path)
    assert said.startswith("error: --workdir = 'exported': an export; ")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    said = refused(*begin, "--workdir=theirs", cwd=tmp_path)
    assert said.startswith("error: theirs/config.json: not a config written by a run")


@pytest.mark.slow
def test_a_second_training_is_refused_and_the_first_is_unharmed(tmp_path):
    train = ("--mode=train", DIGITS, *KINDS["digits"], "--config.training.num_steps=1000000")
    first = begin(*train, "--config.training.sample_every=0", cwd=tmp_path)
    checkpoints = tmp_path / "runs" / "vp_digits" / "checkpoints"
    while not any(path.name.isdecimal() for path in checkpoints.glob("*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    second = process(*train, cwd=tmp_path)
    line = f"error: runs/vp_digits: its checkpoints are being written by process {first.pid} on "
    assert second.returncode == 2 and second.stderr.count("\n") == 1, second.stderr
    assert second.stderr.startswith(line)
    sampled = process("--mode=sample", "--workdir=runs/vp_digits", *FEW, cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    first.terminate()
    _, said = first.communicate(timeout=60)
    assert first.returncode == 75 and "Traceback" not in said, said
    metrics = (checkpoints.parent / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in metrics]
    assert steps[:-1] == [*range(2, 2 * len(steps), 2)]
    assert any(path.name == f"{steps[-1]}" for path in checkpoints.iterdir())


@pytest.mark.slow
def test_two_processes_that_sample_at_a_time(tiny_run, tmp_path):
    """The second is refused by the name of the first, or goes elsewhere; both seeds are kept."""
    workdir = tiny_run("digits", tmp_path)
    many = ("--config.sampling.num_samples=1000000", "--config.sampling.batch_size=500")
    first = begin("--mode=sample", *many, "--config.sampling.seed=1", cwd=tmp_path)
    while not (workdir / "samples.lock").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    second = ("--mode=sample", *FEW, "--config.sampling.seed=2")
    try:
        done = process(*second, cwd=tmp_path)
        elsewhere = process(*second, "--output=out", cwd=tmp_path)
    finally:
        first.terminate()
    line = f"error: runs/vp_digits: its samples are being written by process {first.pid} on "
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(line), done.stderr
    assert elsewhere.returncode == 0, elsewhere.stderr
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130 and "Traceback" not in said, said
    with np.load(tmp_path / "out" / "samples.npz") as file:
        assert file["seed"] == 2
    if (workdir / "samples.npz").exists():  # it had drawn some by then
        with np.load(workdir / "samples.npz") as file:
            assert file["seed"] == 1


@pytest.mark.slow
def test_a_training_that_scores_and_an_evaluation_share_their_features(tiny_run, tmp_path):
    """Both make, or take, the classifier and the features of the reference."""
    workdir = tiny_run("digits", tmp_path)
    eval_ = {"features": "classifier", "num_reference": 30, "num_samples": 24}
    settings = [f"--config.eval.{name}={value}" for name, value in eval_.items()]
    settings += ["--config.eval.training_samples=24", "--config.sampling.num_steps=2"]
    scored = ("--config.training.evaluate_every=2", "--config.training.num_steps=8")
    both = [
        begin("--mode=train", DIGITS, *KINDS["digits"], *scored, *settings, cwd=tmp_path),
        begin("--mode=evaluate", *settings, cwd=tmp_path),
    ]
    said = [each.communicate(timeout=240)[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    best, found = (workdir / name for name in ("best.json", "evaluation.json"))
    assert json.loads(best.read_text())["weights"] == json.loads(found.read_text())["weights"]
    assert not [*workdir.rglob("*.partial")]


PROCESS = """
import sys
import jax
port, rank, *argv = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
from score_sde.cli import main
sys.exit(main(argv))
"""


@pytest.mark.slow
def test_of_two_processes_that_train_together_none_begins_alone(tmp_path):
    """Where the workdir is another's. Only one of them locks it."""
    train = ["--mode=train", DIGITS, *KINDS["digits"]]

    def together():
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        one = [sys.executable, "-c", PROCESS, str(port)]
        two = [
            subprocess.Popen(
                [*one, rank, *train],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": f"{ROOT}"},
                **pipes,
            )
            for rank in "01"
        ]
        said = [each.communicate(timeout=240)[1] for each in two]
        return [each.returncode for each in two], said

    with writing(tmp_path / "runs" / "vp_digits", "checkpoints"):
        status, said = together()
    assert status == [2, 2], said
    assert f"error: runs/vp_digits: its checkpoints are being written by {ME}" in said[0]
    assert "error: runs/vp_digits: the process that writes may not write there\n" in said[1]
    assert not any("Traceback" in each for each in said)
    status, said = together()
    assert status == [0, 0], said
