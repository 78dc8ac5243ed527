"""One tiny run through all modes, as a user types them, and their mistakes."""

import json
import re
import signal
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import score_sde
from configs import vp_digits
from score_sde import build, cli, likelihood, workdirs
from score_sde.config import changed
from score_sde.data import DATASETS
from score_sde.samplers import stepped
from score_sde.training.checkpoints import Checkpoints
from tests.cases import thorough
from tests.commands import CONFIGS, DIGITS, FEW, KINDS, ROOT, begin, command, refused, succeed


@pytest.fixture(scope="module")
def workdir(tiny_run, tmp_path_factory) -> Path:
    """The default preset, trained for four steps in its default workdir."""
    return tiny_run("digits", tmp_path_factory.mktemp("cli"))


@pytest.fixture
def trained(workdir) -> Path:
    """The folder in which the default workdir is this one."""
    return workdir.parents[1]


def test_training_leaves_what_the_readme_promises(workdir):
    assert workdirs.load(workdir).model.width == 8
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == [2, 4]
    assert any((workdir / "tensorboard").iterdir())
    picture = Image.open(workdir / "samples" / "step_000004.png")
    assert picture.size == (280, 280)  # 4x4 of 8x8, 8 times


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
    film = Image.open(workdir / "samples.gif")
    assert 2 <= film.n_frames <= 4 and film.size == (136, 136)  # all three: two by two of 8x8
    assert workdirs.load(workdir).sampling.num_samples == 64  # the saved config holds


@pytest.mark.parametrize("method", ["ode", "unipc", *thorough("ald", "ddim", "heun")])
def test_sampling_by_other_methods(workdir, trained, method):
    arguments = (*FEW, f"--config.sampling.method={method}", "--config.sampling.rtol=0.1")
    arguments = (*arguments, "--config.restore.zeta=0.5", "--config.eval.resize=halfpixel")
    # That eta is the saved sampler's, but none of this one's.
    arguments = (*arguments, "--config.sampling.eta=1") if method == "unipc" else arguments
    told = succeed("--mode=sample", *arguments, "--config.sampling.atol=0.1", cwd=trained)
    arrays = np.load(workdir / "samples.npz")
    assert arrays["images"].shape == (3, 8, 8, 1)
    unread = {"ode": ["num_steps"], "unipc": ["atol", "eta", "rtol"]}.get(method, ["atol", "rtol"])
    keys = "".join(f", config.sampling.{key}" for key in unread)
    others = "config.eval.resize, config.restore.zeta"
    assert f"not read with these settings: {others}{keys}\n" in told
    # two levels or steps, and the denoising
    assert method == "ode" or arrays["nfe"].tolist() == [5 if method == "heun" else 3] * 3


@pytest.fixture(scope="module")
def unet(tiny_run, tmp_path_factory) -> Path:
    """The workdir of the preset's own network, small."""
    return tiny_run("unet", tmp_path_factory.mktemp("unet"))


@pytest.mark.parametrize("kind", ["workdir", *thorough("unet")])
def test_a_run_as_an_object(kind, request):
    workdir = request.getfixturevalue(kind)
    config = changed(workdirs.load(workdir), {"sampling.num_steps": 2, "likelihood.rtol": 0.1})
    config = changed(config, {"likelihood.atol": 0.1})
    run = score_sde.load(workdir, config)
    assert len(repr(run)) < 10_000 and run.step == 4 and isinstance(run.sde, score_sde.VPSDE)
    images = run.sample(jax.random.key(0), 3).images
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(run.sample(jax.random.key(0), 2).images, images[:2])
    x, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), np.full(2, 0.5, np.float32)
    score = run.score(x, jax.numpy.asarray(t))
    assert score.shape == x.shape and np.isfinite(score).all()
    found = run.log_likelihood(jax.random.key(2), images).bits_per_dim
    assert found.shape == (3,)
    # Loaded again it is another object with the same arrays: no program is compiled anew.
    programs = [program._cache_size() for program in (stepped._whole, likelihood._solve)]
    again = score_sde.load(workdir, config)
    np.testing.assert_array_equal(again.sample(jax.random.key(0), 3).images, images)
    repeated = again.log_likelihood(jax.random.key(2), images).bits_per_dim
    np.testing.assert_array_equal(repeated, found)
    assert programs == [each._cache_size() for each in (stepped._whole, likelihood._solve)]
    for bad, said in (
        (images[0], r"uint8 \(8, 8, 1\): allowed are uint8 \(n, 8, 8, 1\)"),
        (images.astype(np.float32), "images are float32"),
        (images + np.uint8(17), "allowed are 0 to 16"),
    ):
        with pytest.raises(ValueError, match=said):
            run.log_likelihood(jax.random.key(2), bad)
    with pytest.raises(ValueError, match="n = 0: allowed are integers of at least 1"):
        run.sample(jax.random.key(0), 0)


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["unipc", "ode", "dpmpp"])
def test_a_networks_images_do_not_depend_on_their_batch(unet, method):
    """To 1e-5 of the pixels' range, which is 2 in the model's units; and their evaluations."""
    settings = {"sampling.method": method, "sampling.num_steps": 5}
    settings |= {"sampling.rtol": 1e-2, "sampling.atol": 1e-2} if method == "ode" else {}
    run = score_sde.load(unet, changed(workdirs.load(unet), settings))
    sampler, key = build.sampler(run.config), jax.random.key(0)
    score = run.smooth_score if method == "ode" else run.score
    whole = sampler.sample(key, run.sde, score, shape=(16, 8, 8, 1))
    parts = [
        sampler.sample(key, run.sde, score, shape=(4, 8, 8, 1), first=first)
        for first in range(0, 16, 4)
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


def with_weights(workdir: Path, change) -> Path:
    """Give a workdir a newer checkpoint with other averaged weights; its path."""
    newest = workdir / "checkpoints" / "4" / "default"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored = reader.restore(newest.absolute())
    stored["ema"] = jax.tree.map(lambda leaf: change(np.asarray(leaf)), stored["ema"])
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(stored, 5)
    return workdir


@pytest.mark.parametrize("mode", ["sample", *thorough("restore")])
def test_a_score_that_is_no_number_is_told_whatever_the_sampler(tiny_run, tmp_path, mode):
    """With the preset's own, whose steps are of no help then."""
    with_weights(tiny_run("digits", tmp_path), lambda leaf: np.full_like(leaf, 3e38))
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    more = {"sample": (), "restore": ("--input=a.png", "--task=inpaint")}[mode]
    done = command(f"--mode={mode}", *FEW, *more, cwd=tmp_path)
    assert done.returncode == 2 and "allowed are more" not in done.stderr, done.stderr
    assert "the score is not a finite number, so no setting of sampling helps" in done.stderr


@pytest.fixture(scope="module")
def diverged(tiny_run, tmp_path_factory) -> Path:
    """The workdir of a network with weights so large that no solve can follow its flow."""
    draw = np.random.default_rng(0)

    def large(leaf):
        return (100.0 * draw.standard_normal(leaf.shape)).astype(leaf.dtype)

    return with_weights(tiny_run("unet", tmp_path_factory.mktemp("diverged")), large)


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["sample", "interpolate"])
def test_a_flow_that_no_solve_follows_is_an_error(diverged, mode):
    before = sorted(diverged.iterdir())
    few = ["--config.sampling.num_samples=1", "--config.sampling.method=ode"]
    if mode == "interpolate":
        few = ["--config.sampling.num_pairs=1", "--config.sampling.num_between=1"]
    few.append("--config.sampling.solver=heun")  # two evaluations a step
    done = command(f"--mode={mode}", "--workdir", diverged, *few, cwd=ROOT)
    assert done.returncode == 2, done.stdout + done.stderr
    number = 1 if mode == "sample" else 2
    line = done.stderr.rstrip("\n").splitlines()[-1]
    assert line.startswith("error: config.sampling.rtol, config.sampling.atol: ")
    assert f"{number} of {number}" in line and "its steps fell below rounding" in line
    assert line.endswith("; allowed are larger ones")
    assert "Traceback" not in done.stderr and sorted(diverged.iterdir()) == before


def test_a_flow_that_is_not_finite_is_not_blamed_on_the_tolerances(tiny_run, tmp_path):
    """Larger ones would not help. These weights are finite, and their products are not."""
    workdir = with_weights(tiny_run("digits", tmp_path), lambda leaf: np.full_like(leaf, 1e38))
    few = ["--config.sampling.num_samples=1", "--config.sampling.method=ode"]
    few.append("--config.sampling.solver=heun")
    done = command("--mode=sample", "--workdir", workdir, *few, cwd=ROOT)
    assert done.returncode == 2, done.stdout + done.stderr
    line = done.stderr.rstrip("\n").splitlines()[-1]
    assert line.startswith("error: sampling: the solve failed for 1 of 1 samples: the score")
    assert "not a finite number" in line and "larger" not in line and "rtol" not in line
    assert "Traceback" not in done.stderr and not (workdir / "samples.npz").exists()


LOOSE = ("--config.sampling.rtol=0.1", "--config.sampling.atol=0.1")


def test_a_common_step_is_recorded_with_the_samples(workdir, trained):
    """What an image depends on beside its index."""
    together = ("--config.sampling.method=ode", "--config.sampling.step_control=batch")
    arguments = (*FEW, *LOOSE, *together, "--config.sampling.batch_size=2")
    succeed("--mode=sample", *arguments, cwd=trained)
    arrays = np.load(workdir / "samples.npz")
    assert arrays["batch_size"] == 2 and arrays["images"].shape == (3, 8, 8, 1)
    assert arrays["nfe"][0] == arrays["nfe"][1]


def test_a_training_that_ended_before_it_began_may_change(tmp_path):
    """The config is written before the first step; until a checkpoint, it binds nobody."""
    workdirs.save(vp_digits.get_config(), tmp_path, DATASETS["digits"].info)
    changed_key = ["--mode=train", f"--workdir={tmp_path}", "--config.training.batch_size=32"]
    assert cli.parse(changed_key).config.training.batch_size == 32
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(score_sde.UserError, match=r"batch_size = 32 \(64 in"):
        cli.parse(changed_key)


@pytest.mark.thorough  # a process of some seconds each
@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.8])
def test_an_interrupt_while_training_starts_ends_it(tmp_path, seconds):
    """Wherever in JAX's start it comes, where Python's own exception can be lost."""
    process = begin("--mode=train", DIGITS, cwd=tmp_path)
    assert process.stdout.readline().startswith("devices:")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    # 75: the loop had taken over, and has saved what it had done.
    assert process.returncode in (75, 130), said
    assert "Traceback" not in said and "Exception ignored" not in said


def test_fewer_steps_than_were_made_are_refused(workdir, trained):
    more = "--config.training.num_steps=3"
    done = command("--mode=train", DIGITS, *KINDS["digits"], more, cwd=trained)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "config.training.num_steps = 3: allowed are at least 4" in done.stderr
    assert workdirs.load(workdir).training.num_steps == 4


def test_the_same_command_resumes_and_another_number_of_steps_goes_on(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    told = succeed("--mode=train", DIGITS, *KINDS["digits"], cwd=tmp_path)
    assert "1500 images of digits" in told and "config: runs/vp_digits/config.json" in told
    checkpoints = workdir / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["2", "4"]
    assert "learning rate" not in told
    # The cosine would be stretched: 3/4 of 4 steps, 4/5 of 5.
    go_on = ("--mode=train", "--workdir=runs/vp_digits", "--config.training.num_steps=5")
    keep = "--config.training.schedule_steps=4"
    told = succeed(*go_on, "--config.training.keep=3", cwd=tmp_path)
    last, next_one = (6e-3 * 0.5 * (1 + np.cos(np.pi * share)) for share in (3 / 4, 4 / 5))
    note = f"note: step 4 has the learning rate {next_one:.2g}, not {last:.2g}; {keep} keeps"
    assert note in told
    assert sorted(path.name for path in checkpoints.iterdir()) == ["2", "4", "5"]
    assert workdirs.load(workdir).training.num_steps == 5


def test_a_checkpoint_can_be_chosen(tiny_run, tmp_path):
    workdir = tiny_run("digits", tmp_path)
    told = succeed("--mode=config", f"--workdir={workdir}", cwd=tmp_path)
    assert "checkpoints: step, date, loss" in told
    found = [line.split() for line in told.splitlines()[-2:]]
    losses = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]
    assert [(line[0], line[-1]) for line in found] == [
        (step, f"{loss:.4g}") for step, loss in zip("24", losses, strict=True)
    ]
    succeed("--mode=sample", "--step=2", *FEW, cwd=tmp_path)
    assert np.load(workdir / "samples.npz")["step"] == 2
    told = succeed(
        "--mode=export", f"--workdir={workdir}", "--step=2", "--target=out", cwd=tmp_path
    )
    assert "after 2 steps" in told
    run = score_sde.load(workdir, step=2)
    assert run.step == 2
    newest = jax.tree.leaves(score_sde.load(workdir).score.params)
    chosen = jax.tree.leaves(run.score.params)
    assert any((a != b).any() for a, b in zip(newest, chosen, strict=True))
    done = command("--mode=likelihood", "--step=3", f"--workdir={workdir}", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: step = 3: not in " in done.stderr and "allowed are 2, 4" in done.stderr


TWO = """
import os, signal
from score_sde.cli import main
numbers = (signal.SIGINT, signal.SIGTERM)
before = [signal.getsignal(number) for number in numbers]
for arguments in {commands!r}:
    assert main(arguments) == 0
    assert [signal.getsignal(number) for number in numbers] == before
"""


@pytest.mark.slow  # compiles everything for two devices: 80 s
def test_one_process_runs_many_commands_on_two_devices(tiny_run, tmp_path, run_python):
    """As a notebook may. What was trained on one device goes on; the numbers are those of one."""
    copy = tiny_run("digits", tmp_path)
    at = f"--workdir={copy}"
    few = ["--config.sampling.num_steps=3", "--config.sampling.num_samples=4"]
    sample = ["--mode=sample", at, *few, "--config.sampling.method=unipc"]
    few = ["--config.likelihood.num_images=4", "--config.likelihood.rtol=1e-2"]
    likelihood = ["--mode=likelihood", at, *few, "--config.likelihood.atol=1e-2"]
    train = ["--mode=train", at, "--config.training.num_steps=6"]
    code = TWO.format(commands=[train, sample, likelihood])
    done = run_python(
        code, {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    )
    assert done.stdout.count("devices: 2 x") == 3
    arrays = [dict(np.load(copy / f"{name}.npz")) for name in ("samples", "likelihood")]
    for name, arguments in (("samples", sample), ("likelihood", likelihood)):
        (copy / f"{name}.npz").unlink()
        succeed(*arguments, cwd=tmp_path)
    images, bits = (
        np.load(copy / f"{name}.npz")[array].astype(np.float64)
        for name, array in (("samples", "images"), ("likelihood", "bits_per_dim"))
    )
    # Rounding differs with the batch's shape: at the edge of a pixel's bin, and at the scale of the
    # tolerance, by which the solver chooses its steps.
    assert np.abs(images - arrays[0]["images"]).max() <= 1
    np.testing.assert_allclose(bits, arrays[1]["bits_per_dim"], atol=1e-2)


DIFFERENT = ("--config.sde.beta_max=10", "--config.model.dropout=0")
MAY = "sampling.*, likelihood.*, restore.*, eval.*, data.dir, data.stream, data.workers"
CHANGES = {
    "a change whose consequence is impossible": (
        ["--mode=sample", "--workdir=runs/vp_digits", "--config.data.name=cifar10"],
        "error: config.data.name = 'cifar10' ('digits' in runs/vp_digits): --mode sample may "
        f"change {MAY}",
    ),
    "override when sampling": (
        ["--mode=sample", "--workdir=runs/vp_digits", "--config.model.width=16"],
        f"error: config.model.width = 16 (8 in runs/vp_digits): --mode sample may change {MAY}",
    ),
    "override with the preset named": (
        ["--mode=likelihood", DIGITS, "--config.seed=1"],
        f"error: config.seed = 1 (0 in runs/vp_digits): --mode likelihood may change {MAY}",
    ),
    "other values when training": (
        ["--mode=train", DIGITS, *KINDS["digits"], *DIFFERENT],
        "error: config.model.dropout = 0.0 (0.05 in runs/vp_digits), config.sde.beta_max = 10.0 "
        "(20.0 in runs/vp_digits): --mode train may change training.num_steps, "
        "training.schedule_steps, training.log_every, training.sample_every, "
        "training.evaluate_every, training.checkpoint_every, training.keep, training.keep_every, "
        + MAY,
    ),
    "impossible override": (
        ["--mode=sample", "--workdir=runs/vp_digits", "--config.sampling.predictor=heun"],
        "error: config.sampling.predictor = 'heun': allowed are euler_maruyama, "
        "reverse_diffusion, ancestral, ancestral_large, ancestral_learned, none",
    ),
}


@pytest.mark.parametrize(("arguments", "line"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_what_a_workdir_was_made_with_is_refused(trained, arguments, line):
    assert refused(*arguments, cwd=trained).startswith(line)


def test_another_preset_on_a_workdir_is_refused_by_its_keys(trained):
    arguments = (f"--config={CONFIGS / 've_digits.py'}", "--workdir=runs/vp_digits")
    line = refused("--mode=sample", *arguments, cwd=trained)
    assert "config.sde.name = 've' ('vp' in runs/vp_digits)" in line


def test_the_preset_may_be_named_again_and_the_saved_values_hold(trained):
    done = command("--mode=sample", DIGITS, *FEW, cwd=trained)
    assert done.returncode == 0, done.stderr
    [note] = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert "runs/vp_digits/config.json holds: " in note and "config.model.width = 8" in note


def test_a_workdir_without_checkpoint_is_told_in_one_line(trained, tmp_path):
    (tmp_path / "config.json").write_text((trained / "runs/vp_digits/config.json").read_text())
    done = command("--mode=sample", f"--workdir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path / 'checkpoints'}: no checkpoint there; train first (--mode train)\n"
    )
