"""`--mode sample` interrupted, started again, changed and unable to write, as a user would."""

import os
import re
import signal

import numpy as np
import pytest
from PIL import Image

from score_sde.modes import results
from score_sde.modes.files import signals_wait
from score_sde.paths import whole
from tests.commands import DIGITS, KINDS, ROOT, begin, command, succeed

IMAGES = 40
SETTINGS = (
    f"--config.sampling.num_samples={IMAGES}",
    "--config.sampling.batch_size=4",
    "--config.sampling.method=pc",
    "--config.sampling.num_steps=2000",  # so that an interrupt comes before the end
)
SHORT = ("--config.sampling.num_steps=2", "--config.sampling.batch_size=4")


def values(workdir, name="samples.npz"):
    with np.load(workdir / name) as arrays:
        return dict(arrays)


def sample(workdir, *arguments):
    return succeed("--mode=sample", "--workdir", workdir, *arguments, cwd=ROOT)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


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
    assert "interrupted; what was done by then is kept" in more
    return told


def test_an_interrupted_command_goes_on(tiny_run, tmp_path, monkeypatch):
    """Interrupted after it saved its first batch, in this process: by a signal, below."""
    unbroken, workdir = (tiny_run("digits", tmp_path / name) for name in ("unbroken", "broken"))
    eight, save = (*SHORT, "--config.sampling.num_samples=8"), results.Table.save
    sample(unbroken, *eight)

    def save_and_stop(table):
        save(table)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "SAVE_EVERY", -1.0)  # always due
        patch.setattr(results.Table, "save", save_and_stop)
        done = command("--mode=sample", "--workdir", workdir, *eight, cwd=ROOT)
    assert done.returncode == 130 and "what was done by then is kept" in done.stderr
    assert len(values(workdir)["images"]) == 4 and not values(workdir)["complete"]
    assert "4 items of these settings; going on after them" in sample(workdir, *eight)
    assert_equal(values(unbroken), values(workdir))


@pytest.mark.thorough
def test_a_terminated_command_goes_on_and_ends_with_the_same_images(tiny_run, tmp_path):
    unbroken, workdir = (tiny_run("digits", tmp_path / name) for name in ("unbroken", "broken"))
    told = sample(unbroken, *SETTINGS)
    assert f"{IMAGES} images, NFE 2001, " in told and values(unbroken)["complete"]
    terminated(workdir, 8)
    left = values(workdir)
    drawn = len(left["images"])
    assert 8 <= drawn < IMAGES and not left["complete"]
    assert (workdir / "samples.png").exists()
    told = sample(workdir, *SETTINGS)
    assert f"{drawn} items of these settings; going on after them" in told
    assert_equal(values(unbroken), values(workdir))


def test_an_interrupt_that_compiled_code_makes_another_error_of(tmp_path):
    """While jit compares arguments it becomes a ValueError: 1 in 200 while samples are drawn."""
    network = "--config.model.name=tests.tiny:Interrupted"
    done = command("--mode=train", DIGITS, *KINDS["digits"], network, cwd=tmp_path)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "interrupted; what was done by then is kept"


def test_what_was_drawn_is_gone_on_with_or_kept(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    sample(workdir, *SHORT, "--config.sampling.num_samples=4")
    four = values(workdir)
    assert four["complete"] and len(four["images"]) == len(four["nfe"]) == 4

    # More of the same settings: those that are there, and the next.
    told = sample(workdir, *SHORT, "--config.sampling.num_samples=8")
    assert "4 items of these settings; going on after them" in told
    eight = values(workdir)
    np.testing.assert_array_equal(eight["images"][:4], four["images"])
    assert len(eight["images"]) == 8 and not np.array_equal(eight["images"][4:], four["images"])

    # Fewer: the file stays.
    before = (workdir / "samples.npz").read_bytes()
    told = sample(workdir, *SHORT, "--config.sampling.num_samples=2")
    assert "8 items of these settings; the first 2 of them follow" in told
    assert "2 images, NFE 3\n" in told and "images/s" not in told
    assert (workdir / "samples.npz").read_bytes() == before

    # Other settings: the finished ones are kept with their picture.
    picture = (workdir / "samples.png").read_bytes()
    four = (*SHORT, "--config.sampling.num_samples=4")
    told = sample(workdir, *four, "--config.sampling.seed=1")
    assert "of another seed; it is now samples.old.npz" in told
    assert_equal(values(workdir, "samples.old.npz"), eight)
    assert (workdir / "samples.old.png").read_bytes() == picture
    assert values(workdir)["seed"] == 1 and len(values(workdir)["images"]) == 4


def test_a_film_and_single_images_are_made_of_what_was_drawn(tiny_run, tmp_path):
    workdir, four = tiny_run("digits", tmp_path), (*SHORT, "--config.sampling.num_samples=4")
    sample(workdir, *four)
    one = values(workdir)

    # A film is of all its images, so they are drawn anew; they are the same.
    told = sample(workdir, *four, "--config.sampling.gif")
    assert "going on" not in told and f"film: {workdir / 'samples.gif'}" in told
    assert_equal(values(workdir), one)
    told = sample(workdir, *four)
    assert f"{workdir / 'samples.gif'}: the film of an earlier command" in told
    two = (*SHORT, "--config.sampling.num_samples=2")
    told = sample(workdir, *two, "--config.sampling.gif")  # which would be a shorter film
    assert "the first 2 of them follow" in told and "the one of 4 images that was there" in told

    # Single images for other tools, without drawing again; a picture that is missing is made.
    (workdir / "samples.png").unlink()
    told = sample(workdir, *four, "--config.sampling.png")
    assert "nothing to compute" in told and f"of 0 to 255: {workdir / 'samples_png'}\n" in told
    assert (workdir / "samples.png").exists()
    each = [Image.open(workdir / "samples_png" / f"{n:06d}.png") for n in range(4)]
    assert len(list((workdir / "samples_png").iterdir())) == 4 and each[0].mode == "L"
    stored = values(workdir)
    assert stored["arr_0_is"] == "images x 255/16, rounded"
    assert stored["levels"] == 17
    np.testing.assert_array_equal(each, np.rint(stored["images"][..., 0] * (255 / 16)))

    # What cannot be read is kept, too; its pictures and film go with it.
    (workdir / "samples.npz").write_bytes(b"of another program")
    told = sample(workdir, *four)
    assert "not as this version writes it" in told and "it is now samples.old.npz" in told
    assert (workdir / "samples.old.npz").read_bytes() == b"of another program"
    assert (workdir / "samples.old.gif").exists() and not (workdir / "samples.gif").exists()
    assert len(list((workdir / "samples_png.old").iterdir())) == 4
    assert not (workdir / "samples_png").exists()
    np.testing.assert_array_equal(values(workdir)["images"], one["images"])


def test_a_file_that_cannot_be_written_is_told_in_one_line(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    (workdir / "samples.npz").mkdir()
    few = (*SHORT, "--config.sampling.num_samples=4")
    done = command("--mode=sample", "--workdir", workdir, *few, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = f"error: {workdir / 'samples.npz'}: cannot be written (Is a directory)"
    assert done.stderr.splitlines()[-1] == line
    assert sorted(path.name for path in workdir.glob("samples.*")) == ["samples.npz"]


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
