"""`--mode interpolate`, and the same from Python."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import score_sde
from score_sde import workdirs
from score_sde.config import changed
from score_sde.data import load
from tests.commands import command, succeed

LOOSE = ("--config.sampling.rtol=0.1", "--config.sampling.atol=0.1")


@pytest.fixture(scope="module")
def workdir(tiny_run, tmp_path_factory) -> Path:
    """The default preset, trained for four steps in its default workdir."""
    return tiny_run("digits", tmp_path_factory.mktemp("cli"))


@pytest.fixture
def trained(workdir) -> Path:
    """The folder in which the default workdir is this one."""
    return workdir.parents[1]


def test_interpolation_between_held_out_images(workdir, trained):
    few = ("--config.sampling.num_pairs=2", "--config.sampling.num_between=2")
    tight = ("--config.sampling.rtol=1e-4", "--config.sampling.atol=1e-4")
    # batches of 4 have room for one pair's row
    arguments = (*few, *tight, "--config.sampling.batch_size=4")
    told = succeed("--mode=interpolate", "--workdir", workdir, *arguments, cwd=trained)
    assert "2 pairs, 2 between: NFE " in told and "there and back: root mean square " in told
    arrays = np.load(workdir / "interpolation.npz")
    images, condition = load("digits", "test")
    labels = condition["labels"]
    assert arrays["indices"].tolist() == [[0, 1], [2, 3]]
    np.testing.assert_array_equal(arrays["real"], images[arrays["indices"]])
    np.testing.assert_array_equal(arrays["labels"], labels[arrays["indices"]])
    assert arrays["images"].shape == (2, 4, 8, 8, 1) and arrays["images"].dtype == np.uint8
    assert arrays["latents"].shape == (2, 2, 8, 8, 1) and arrays["latents"].dtype == np.float32
    assert arrays["nfe"].shape == (2, 6) and arrays["rms"].shape == (2, 2)
    # The way there and back costs two solves' errors, some twenty steps of 1e-4 each; a pixel is
    # another integer where this crosses the edge of its bin, 2 / 17 wide.
    assert arrays["rms"].max() < 5e-3
    np.testing.assert_allclose(
        (arrays["images"][:, [0, -1]] == arrays["real"]).mean(axis=(2, 3, 4)), arrays["same"]
    )
    assert arrays["same"].mean() > 0.9
    # 2 rows of 4 images of 8 pixels, magnified 8 times, with lines of one pixel
    assert Image.open(workdir / "interpolation.png").size == (4 * 72 - 8, 2 * 72 - 8)

    # The same from Python.
    settings = {"sampling.rtol": 1e-4, "sampling.atol": 1e-4, "sampling.batch_size": 4}
    run = score_sde.load(workdir, changed(workdirs.load(workdir), settings))
    first, second = images[:4:2], images[1:4:2]
    again = run.interpolate(jax.random.key(0), first, second, 2)
    np.testing.assert_array_equal(again.images, arrays["images"])
    # In another batch: one solve for each image, equal to some ten times the tolerance.
    latents = run.encode(jax.random.key(0), images[:4])
    np.testing.assert_allclose(latents.reshape(2, 2, 8, 8, 1), arrays["latents"], atol=1e-2)
    back = run.decode(latents)
    assert back.dtype == np.uint8 and (back == images[:4]).mean() > 0.9
    for wrong, said in (
        (lambda: run.decode(latents[0]), r"latents are \(8, 8, 1\)"),
        (lambda: run.interpolate(jax.random.key(0), first, second[:1], 2), "2 and 1 items"),
        (lambda: run.interpolate(jax.random.key(0), first, second, 0), "num = 0"),
        (
            lambda: run.encode(jax.random.key(0), images[:4], labels=[0] * 4),
            "labels: allowed are none",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


@pytest.mark.thorough
def test_interpolations_are_gone_on_with_or_kept(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    settings = (*LOOSE, "--config.sampling.num_between=1", "--config.sampling.batch_size=3")

    def interpolate(number, *arguments):
        number = f"--config.sampling.num_pairs={number}"
        at = ("--mode=interpolate", "--workdir", workdir)
        told = succeed(*at, *settings, number, *arguments, cwd=tmp_path)
        with np.load(workdir / "interpolation.npz") as arrays:
            return told, dict(arrays)

    _, whole = interpolate(3)
    (workdir / "interpolation.npz").rename(tmp_path / "whole.npz")
    told, part = interpolate(2)  # the picture is of three pairs: it is kept
    assert "missing; what lay beside it is now interpolation.old.png" in told
    told, three = interpolate(3)
    assert "2 items of these settings; going on after them" in told
    assert three.keys() == whole.keys() == part.keys()
    for name, array in three.items():
        np.testing.assert_array_equal(array, whole[name], err_msg=name)
    before = (workdir / "interpolation.npz").read_bytes()
    told, _ = interpolate(1)
    assert "the first 1 of them follow" in told and "1 pairs, 1 between: NFE " in told
    assert (workdir / "interpolation.npz").read_bytes() == before
    told, other = interpolate(1, "--config.sampling.rtol=0.2")
    assert "of another flow; it is now interpolation.old2.npz, interpolation.old2.png" in told
    assert (workdir / "interpolation.old2.npz").read_bytes() == before
    assert len(other["images"]) == 1


def test_mistakes_of_an_interpolation_are_told_in_one_line(workdir, trained):
    for arguments, said in (
        (
            ["--config.sampling.num_pairs=149"],
            "error: config.sampling.num_pairs = 149: allowed are 1 to 148, the pairs of the test "
            "split of digits",
        ),
        (
            ["--config.sampling.num_between=1001"],
            "error: config.sampling.num_between = 1001: allowed are integers from 1 to 1000",
        ),
        (
            ["--config.sampling.rtol=1e-12"],
            "error: config.sampling.rtol = 1e-12: allowed are numbers from 1e-7 to below 1",
        ),
        (
            ["--config.sampling.method=pc"],
            "error: config.sampling.method = 'pc': allowed are ode with --mode interpolate",
        ),
    ):
        before = sorted(workdir.iterdir())
        done = command("--mode=interpolate", *arguments, cwd=trained)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.rstrip("\n").splitlines()[-1].startswith(said)
        assert "Traceback" not in done.stderr and sorted(workdir.iterdir()) == before
