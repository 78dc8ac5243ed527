"""Workdirs at gs://, results at gs:// and s3://: as in a folder of this machine.

Servers of both kinds run on this machine. Without the extra test-remote only what is said of the
missing packages is tested. With it:

    make test EXTRAS=test,lint,test-remote PYTEST_ARGS=tests/test_buckets.py
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

import score_sde
from score_sde import paths, workdirs
from tests.commands import DIGITS, FEW, KINDS, ROOT, command, refused, succeed

RUN = "gs://bucket/runs/digits"
LIKELIHOOD = (
    *("--config.likelihood.num_images=3", "--config.likelihood.num_probes=2"),
    *("--config.likelihood.rtol=1e-2", "--config.likelihood.atol=1e-2"),
)
INTERPOLATE = (
    *("--config.sampling.num_pairs=2", "--config.sampling.num_between=1"),
    *("--config.sampling.rtol=1e-2", "--config.sampling.atol=1e-2"),
)


@contextmanager
def serving(*arguments: str, port: int) -> Iterator[None]:
    """A server in a process of its own, which answers."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, **quiet) as server:
        try:
            for _ in range(600):
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, "the server has ended"
                time.sleep(0.1)
            yield
        finally:
            server.terminate()


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


def needs(*packages: str) -> None:
    for name in packages:
        pytest.importorskip(name, reason=f"no {name}: needs the extra test-remote")


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    """The bucket gs://bucket."""
    needs("gcsfs", "gcp_storage_emulator")
    port = free_port()
    with (
        serving("tests.gs_server", str(port), port=port),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, f"http://127.0.0.1:{port}")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "project")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # kinds that the server lacks
        yield "gs://bucket"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The bucket s3://bucket."""
    needs("s3fs", "moto.server")
    port = free_port()
    with (
        serving("moto.server", "--port", str(port), port=port),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "anything")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"


@pytest.fixture(scope="module")
def trained(gs, tmp_path_factory) -> str:
    """The URL of a run that was stopped, and went on."""
    cwd = tmp_path_factory.mktemp("nothing")
    at = ("--mode=train", "--workdir", RUN, *KINDS["digits"])
    stop = ("--config.training.num_steps=2", "--config.training.schedule_steps=4")
    done = command(*at, DIGITS, *stop, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert f"note: {RUN}: a bucket has no locks; let no other command write here" in done.stderr
    succeed(*at, DIGITS, cwd=cwd)
    assert not [*cwd.iterdir()]  # such as a folder "gs:"
    return RUN


def assert_same(theirs: Path, ours: Path) -> None:
    """Two files of results have the same arrays."""
    with theirs.open("rb") as left, ours.open("rb") as right:
        arrays = [dict(np.load(file)) for file in (left, right)]
    assert arrays[0].keys() == arrays[1].keys()
    for name in arrays[0]:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "where", "package"),
    [
        (["--mode=train", "--workdir=gs://bucket/run"], "--workdir", "gcsfs"),
        (["--mode=sample", "--workdir=gs://bucket/run"], "--workdir", "gcsfs"),
        (["--mode=sample", "--output=s3://bucket/out"], "--output", "s3fs"),
        (["--mode=export", "--target=s3://bucket/out"], "--target", "s3fs"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, arguments, where, package):
    monkeypatch.setitem(sys.modules, package, None)
    url = arguments[1].partition("=")[2]
    needed = f"{url[:5]} needs an extra, pip install 'score-sde[remote]'"
    assert refused(*arguments, cwd=tmp_path) == f"error: {where} = {url!r}: {needed}"


def test_a_url_is_never_a_path_of_this_machine():
    for named in (paths.local, paths.place):
        for url in ("ftp://host/run", Path("gs://bucket/run")):  # which has one slash
            with pytest.raises(score_sde.UserError, match="allowed are paths of this machine"):
                named(url, "--workdir")
    with pytest.raises(score_sde.UserError, match="Orbax keeps no checkpoints elsewhere"):
        score_sde.load("s3://bucket/run")


def test_a_bucket_that_is_not_there_is_not_made(gs, s3, tmp_path):
    for url in ("gs://other/out", "s3://other/out", "gs://", "s3://"):
        said = refused("--mode=sample", f"--output={url}", cwd=tmp_path)
        assert said == f"error: --output = {url!r}: no such bucket, or none that can be read"


def test_a_run_in_a_bucket_is_the_one_in_a_folder(trained, tiny_run, tmp_path):
    from etils import epath

    there, here = epath.Path(trained), tiny_run("digits", tmp_path)
    theirs, ours = map(score_sde.load, (trained, here))
    assert (theirs.step, theirs.config) == (ours.step, ours.config)
    for left, right in zip(*map(jax.tree.leaves, (theirs.score, ours.score)), strict=True):
        np.testing.assert_array_equal(left, right)
    steps = [json.loads(line)["step"] for line in (there / "metrics.jsonl").open()]
    assert steps == [2, 4]
    picture = "samples/step_000004.png"
    assert (there / picture).read_bytes() == (here / picture).read_bytes()
    assert [*(there / "tensorboard").iterdir()]
    assert "Drawn during training, after 4 steps" in (there / "report.html").read_text()
    lists = succeed("--mode=config", f"--workdir={there}", cwd=tmp_path).splitlines()
    assert [line.split()[0] for line in lists[-2:]] == ["2", "4"]


def test_results_in_a_bucket_are_those_in_a_folder(trained, tiny_run, tmp_path):
    from etils import epath

    there, here = epath.Path(trained), tiny_run("digits", tmp_path)
    for mode, few, name in (
        ("sample", FEW, "samples.npz"),
        ("likelihood", LIKELIHOOD, "likelihood.npz"),
        ("interpolate", INTERPOLATE, "interpolation.npz"),
    ):
        at = (f"--mode={mode}", f"--workdir={trained}", *few)
        succeed(f"--mode={mode}", *few, cwd=tmp_path)
        succeed(*at, cwd=tmp_path)
        assert_same(there / name, here / name)
        assert "; nothing to compute" in succeed(*at, cwd=tmp_path)
    succeed("--mode=sample", f"--workdir={trained}", *FEW, "--config.sampling.seed=1", cwd=tmp_path)
    assert_same(there / "samples.old.npz", here / "samples.npz")


def test_an_evaluation_in_a_bucket_is_the_one_in_a_folder(trained, tiny_run, tmp_path):
    from etils import epath

    there, here = epath.Path(trained) / "out", tiny_run("digits", tmp_path) / "out"
    settings = (
        *("--config.eval.features=classifier", "--config.eval.num_reference=30"),
        *("--config.eval.num_samples=24", *FEW),
    )
    sweep = "--config.eval.sweep=sampling.num_steps=2,3"
    for out, workdir in ((there, trained), (here, here.parent)):
        at = ("--mode=evaluate", f"--workdir={workdir}", f"--output={out}", *settings)
        for _ in range(2):
            told = succeed(*at, cwd=tmp_path)
        assert "; nothing to compute" in told and "classifier:" not in told
        succeed(*at, sweep, cwd=tmp_path)
    for name in ("evaluation.json", "sweep.json"):
        theirs, ours = (json.loads((out / name).read_bytes()) for out in (there, here))
        if name == "evaluation.json":
            theirs, ours = theirs["figures"], ours["figures"]
        assert theirs == ours
    names = [path.relative_to(here) for path in here.rglob("*.*") if path.is_file()]
    assert len(names) > 15 and all((there / name).exists() for name in names)


def test_the_best_checkpoint_is_kept_in_a_bucket(trained, tmp_path):
    scored = (
        *("--config.training.evaluate_every=3", "--config.training.num_steps=6"),
        *("--config.eval.features=classifier", "--config.eval.num_reference=30"),
        *("--config.eval.training_samples=24", "--config.sampling.num_steps=2"),
    )
    kind = [each for each in KINDS["digits"] if "num_steps" not in each]
    at = ("--workdir=gs://bucket/runs/scored", *kind, *scored)
    succeed("--mode=train", DIGITS, *at, cwd=tmp_path)
    best = ("--workdir=gs://bucket/runs/scored", "--step=best", "--output=out", *FEW)
    assert "averaged weights after" in succeed("--mode=sample", *best, cwd=tmp_path)


def test_results_of_a_run_here_go_into_a_bucket(s3, tiny_run, tmp_path):
    from etils import epath

    tiny_run("digits", tmp_path)
    here, there = tmp_path / "out", epath.Path("s3://bucket/out")
    for out in (here, there):
        succeed("--mode=export", f"--target={out}/weights", cwd=tmp_path)
        for seed in (0, 1):
            seeded = ("--config.sampling.png", f"--config.sampling.seed={seed}")
            succeed("--mode=sample", f"--output={out}", *FEW, *seeded, cwd=tmp_path)
    for name in ("samples.npz", "samples.old.npz"):
        assert_same(there / name, here / name)
    files = [path.relative_to(here) for path in here.rglob("*") if path.is_file()]
    others = [path for path in files if path.suffix != ".npz"]
    assert len(others) == 2 + 2 * (1 + 3)  # an export; twice a picture and three images
    for name in others:
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    assert not (there / "samples_png.old2").exists()
    assert "not empty" in refused("--mode=export", "--target=s3://bucket/out", cwd=tmp_path)


def test_a_kill_and_damage_in_a_bucket_cost_a_checkpoint_each(trained, tmp_path):
    from etils import epath

    resume = ("--mode=train", "--workdir", trained, *KINDS["digits"])
    newest = epath.Path(trained) / "checkpoints" / "4"
    (newest / "commit_success.txt").unlink()  # what Orbax writes when all else is there
    assert score_sde.load(trained).step == 2
    succeed(*resume, cwd=tmp_path)
    assert score_sde.load(trained).step == 4
    (newest / "default" / "manifest.ocdbt").unlink()
    assert score_sde.load(trained).step == 2
    succeed(*resume, cwd=tmp_path)
    assert score_sde.load(trained).step == 4
    assert sorted(path.name for path in newest.parent.iterdir()) == ["2", "4", "4.unreadable"]


def test_a_conversion_may_go_into_a_bucket(gs, tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    succeed("--mode=export", "--target=out", cwd=tmp_path)
    at = ("--mode=convert", "--source=out", "--workdir=gs://bucket/converted")
    succeed(*at, cwd=tmp_path)
    theirs, ours = map(score_sde.load, ("gs://bucket/converted", workdir))
    for left, right in zip(*map(jax.tree.leaves, (theirs.score, ours.score)), strict=True):
        np.testing.assert_array_equal(left, right)
    assert "not empty" in refused(*at, cwd=tmp_path)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_folder_moves_aside(scheme, request):
    """Such as `best`, a checkpoint of folders in folders, and the images of another sampling."""
    folder = paths.place(f"{request.getfixturevalue(scheme)}/moves", "--output")
    for number in "12":
        (folder / "best" / number / "default" / "d").write_text(number)
        (folder / "best" / number / "done").write_text(number)
        (folder / "best.json").write_text(number)
        paths.move_aside([folder / "best", folder / "best.json"])
    assert names(folder) == ["best.old", "best.old.json", "best.old2", "best.old2.json"]
    for number, old in ("1", folder / "best.old"), ("2", folder / "best.old2"):
        assert names(old) == [number] and names(old / number) == ["default", "done"]
        assert (old / number / "default" / "d").read_text() == number


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_an_export_that_was_ended_begins_again(scheme, request, tiny_run, tmp_path):
    """The mark stays until all is there, and the same command then takes the place."""
    target = paths.place(f"{request.getfixturevalue(scheme)}/begun", "--target")
    with pytest.raises(ZeroDivisionError), workdirs.filled("target", target):
        (target / "config.json").write_text("a part")
        raise ZeroDivisionError
    assert names(target) == ["config.json", "unfinished"]
    tiny_run("digits", tmp_path)
    succeed("--mode=export", f"--target={target}", cwd=tmp_path)
    assert names(target) == ["config.json", "model.safetensors"]
    (target / "unfinished").write_text("")  # a kill between the last file and the mark's removal
    assert "not empty" in refused("--mode=export", f"--target={target}", cwd=tmp_path)


def test_a_conversion_that_was_ended_begins_again(gs, tiny_run, tmp_path):
    tiny_run("digits", tmp_path)
    succeed("--mode=export", "--target=out", cwd=tmp_path)
    workdir = paths.place(f"{gs}/begun_run", "--workdir")
    at = ("--mode=convert", "--source=out", f"--workdir={workdir}")
    with pytest.raises(ZeroDivisionError), workdirs.filled("workdir", workdir):
        left = workdir / "checkpoints" / "9"  # a step that the conversion does not write
        (left / "default" / "manifest.ocdbt").write_text("a part")
        (left / "commit_success.txt").write_text("")
        raise ZeroDivisionError
    succeed(*at, cwd=tmp_path)
    assert names(workdir) == ["checkpoints", "config.json"]
    assert names(workdir / "checkpoints") == ["4"] and score_sde.load(workdir).step == 4


def test_an_error_leaves_the_object_that_was_there(s3):
    path = paths.place("s3://bucket/whole", "--output")
    path.write_text("whole")
    with pytest.raises(ZeroDivisionError), paths.whole(path) as file:
        file.write(b"a part")
        raise ZeroDivisionError
    assert path.read_text() == "whole"
