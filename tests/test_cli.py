"""The command line as a user types it: modes on tiny runs, and the line that each mistake gives."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import main
import score_sde
from configs import ve_celeba, vp_digits
from score_sde import build, workdirs
from score_sde.config import changed
from score_sde.data import load
from tests.commands import CONFIGS, DIGITS, FEW, ROOT, SMALL, command, refused, succeed

# --- Help, and mistakes that are told before JAX is imported --------------------------------------


def test_help_lists_the_modes(tmp_path):
    told = succeed("--help", cwd=tmp_path)
    for mode in ("train", "sample", "likelihood", "interpolate", "convert", "export"):
        assert f"\n  {mode} " in told
    assert succeed("-h", cwd=tmp_path) == told


MISTAKES = {
    "no mode": (
        [],
        "error: --mode: missing; allowed are train, sample, likelihood, interpolate, convert, "
        "export",
    ),
    "unknown mode": (
        ["--mode=trian"],
        "error: --mode = 'trian': allowed are train, sample, likelihood, interpolate, convert, "
        "export",
    ),
    "mode without value": (
        ["--mode"],
        "error: --mode: a value is missing",
    ),
    "unknown flag": (
        ["--mode=train", "--work_dir=x"],
        "error: --work_dir: no such flag; closest is --workdir (and --config.section.key=value)",
    ),
    "positional argument": (
        ["--mode=train", "vp_digits"],
        "error: 'vp_digits': not a flag; values follow their key as --config.section.key=value",
    ),
    "config file missing": (
        ["--mode=train", "--config=configs/vp_digit.py"],
        "error: --config configs/vp_digit.py: no such file; presets are in configs/",
    ),
    "unknown variant": (
        ["--mode=train", DIGITS + ":deep"],
        f"error: {DIGITS.replace('=', ' ')}:deep: variant 'deep': allowed are none",
    ),
    "unknown variant of many": (
        ["--mode=train", f"--config={CONFIGS / 've_cifar10.py'}:ddpmpp"],
        f"error: --config {CONFIGS / 've_cifar10.py'}:ddpmpp: variant 'ddpmpp': allowed are "
        "ncsnpp, ncsnpp_deep, ncsnpp_discrete, ddpm_discrete, ncsn, ncsnv2",
    ),
    "variant missing": (
        ["--mode=train", f"--config={CONFIGS / 've_256.py'}"],
        f"error: --config {CONFIGS / 've_256.py'}: a variant is missing (FILE:VARIANT): allowed "
        "are bedroom, church, celebahq, ffhq",
    ),
    "image size of a set that has one": (
        ["--mode=train", DIGITS, "--config.data.image_size=16"],
        "error: config.data.image_size = 16: allowed are 0 (its own 8 pixels) for digits",
    ),
    "discrete training of a process without chain": (
        ["--mode=train", DIGITS, "--config.sde.name=subvp", "--config.model.num_levels=1000"],
        "error: config.model.num_levels = 1000: allowed are 0 with config.sde.name = 'subvp', "
        "which has no discrete chain",
    ),
    "discrete training of a velocity": (
        ["--mode=train", DIGITS, "--config.model.num_levels=1000"],
        "error: config.model.parameterization = 'velocity': allowed are epsilon, score with "
        "config.model.num_levels = 1000",
    ),
    "unknown key": (
        ["--mode=train", DIGITS, "--config.training.num_step=5"],
        "error: config.training.num_step = '5': no such key; closest is config.training.num_steps",
    ),
    "unknown key in the wrong section": (
        ["--mode=train", "--config.model.batch_size=5"],
        "error: config.model.batch_size = '5': no such key; closest are "
        "config.likelihood.batch_size, config.sampling.batch_size, config.training.batch_size",
    ),
    "unknown key like no other": (
        ["--mode=train", "--config.x=5"],
        "error: config.x = '5': no such key; sections are "
        "data, eval, likelihood, model, sampling, sde, training",
    ),
    "section instead of a key": (
        ["--mode=train", "--config.data=5"],
        "error: config.data = '5': a section; its keys are dir, flip, image_size, name",
    ),
    "text for an integer": (
        ["--mode=train", "--config.training.num_steps=many"],
        "error: config.training.num_steps = 'many': allowed are integers",
    ),
    "fraction for an integer": (
        ["--mode=train", "--config.training.num_steps", "1.5"],
        "error: config.training.num_steps = '1.5': allowed are integers",
    ),
    "text for a number": (
        ["--mode=train", "--config.sampling.t_min=small"],
        "error: config.sampling.t_min = 'small': allowed are numbers",
    ),
    "text for a switch": (
        ["--mode=train", "--config.sampling.gif=maybe"],
        "error: config.sampling.gif = 'maybe': allowed are True, False",
    ),
    "text in a tuple": (
        ["--mode=train", "--config.model.multipliers=1,b"],
        "error: config.model.multipliers = ('1,b',): allowed are tuples of positive integers, one "
        "per resolution",
    ),
    "key without value": (
        ["--mode=train", "--config.seed"],
        "error: --config.seed: a value is missing",
    ),
    "name of the preset": (
        ["--mode=train", "--config.name=mine"],
        "error: config.name = 'mine': cannot be set; it is the name of --config",
    ),
    "sampler that does not exist": (
        ["--mode=sample", "--config.sampling.method=hmc", DIGITS, "--mode=train"],
        "error: config.sampling.method = 'hmc': allowed are pc, ald, ode, ddim, dpmpp, unipc, heun",
    ),
    "solver that does not exist": (
        ["--mode=train", DIGITS, "--config.sampling.solver=rk45"],
        "error: config.sampling.solver = 'rk45': allowed are dopri5, tsit5, dopri8, heun, euler",
    ),
    "step control that does not exist": (
        ["--mode=train", DIGITS, "--config.sampling.step_control=pid"],
        "error: config.sampling.step_control = 'pid': allowed are sample, batch",
    ),
    "resolution not divisible": (
        ["--mode=train", DIGITS, "--config.model.multipliers=1,1,1,1,1"],
        "error: config.model.multipliers = (1, 1, 1, 1, 1): allowed are 1 to 4 resolutions, as "
        "digits's 8 pixels are not divisible by the U-Net's factor 16",
    ),
    "workdir missing": (
        ["--mode=sample", "--workdir=runs/none"],
        "error: --workdir = 'runs/none': no config.json there; allowed are directories of "
        "--mode train",
    ),
    "default workdir missing": (
        ["--mode=likelihood", f"--config={CONFIGS / 've_digits.py'}"],
        "error: --workdir = 'runs/ve_digits': no config.json there; allowed are directories of "
        "--mode train",
    ),
    "key within a key": (
        ["--mode=train", "--config.data.flip.x=3"],
        "error: config.data.flip.x = '3': no such key; closest is config.data.flip",
    ),
    "workdir that cannot be made": (
        ["--mode=train", "--workdir=/dev/null/run"],
        "error: --workdir = '/dev/null/run': /dev/null is not a directory one may write to",
    ),
    "workdir empty": (
        ["--mode=train", "--workdir="],
        "error: --workdir = '': not a directory",
    ),
}


@pytest.mark.parametrize(("arguments", "line"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_one_line(tmp_path, arguments, line):
    assert refused(*arguments, cwd=tmp_path) == line


PRESETS_OF_USERS = {
    "syntax error": ("def get_config(:\n", "line 1: invalid syntax"),
    "no get_config": ("x = 1\n", "module 'preset_mine' has no attribute 'get_config'"),
    "error inside": ("def get_config():\n    return lr\n", "name 'lr' is not defined"),
    "not a config": (
        "def get_config():\n    return 5\n",
        "get_config() returns 5, not a ConfigDict",
    ),
    "missing import": ("import no_such_package\n", "No module named 'no_such_package'"),
    "takes no variant": (
        "def get_config():\n    pass\n",
        "get_config() takes 0 positional arguments but 1 was given",
    ),
    "unknown key": (
        "from score_sde.config import default\n"
        "def get_config():\n"
        "    config = default()\n"
        "    config.training.num_step = 5\n"
        "    return config\n",
        "'num_step': no such key; closest is config.training.num_steps",
    ),
    "wrong type": (
        "from score_sde.config import default\n"
        "def get_config():\n"
        "    config = default()\n"
        "    config.training.num_steps = 'many'\n"
        "    return config\n",
        "'num_steps' (reference). many is of original type <class 'str'>",
    ),
}


@pytest.mark.parametrize(("text", "said"), PRESETS_OF_USERS.values(), ids=PRESETS_OF_USERS.keys())
def test_a_mistake_in_a_users_preset_is_told_in_one_line(tmp_path, text, said, request):
    (tmp_path / "mine.py").write_text(text)
    variant = ":v" if "takes no variant" in request.node.name else ""
    line = refused("--mode=train", f"--config=mine.py{variant}", cwd=tmp_path)
    assert line.startswith(f"error: --config mine.py{variant}: ")
    assert said in line


def test_a_mistake_is_told_without_jax(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import main, sys; status = main.main(['--mode=train', '--config.seed=x']); "
            "print(status, {'jax', 'flax', 'numpy.random'} & set(sys.modules))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("2 ") and "jax" not in done.stdout, done.stdout + done.stderr


def test_devices_that_do_not_divide_the_batch(tmp_path):
    flags = "--xla_force_host_platform_device_count=3"
    done = command("--mode=train", cwd=tmp_path, XLA_FLAGS=flags)
    line = "error: config.training.batch_size = 64: allowed are multiples of the 3 devices\n"
    assert (done.returncode, done.stderr) == (2, line)
    assert not any(tmp_path.iterdir())


# --- One tiny run through all modes ---------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Iterator[Path]:
    """A folder in which the default preset was trained for four steps, in its default workdir."""
    folder = tmp_path_factory.mktemp("cli")
    arguments = (*SMALL, "--config.training.num_steps=4", "--config.training.sample_every=4")
    told = succeed("--mode=train", DIGITS, *arguments, cwd=folder)
    assert "1500 images of digits" in told and "config: runs/vp_digits/config.json" in told
    return folder


@pytest.fixture
def workdir(trained) -> Path:
    return trained / "runs" / "vp_digits"


def test_training_leaves_what_the_readme_promises(workdir):
    assert workdirs.load(workdir).model.width == 8
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == [2, 4]
    assert any((workdir / "tensorboard").iterdir())
    assert Image.open(workdir / "samples" / "step_000004.png").size == (
        280,
        280,
    )  # 4x4 of 8x8, 8 times


def test_sampling_needs_the_workdir_only(workdir, tmp_path):
    arguments = (*FEW, "--config.sampling.batch_size=2", "--config.sampling.gif")
    told = succeed("--mode=sample", "--workdir", workdir, *arguments, cwd=tmp_path)
    assert f"picture: {workdir / 'samples.png'}" in told
    speed = r"3 images, NFE 3, [\d.]+ images/s with compilation, [\d.]+ images/s after the first"
    assert re.search(speed, told)
    arrays = np.load(workdir / "samples.npz")
    assert arrays["images"].shape == (3, 8, 8, 1) and arrays["images"].dtype == np.uint8
    assert arrays["images"].max() <= 16
    # two steps of Euler-Maruyama and the denoising
    assert arrays["nfe"].tolist() == [3, 3, 3]
    assert "batch_size" not in arrays  # which an image does not depend on
    # prior, two steps, denoised; GIF joins frames that are equal
    assert 2 <= Image.open(workdir / "samples.gif").n_frames <= 4
    assert workdirs.load(workdir).sampling.num_samples == 64  # the saved config holds


@pytest.mark.parametrize("method", ["ode", "ald", "ddim", "unipc", "heun"])
def test_sampling_by_other_methods(workdir, trained, method):
    arguments = (*FEW, f"--config.sampling.method={method}", "--config.sampling.rtol=0.1")
    told = succeed("--mode=sample", *arguments, "--config.sampling.atol=0.1", cwd=trained)
    arrays = np.load(workdir / "samples.npz")
    assert arrays["images"].shape == (3, 8, 8, 1)
    unread = "num_steps" if method == "ode" else "atol, config.sampling.rtol"
    assert f"not read with these settings: config.sampling.{unread}\n" in told
    # two levels or steps, and the denoising
    assert method == "ode" or arrays["nfe"].tolist() == [5 if method == "heun" else 3] * 3


def test_a_run_as_an_object(workdir):
    config = changed(workdirs.load(workdir), {"sampling.num_steps": 2, "likelihood.rtol": 0.1})
    run = score_sde.load(workdir, changed(config, {"likelihood.atol": 0.1}))
    assert len(repr(run)) < 10_000 and run.step == 4 and isinstance(run.sde, score_sde.VPSDE)
    images = run.sample(jax.random.key(0), 3).images
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(run.sample(jax.random.key(0), 2).images, images[:2])
    x, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), np.full(2, 0.5, np.float32)
    score = run.score(x, jax.numpy.asarray(t))
    assert score.shape == x.shape and np.isfinite(score).all()
    assert run.log_likelihood(jax.random.key(2), images).bits_per_dim.shape == (3,)
    for bad, said in (
        (images[0], r"uint8 \(8, 8, 1\): allowed are uint8 \(n, 8, 8, 1\)"),
        (images.astype(np.float32), "images are float32"),
        (images + np.uint8(17), "allowed are 0 to 16"),
    ):
        with pytest.raises(ValueError, match=said):
            run.log_likelihood(jax.random.key(2), bad)
    with pytest.raises(ValueError, match="n = 0: allowed are integers of at least 1"):
        run.sample(jax.random.key(0), 0)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # the preset's own: SDE-DPM-Solver++ in 30 steps
        {"sampling.method": "unipc"},
        {"sampling.method": "ode"},
    ],
)
def test_a_networks_images_do_not_depend_on_their_batch(workdir, settings):
    """To 1e-5 of the pixels' range, which is 2 in the model's units; and their evaluations."""
    run = score_sde.load(workdir, changed(workdirs.load(workdir), settings))
    sampler, key = build.sampler(run.config), jax.random.key(0)
    score = run.smooth_score if "ode" in settings.values() else run.score
    whole = sampler.sample(key, run.sde, score, shape=(32, 8, 8, 1))
    parts = [
        sampler.sample(key, run.sde, score, shape=(8, 8, 8, 1), first=first)
        for first in range(0, 32, 8)
    ]
    joined = np.concatenate([part.x for part in parts])
    np.testing.assert_allclose(joined, whole.x, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(np.concatenate([part.nfe for part in parts]), whole.nfe)


def test_samples_that_are_not_finite_are_an_error(workdir, trained):
    wild = ("--config.sampling.method=pc", "--config.sampling.predictor=none")
    wild = (*wild, "--config.sampling.corrector=ald")
    size = ("--config.sampling.snr=1e12", "--config.sampling.num_steps=20")
    done = command("--mode=sample", *wild, *size, "--config.sampling.num_samples=3", cwd=trained)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "samples are not finite with PredictorCorrector(" in done.stderr


def test_tolerances_that_no_solve_meets_are_an_error(trained):
    wild = ("--config.sampling.method=ode", "--config.sampling.rtol=1e-12")
    done = command("--mode=sample", *FEW, *wild, "--config.sampling.atol=1e-12", cwd=trained)
    assert done.returncode == 2
    said = done.stderr.rstrip("\n").splitlines()[-1]
    assert said.startswith("error: config.sampling.rtol, config.sampling.atol: the solve failed")


LOOSE = ("--config.sampling.rtol=0.1", "--config.sampling.atol=0.1")


def test_a_common_step_is_recorded_with_the_samples(workdir, trained):
    """What an image depends on beside its index."""
    together = ("--config.sampling.method=ode", "--config.sampling.step_control=batch")
    arguments = (*FEW, *LOOSE, *together, "--config.sampling.batch_size=2")
    succeed("--mode=sample", *arguments, cwd=trained)
    arrays = np.load(workdir / "samples.npz")
    assert arrays["batch_size"] == 2 and arrays["images"].shape == (3, 8, 8, 1)
    assert arrays["nfe"][0] == arrays["nfe"][1]


def test_interpolation_between_held_out_images(workdir, trained):
    few = ("--config.sampling.num_pairs=3", "--config.sampling.num_between=2")
    tight = ("--config.sampling.rtol=1e-4", "--config.sampling.atol=1e-4")
    # batches of 8 have room for two pairs' rows of four
    arguments = (*few, *tight, "--config.sampling.batch_size=8")
    told = succeed("--mode=interpolate", "--workdir", workdir, *arguments, cwd=trained)
    assert "3 pairs, 2 between: NFE " in told and "there and back: root mean square " in told
    arrays = np.load(workdir / "interpolation.npz")
    images, labels = load("digits", "test")
    assert arrays["indices"].tolist() == [[0, 1], [2, 3], [4, 5]]
    np.testing.assert_array_equal(arrays["real"], images[arrays["indices"]])
    np.testing.assert_array_equal(arrays["labels"], labels[arrays["indices"]])
    assert arrays["images"].shape == (3, 4, 8, 8, 1) and arrays["images"].dtype == np.uint8
    assert arrays["latents"].shape == (3, 2, 8, 8, 1) and arrays["latents"].dtype == np.float32
    assert arrays["nfe"].shape == (3, 6) and arrays["rms"].shape == (3, 2)
    # The way there and back costs two solves' errors, some twenty steps of 1e-4 each; a pixel is
    # another integer where this crosses the edge of its bin, 2 / 17 wide.
    assert arrays["rms"].max() < 5e-3
    np.testing.assert_allclose(
        (arrays["images"][:, [0, -1]] == arrays["real"]).mean(axis=(2, 3, 4)), arrays["same"]
    )
    assert arrays["same"].mean() > 0.9
    # 3 rows of 4 images of 8 pixels, magnified 8 times, with lines of one pixel
    assert Image.open(workdir / "interpolation.png").size == (4 * 72 - 8, 3 * 72 - 8)

    # The same from Python.
    settings = {"sampling.rtol": 1e-4, "sampling.atol": 1e-4, "sampling.batch_size": 8}
    run = score_sde.load(workdir, changed(workdirs.load(workdir), settings))
    first, second = images[:6:2], images[1:6:2]
    again = run.interpolate(jax.random.key(0), first, second, 2)
    np.testing.assert_array_equal(again.images, arrays["images"])
    # In another batch: one solve for each image, equal to some ten times the tolerance.
    latents = run.encode(jax.random.key(0), images[:6])
    np.testing.assert_allclose(latents.reshape(3, 2, 8, 8, 1), arrays["latents"], atol=1e-2)
    back = run.decode(latents)
    assert back.dtype == np.uint8 and (back == images[:6]).mean() > 0.9
    for wrong, said in (
        (lambda: run.decode(latents[0]), r"latents are \(8, 8, 1\)"),
        (lambda: run.interpolate(jax.random.key(0), first, second[:2], 2), "3 and 2 images"),
        (lambda: run.interpolate(jax.random.key(0), first, second, 0), "num = 0"),
        (lambda: run.encode(jax.random.key(0), images[:6], labels=[0] * 6), "without classes"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


def test_mistakes_of_an_interpolation_are_told_in_one_line(workdir, trained):
    for arguments, said in (
        (
            ["--config.sampling.num_pairs=149"],
            "error: config.sampling.num_pairs = 149: allowed are 1 to 148, the pairs of the test "
            "images of digits",
        ),
        (
            ["--config.sampling.rtol=1e-12", "--config.sampling.atol=1e-12"],
            "error: config.sampling.rtol, config.sampling.atol: the solve failed for ",
        ),
        (
            ["--config.sampling.method=pc"],
            "error: config.sampling.method = 'pc': allowed are ode with --mode interpolate",
        ),
    ):
        before = sorted(workdir.iterdir())
        small = ("--config.sampling.num_between=1", "--config.sampling.batch_size=3")
        done = command("--mode=interpolate", *small, *arguments, cwd=trained)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.rstrip("\n").splitlines()[-1].startswith(said)
        assert "Traceback" not in done.stderr and sorted(workdir.iterdir()) == before


def test_a_training_that_ended_before_it_began_may_change(tmp_path):
    """The config is written before the first step; until a checkpoint, it binds nobody."""
    workdirs.save(vp_digits.get_config(), tmp_path)
    changed_key = ["--mode=train", f"--workdir={tmp_path}", "--config.training.batch_size=32"]
    assert main.parse(changed_key).config.training.batch_size == 32
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(score_sde.UserError, match=r"batch_size = 32 \(64 in"):
        main.parse(changed_key)


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.8])
def test_an_interrupt_while_training_starts_ends_it(tmp_path, seconds):
    """Wherever in JAX's start it comes, where Python's own exception can be lost."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "main.py", "--mode=train", DIGITS],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("devices:")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    # 75: the loop had taken over, and has saved what it had done.
    assert process.returncode in (75, 130), said
    assert "Traceback" not in said and "Exception ignored" not in said


def test_fewer_steps_than_were_made_are_refused(workdir, trained):
    done = command("--mode=train", DIGITS, *SMALL, "--config.training.num_steps=3", cwd=trained)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "config.training.num_steps = 3: allowed are at least 4" in done.stderr
    assert workdirs.load(workdir).training.num_steps == 4


def test_likelihood_counts_every_image_in_order(workdir, tmp_path):
    loose = ("--config.likelihood.rtol=1e-2", "--config.likelihood.atol=1e-2")
    arguments = ("--config.likelihood.num_images=5", "--config.likelihood.batch_size=4", *loose)
    told = succeed("--mode=likelihood", "--workdir", workdir, *arguments, cwd=tmp_path)
    summary = json.loads((workdir / "likelihood.json").read_text())
    values = np.load(workdir / "likelihood.npz")
    bits = values["bits_per_dim"].astype(np.float64)
    assert bits.shape == values["nfe"].shape == (5,)
    assert summary["num_images"] == 5 and summary["complete"]
    # the same numbers added up here: equal to float64 rounding
    assert summary["bits_per_dim"] == pytest.approx(bits.mean(), rel=1e-12)
    assert summary["standard_error"] == pytest.approx(bits.std(ddof=1) / 5**0.5, rel=1e-12)
    assert f"{bits.mean():.4f} +- " in told

    # the last, partial batch holds the fifth image: the same from Python, in another batch
    overrides = {f"likelihood.{name}": 1e-2 for name in ("rtol", "atol")}
    config = changed(workdirs.load(workdir), overrides | {"likelihood.batch_size": 5})
    run = score_sde.load(workdir, config)
    images = load("digits", "test").images[:5]
    again = run.log_likelihood(jax.random.key(0), images)
    # One solve per image. Its rounding depends on the batch's shape, which an adaptive solver's
    # step sizes pass on at the scale of its tolerance.
    np.testing.assert_allclose(again.bits_per_dim, bits, atol=1e-2)


def test_the_same_command_resumes_and_another_number_of_steps_goes_on(trained, workdir):
    arguments = (*SMALL, "--config.training.sample_every=4")
    succeed("--mode=train", DIGITS, *arguments, "--config.training.num_steps=4", cwd=trained)
    checkpoints = workdir / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["2", "4"]
    succeed(
        "--mode=train", "--workdir=runs/vp_digits", "--config.training.num_steps=5", cwd=trained
    )
    assert sorted(path.name for path in checkpoints.iterdir()) == ["4", "5"]
    assert workdirs.load(workdir).training.num_steps == 5


MAY = "sampling.*, likelihood.*, eval.*, data.dir"
CHANGES = {
    "override when sampling": (
        ["--mode=sample", "--workdir=runs/vp_digits", "--config.model.width=16"],
        f"error: config.model.width = 16 (8 in runs/vp_digits): --mode sample may change {MAY}",
    ),
    "override with the preset named": (
        ["--mode=likelihood", DIGITS, "--config.seed=1"],
        f"error: config.seed = 1 (0 in runs/vp_digits): --mode likelihood may change {MAY}",
    ),
    "other values when training": (
        ["--mode=train", DIGITS, *SMALL, "--config.sde.beta_max=10", "--config.model.dropout=0"],
        "error: config.model.dropout = 0.0 (0.05 in runs/vp_digits), config.sde.beta_max = 10.0 "
        "(20.0 in runs/vp_digits): --mode train may change training.num_steps, "
        "training.log_every, training.sample_every, training.checkpoint_every, " + MAY,
    ),
    "impossible override": (
        ["--mode=sample", "--workdir=runs/vp_digits", "--config.sampling.predictor=heun"],
        "error: config.sampling.predictor = 'heun': allowed are euler_maruyama, "
        "reverse_diffusion, ancestral, none",
    ),
}


@pytest.mark.parametrize(("arguments", "line"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_what_a_workdir_was_made_with_is_refused(trained, arguments, line):
    assert refused(*arguments, cwd=trained) == line


def test_another_preset_on_a_workdir_is_refused_by_its_keys(trained):
    arguments = (f"--config={CONFIGS / 've_digits.py'}", "--workdir=runs/vp_digits")
    line = refused("--mode=sample", *arguments, cwd=trained)
    assert "config.sde.name = 've' ('vp' in runs/vp_digits)" in line


def test_the_preset_may_be_named_again_and_the_saved_values_hold(trained):
    done = command("--mode=sample", DIGITS, *FEW, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "note: runs/vp_digits/config.json holds: config.model.width = 8" in done.stderr


def test_a_workdir_without_checkpoint_is_told_in_one_line(trained, tmp_path):
    (tmp_path / "config.json").write_text((trained / "runs/vp_digits/config.json").read_text())
    done = command("--mode=sample", f"--workdir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path / 'checkpoints'}: no checkpoint there; train first (--mode train)\n"
    )


@pytest.mark.parametrize("mode", ["train", "likelihood"])
def test_a_set_that_is_only_described_cannot_be_read(tmp_path, mode):
    arguments = [f"--config={CONFIGS / 've_celeba.py'}", f"--mode={mode}"]
    if mode == "likelihood":
        workdirs.save(ve_celeba.get_config(), tmp_path / "runs" / "ve_celeba")
    before = sorted(tmp_path.rglob("*"))
    done = command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "error: config.data.name = 'celeba': its images cannot be read, only its models can be "
        "used; sets that can are digits, cifar10, fashion_mnist\n",
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_data_set_is_told_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = (f"--config={CONFIGS / 'vp_cifar10.py'}", "--config.data.dir=empty")
    nowhere = "http://127.0.0.1:9"  # no download
    done = command("--mode=train", *arguments, cwd=tmp_path, https_proxy=nowhere)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and "cifar10" in done.stderr
    assert not (tmp_path / "runs").exists()
