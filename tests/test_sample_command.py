"""`--mode sample` interrupted, started again and unable to write, as a user would."""

import os
import re
import shutil
import signal

import numpy as np
import pytest

from score_sde.modes.files import signals_wait, whole
from tests.commands import DIGITS, ROOT, SMALL, begin, command, succeed

IMAGES = 120
SETTINGS = (
    f"--config.sampling.num_samples={IMAGES}",
    "--config.sampling.batch_size=4",
    "--config.sampling.method=pc",
    "--config.sampling.num_steps=200",
)


def values(workdir):
    with np.load(workdir / "samples.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The workdir of a tiny run with its images, drawn in one go."""
    workdir = tmp_path_factory.mktemp("sample") / "run"
    few = ("--config.training.num_steps=1", "--config.training.sample_every=0")
    succeed("--mode=train", DIGITS, "--workdir", workdir, *SMALL, *few, cwd=ROOT)
    told = succeed("--mode=sample", "--workdir", workdir, *SETTINGS, cwd=ROOT)
    assert f"{IMAGES} images, NFE 201, " in told and values(workdir)["complete"]
    return workdir


def terminated(workdir, number):
    """Send a running command SIGTERM as soon as it says that it has drawn so many images."""
    process = begin("--mode=sample", "--workdir", workdir, *SETTINGS, cwd=ROOT)
    said = b""
    while not any(int(n) >= number for n in re.findall(rb"(\d+)/%d" % IMAGES, said)):
        more = os.read(process.stderr.fileno(), 4096)
        assert more, said
        said += more
    process.terminate()
    told, more = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said.decode() + more
    return told


def test_an_interrupted_command_goes_on_and_ends_with_the_same_images(unbroken, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir, ignore=shutil.ignore_patterns("samples.*"))
    told = terminated(workdir, 8)
    left = values(workdir)
    drawn = len(left["images"])
    assert 8 <= drawn < IMAGES and not left["complete"]
    assert f"samples.npz: {drawn} of {IMAGES} images; the same command goes on" in told
    told = succeed("--mode=sample", "--workdir", workdir, *SETTINGS, cwd=ROOT)
    assert f"{drawn} images of these settings; going on after them" in told
    once, again = values(unbroken), values(workdir)
    assert once.keys() == again.keys()
    for name in once:
        np.testing.assert_array_equal(once[name], again[name], err_msg=name)
    # Those of other settings are drawn anew, and so is what cannot be read.
    np.savez(workdir / "samples.npz", **left)
    few = ("--config.sampling.num_steps=2", "--config.sampling.num_samples=4")
    told = succeed("--mode=sample", "--workdir", workdir, *few, cwd=ROOT)
    assert f"{drawn} unfinished images of other settings, replaced" in told
    assert len(values(workdir)["images"]) == 4
    np.save(workdir / "samples.npz", left["images"])
    (workdir / "samples.npz.npy").replace(workdir / "samples.npz")
    succeed("--mode=sample", "--workdir", workdir, *few, cwd=ROOT)
    assert len(values(workdir)["images"]) == 4


def test_a_file_that_cannot_be_written_is_told_in_one_line(unbroken, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir, ignore=shutil.ignore_patterns("samples.*"))
    (workdir / "samples.npz").mkdir()
    few = ("--config.sampling.num_samples=1", "--config.sampling.num_steps=2")
    done = command("--mode=sample", "--workdir", workdir, *few, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = f"error: {workdir / 'samples.npz'}: cannot be written (Is a directory)"
    assert done.stderr.splitlines()[-1] == line
    assert sorted(path.name for path in workdir.glob("samples*")) == ["samples.npz"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_files_that_belong_together(tmp_path, number):
    before = signal.signal(number, signal.default_int_handler)
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            signals_wait(),
            whole(tmp_path / "a") as file,
        ):
            signal.raise_signal(number)
            signal.raise_signal(number)
            file.write(b"all of it")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"all of it"
