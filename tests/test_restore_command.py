"""`--mode restore`: each task, its files, going on, and the mistakes."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import score_sde
from score_sde.data import load
from score_sde.errors import UserError
from score_sde.modes import given, restoring
from score_sde.schedules import Cosine
from tests.cases import thorough
from tests.commands import command, succeed

TINY_STRENGTH = "--config.restore.strength=0.001"
FAITHFUL = ("--config.sampling.method=pc", "--config.sampling.faithful")
NO_NOISE = ("--config.restore.method=mmps", "--config.restore.sigma_y=0")
BY_FLOW = ("--config.restore.method=replacement", "--config.sampling.method=ode")
TWISTED = ("--config.restore.method=twisted", "--config.restore.particles=4")
REPAINT = ("--config.restore.method=repaint", "--config.restore.resamplings=2")
FEW = ("--config.sampling.num_steps=2", "--config.restore.num_draws=2")


def restore(folder, inputs, *arguments):
    return succeed("--mode=restore", "--input", inputs, *FEW, *arguments, cwd=folder)


def test_a_folder_is_restored_and_gone_on_with(tiny_run, tmp_path, inputs):
    workdir = tiny_run("digits", tmp_path)
    (inputs / "._a.png").write_bytes(b"of macOS, hidden")
    told = restore(tmp_path, inputs, "--task=inpaint", "--degrade", "--mask=half")
    # A pass forth and one back, in two steps and for the last denoising.
    assert "2 images, 2 draws each, NFE 6" in told and "PSNR of the mean " in told
    with np.load(workdir / "restored.npz") as arrays:
        first = dict(arrays)
    assert first["images"].shape == (2, 2, 8, 8, 1) and first["images"].dtype == np.uint8
    assert not np.array_equal(first["images"][:, 0], first["images"][:, 1])
    summary = json.loads((workdir / "restored.json").read_text())
    assert summary["complete"] and summary["num_images"] == summary["num_draws"] == 2
    assert summary["method"] == "pigdm" and summary["restore.sigma_y"] == 0.05
    assert summary["sampling.seed"] == 0 and "restore.zeta" not in summary
    for name in ("nfe", "psnr", "coverage_50", "coverage_90"):
        assert summary[name] == pytest.approx(first[name].mean(), rel=1e-6)  # of float32
    assert 0 <= summary["coverage_50"] <= summary["coverage_90"] <= 1
    # The measurement, two draws, mean, deviation and truth; magnified 8 times, with lines.
    assert Image.open(workdir / "restored.png").size == (6 * 72 - 8, 2 * 72 - 8)
    assert len(list((workdir / "restored").rglob("*.png"))) == 4
    pixels = np.asarray(Image.open(workdir / "restored" / "b" / "000001.png"))
    np.testing.assert_array_equal(pixels, np.rint(first["images"][1, 1, ..., 0] * (255 / 16)))
    unread = ("--config.restore.zeta=2.0", "--config.restore.particles=8")  # by pigdm
    told = restore(tmp_path, inputs, "--task=inpaint", "--degrade", "--mask=half", *unread)
    assert "nothing to compute" in told and "config.restore.zeta" in told
    told = restore(tmp_path, inputs, "--task=outpaint", "--degrade")
    assert "of another" in told and (workdir / "restored.old.npz").exists()


def test_files_of_one_stem_have_their_own_draws_and_what_was_deleted_is_made_again(
    tiny_run, tmp_path, inputs, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))  # no shell replaces the mask's ~
    workdir = tiny_run("digits", tmp_path)
    (inputs / "b.png").unlink()
    image = Image.open(inputs / "a.png")
    for name in ("inputs/a.jpg", "mask.png"):
        image.save(tmp_path / name)
    typed = ("--task=inpaint", "--degrade", "--mask=~/mask.png")
    restore(tmp_path, inputs, *typed)
    files = [*(workdir / "restored").glob("*/*.png")]
    assert {path.parent.name for path in files} == {"a.jpg", "a.png"} and len(files) == 4
    files += [workdir / name for name in ("restored.png", "restored.json")]
    before = {path: path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    for name in ("a.jpg", "a.png"):
        (workdir / "restored" / name).rmdir()
    assert "nothing to compute" in restore(tmp_path, inputs, *typed)
    assert {path: path.read_bytes() for path in files} == before


# The other methods share pigdm's way.
@pytest.mark.parametrize(
    ("kind", "method"),
    [("digits", "pigdm"), *thorough(("digits", "replacement"), ("ve", "pigdm"))],
)
def test_the_measured_part_is_kept(tiny_run, tmp_path, inputs, kind, method):
    """By a mask from a picture, without noise, and with steps down to nearly none."""
    workdir = tiny_run(kind, tmp_path)
    known = np.zeros((8, 8), np.uint8)
    known[:, :4] = 255
    Image.fromarray(known).save(tmp_path / "mask.png")
    exact = ("--config.restore.sigma_y=0.0", f"--config.restore.method={method}")
    restore(tmp_path, inputs / "a.png", "--task=inpaint", "--mask=mask.png", *exact)
    with np.load(workdir / "restored.npz") as arrays:
        drawn = arrays["images"][0, ..., 0].astype(int)
    real = load("digits", "test", "").x[0, ..., 0].astype(int)
    error = np.abs(drawn - real[None])
    assert drawn.shape == (2, 8, 8)
    # After replacement the last denoising is that of the network, which is hardly trained.
    assert method == "replacement" or error[:, :, :4].mean() < error[:, :, 4:].mean()


@pytest.mark.parametrize("size", [(48, 32), (32, 32)])  # the middle of the first is the second
def test_a_mask_drawn_on_a_photo_is_resized_with_it(tmp_path, size):
    drawn = np.full((size[1], size[0]), 255, np.uint8)
    drawn[:, size[0] // 2 + 2 :] = 0  # half of a pixel of the model's is hidden, and counts as such
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    known = given._mask(str(tmp_path / "mask.png"), (8, 8, 1), "inpaint", {drawn.shape})
    expected = np.zeros((8, 8))
    expected[:, :4] = 1.0
    np.testing.assert_array_equal(known, expected)


@pytest.mark.thorough
@pytest.mark.parametrize(("own", "nfe"), [(REPAINT, 5), (TWISTED, 24)], ids=["repaint", "twisted"])
def test_a_method_is_chosen(tiny_run, tmp_path, inputs, own, nfe):
    tiny_run("digits", tmp_path)
    told = restore(tmp_path, inputs / "a.png", "--task=inpaint", *own)
    assert f"1 images, 2 draws each, NFE {nfe}" in told


@pytest.mark.thorough
def test_small_images_are_enlarged(tiny_run, tmp_path, inputs):
    workdir = tiny_run("digits", tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    Image.open(inputs / "a.png").resize((4, 4)).save(small / "a.png")
    told = restore(tmp_path, small, "--task=super_resolve")
    assert "1 images, 2 draws each" in told and "PSNR" not in told
    assert Image.open(workdir / "restored.png").size == (5 * 72 - 8, 64)


@pytest.mark.thorough
def test_blurred_images_are_restored(tiny_run, tmp_path, inputs):
    tiny_run("digits", tmp_path)
    restore(tmp_path, inputs, "--task=deblur", "--output=blurred")
    assert (tmp_path / "blurred" / "restored.png").exists()


def arrays_of(folder):
    with np.load(folder / "restored.npz") as arrays:
        return dict(arrays)


@pytest.mark.thorough
def test_draws_that_go_far_out_of_the_range_are_told(tiny_run, tmp_path, inputs):
    tiny_run("digits", tmp_path)
    hardly = ("--task=edit", "--config.restore.strength=0.002")
    # Two steps of a network that has learned nothing go far.
    alone = ("--task=inpaint", "--config.restore.num_draws=1")
    for arguments, count in ((("--task=inpaint",), 1), (alone, 1), (hardly, 0)):
        typed = ("--input", inputs, *FEW, *arguments)
        done = command("--mode=restore", *typed, cwd=tmp_path)
        assert done.returncode == 0
        assert done.stderr.count("pixels lie far out of the pixels' range") == count


@pytest.mark.thorough
def test_an_edit_of_hardly_any_strength_returns_the_input(tiny_run, tmp_path, inputs):
    """At t = 0.002 the noise has 0.016, and the one step's 0.011 on top: of 256 pixels the largest
    is off by 0.07, where a level is 0.125."""
    workdir = tiny_run("digits", tmp_path)
    real = load("digits", "test", "").x[:2].astype(int)
    told = restore(tmp_path, inputs, "--task=edit", "--config.restore.strength=0.002")
    assert "edit, strength 0.002, " in told and "2 images, 2 draws each, NFE 3" in told
    few = arrays_of(workdir)
    assert np.abs(few["images"].astype(int) - real[:, None]).max() <= 1
    told = restore(tmp_path, inputs, "--task=edit", "--config.restore.strength=1.0")
    assert "of another strength; it is now restored.old.npz, " in told
    drawn = arrays_of(workdir)["images"].astype(int)
    assert np.abs(drawn - real[:, None]).mean() > 2 and not np.array_equal(drawn[:, 0], drawn[:, 1])
    assert "nothing to compute" in restore(
        tmp_path, inputs, "--task=edit", "--config.restore.strength=1.0"
    )


@pytest.mark.thorough
def test_classes_change_by_the_flow_or_by_noise(tiny_run, tmp_path, inputs):
    """A draw for each class; to its own class an image comes back."""
    workdir = tiny_run("classes", tmp_path)
    real = load("digits", "test", "").x[:2].astype(int)
    loose = ("--config.sampling.rtol=1e-3", "--config.sampling.atol=1e-3")
    told = restore(
        tmp_path,
        *(inputs, "--task=relabel", "--config.restore.label=3", "--config.sampling.labels=3,5,8"),
        *loose,
    )
    assert "relabel, ProbabilityFlow(" in told and "2 images, 3 draws each, " in told
    drawn = arrays_of(workdir)["images"].astype(int)
    assert drawn.shape == (2, 3, 8, 8, 1)
    assert np.abs(drawn[:, 0] - real).max() <= 1  # tolerances of 1e-3, and the rounding
    assert not np.array_equal(drawn[:, 1], drawn[:, 0])
    unread = "config.restore.num_draws, config.sampling.num_steps"
    assert f"not read with these settings: {unread}\n" in told
    guided = ("--config.sampling.guidance=2.0", "--config.sampling.labels=5")
    told = restore(tmp_path, inputs, "--task=edit", *guided)
    assert "2 images, 2 draws each, NFE 6" in told and "not read" not in told
    done = command("--mode=restore", "--input", inputs, "--task=edit", guided[0], cwd=tmp_path)
    assert done.returncode == 2
    assert "config.sampling.labels = (): allowed are classes, which" in done.stderr


KILLED = """
import os, signal
from score_sde.cli import main
from score_sde.modes import results

saved = results.Table.save
def save(table):
    saved(table)
    os.kill(os.getpid(), signal.SIGKILL)

results.SAVE_EVERY, results.Table.save = -1.0, save  # as if each batch took a minute
main({arguments})
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "own",
    [("--config.sampling.batch_size=1",), TWISTED],
    ids=["", "twisted"],
)
def test_a_killed_restoration_goes_on(tiny_run, tmp_path, inputs, run_python, own):
    """The image that was saved is not made again, and the numbers are those of one that ran on."""
    workdir = tiny_run("digits", tmp_path)
    settings = ("--task=inpaint", "--degrade", *own)
    arguments = ["--mode=restore", f"--workdir={workdir}", f"--input={inputs}", *FEW, *settings]
    assert run_python(KILLED.format(arguments=arguments), check=False).returncode == -9
    with np.load(workdir / "restored.npz") as arrays:
        assert len(arrays["nfe"]) == 1 and not arrays["complete"]
    first = {path: path.stat().st_mtime_ns for path in (workdir / "restored").rglob("*.png")}
    assert len(first) == 2
    assert "1 items of these settings; going on" in restore(tmp_path, inputs, *settings)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    restore(tmp_path, inputs, *settings, "--output=whole")
    with (
        np.load(workdir / "restored.npz") as again,
        np.load(tmp_path / "whole" / "restored.npz") as once,
    ):
        for name in json.loads(str(once["rows"])):
            np.testing.assert_array_equal(again[name], once[name], err_msg=name)
    summaries = [folder / "restored.json" for folder in (workdir, tmp_path / "whole")]
    assert summaries[0].read_text() == summaries[1].read_text()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "own",
    [(), TWISTED, REPAINT],
    ids=["", "twisted", "repaint"],
)
def test_two_devices(tiny_run, tmp_path, inputs, run_python, own):
    """An image on each, or half of the particles; the numbers are those of one device."""
    workdir = tiny_run("digits", tmp_path)
    settings = ("--task=super_resolve", "--degrade", *FEW, *own)
    arguments = ["--mode=restore", f"--workdir={workdir}", f"--input={inputs}", *settings]
    wrong = [*arguments, *TWISTED, "--config.restore.particles=3"]
    code = f"from score_sde.cli import main\nmain({arguments})\nmain({wrong})"
    done = run_python(code, {"JAX_NUM_CPU_DEVICES": "2"})
    assert "devices: 2 x" in done.stdout
    said = "config.restore.particles = 3: allowed are multiples of the 2 devices"
    assert said in done.stderr
    restore(tmp_path, inputs, *settings, "--output=one")
    with (
        np.load(workdir / "restored.npz") as two,
        np.load(tmp_path / "one" / "restored.npz") as one,
    ):
        # Rounding differs with the batch's shape: at the edge of a pixel's bin.
        assert np.abs(two["images"].astype(int) - one["images"]).max() <= 1
        np.testing.assert_allclose(two["psnr"], one["psnr"], atol=1e-3)


def test_mistakes(tiny_run, tmp_path, inputs):
    tiny_run("digits", tmp_path)
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    Image.new("LA", (8, 8)).save(tmp_path / "erased.png")  # transparent
    for arguments, line in (
        (("--task=inpaint",), "error: --input: missing; --mode restore needs it"),
        (("--input", inputs), "error: --task: missing"),
        (("--input", inputs, "--task=denoise"), "error: --task = 'denoise': allowed are inpaint, "),
        (
            ("--input", inputs, "--task=colorize"),
            "error: --task = 'colorize': allowed are inpaint, ",
        ),
        (("--input", "wide.png", "--task=inpaint"), "8 x 9 pixels; allowed are 8 x 8, or --resize"),
        (("--input", inputs, "--task=inpaint", "--mask=wide.png"), "'wide.png': has 8 x 9 pixels"),
        (
            ("--input", inputs, "--task=inpaint", "--mask=wide.png", "--resize"),
            "error: --mask = 'wide.png': has 8 x 9 pixels; allowed are 8 x 8, or with --resize the "
            "size of the input, if all inputs have one",
        ),
        (
            ("--input", inputs, "--task=inpaint", "--mask=none.png"),
            "--mask = 'none.png': allowed are half",
        ),
        (
            ("--input", inputs, "--task=inpaint", "--mask=erased.png"),
            "error: --mask = 'erased.png': all pixels are white (transparent ones are); allowed",
        ),
        (
            ("--input", inputs, "--task=inpaint", *FAITHFUL, "--config.restore.method=replacement"),
            "config.restore.sigma_y = 0.05: allowed are 0 with config.sampling.faithful",
        ),
        (("--input", inputs, "--task=deblur", "--mask=half"), "goes with --task inpaint only"),
        (("--input", inputs, "--task=super_resolve", "--config.restore.factor=3"), "factor = 3"),
        (
            ("--input", inputs, "--task=super_resolve"),
            "a.png: has the size of the model's images; allowed are 4 x 4 pixels, or --degrade",
        ),
        (("--input", inputs, "--task=inpaint", *NO_NOISE), "positive numbers with mmps"),
        (
            ("--input", inputs, "--task=inpaint", *BY_FLOW),
            "config.restore.method = 'replacement': allowed are pigdm, mmps, dps, diffpir, ",
        ),
        (("--input", inputs, "--task=relabel"), "'relabel': allowed are inpaint, outpaint, "),
        (("--input", inputs, "--task=edit", "--degrade"), "--degrade: goes with --task inpaint, "),
        (("--input", inputs, "--task=edit", "--mask=half"), "goes with --task inpaint only"),
        (("--input", inputs, "--task=edit", TINY_STRENGTH), "config.restore.strength = 0.001: "),
        (("--input", inputs, "--task=edit", *FAITHFUL), "faithful = True: allowed are False with"),
    ):
        done = command("--mode=restore", *FEW, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert line in done.stderr.splitlines()[-1]
    assert not (tmp_path / "runs" / "vp_digits" / "restored.npz").exists()


def test_a_process_that_ends_in_noise_has_no_score_of_a_measurement(tiny_run, tmp_path):
    run = dataclasses.replace(score_sde.load(tiny_run("classes", tmp_path)), sde=Cosine())
    with pytest.raises(UserError, match=r"--task = 'inpaint': allowed are edit, relabel, as alpha"):
        restoring.check(run, "inpaint", "half", False)
    for task in ("edit", "relabel"):
        restoring.check(run, task, "", False)
